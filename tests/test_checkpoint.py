"""Blobs: complete files or none, whatever the disk does."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peertune import checkpoint
from peertune.checkpoint import Blobs
from peertune.errors import DamagedError, StorageError

CONTENT = b"adapter" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "coordinator" / "checkpoints")


def files(blobs: Blobs) -> set[str]:
    return set(os.listdir(blobs.folder)) if blobs.folder.exists() else set()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_round_trip(blobs: Blobs, content: bytes) -> None:
    digest = blobs.put(content)
    assert digest == hashlib.sha256(content).hexdigest()
    assert blobs.get(digest) == content


def test_put_twice_is_one_file(blobs: Blobs) -> None:
    assert blobs.put(CONTENT) == blobs.put(CONTENT) == DIGEST
    assert files(blobs) == {DIGEST}


def test_nothing_is_written_twice(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs.put(CONTENT)
    monkeypatch.setattr(checkpoint, "write_synced", None)
    assert blobs.put(CONTENT) == DIGEST


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT + b"x", b"A" + CONTENT[1:]])
def test_damaged_content_is_noticed_and_mended_by_the_next_put(blobs: Blobs, damage: bytes) -> None:
    """A round whose checkpoint is damaged is made again, with the same content and so the same name."""
    blobs.put(CONTENT)
    (blobs.folder / DIGEST).write_bytes(damage)
    with pytest.raises(StorageError, match=f"{DIGEST} was damaged on disk"):
        blobs.get(DIGEST)
    assert blobs.put(CONTENT) == DIGEST
    assert blobs.get(DIGEST) == CONTENT


def test_missing_content(blobs: Blobs) -> None:
    with pytest.raises(DamagedError, match=f"{DIGEST} is missing"):
        blobs.get(DIGEST)


def test_keep(blobs: Blobs) -> None:
    digests = [blobs.put(bytes([index])) for index in range(4)]
    (blobs.folder / f"{digests[0]}.123.tmp").write_bytes(b"what an interrupted write left")
    blobs.keep({digests[1], digests[3], "0" * 64})
    assert files(blobs) == {digests[1], digests[3]}
    blobs.keep(())
    assert files(blobs) == set()


def test_keep_without_a_folder(blobs: Blobs) -> None:
    blobs.keep({DIGEST})
    assert not blobs.folder.exists()


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blobs = Blobs(tmp_path / "file" / "checkpoints")
    with pytest.raises(StorageError, match="was not written .Not a directory.; free space or check the rights"):
        blobs.put(CONTENT)
    with pytest.raises(StorageError, match="cannot be read"):
        blobs.get(DIGEST)


# The disk refuses: at each call that can fail, in order


class _RefusingFile:
    """A file whose `write` fails after half of the bytes, or whose `close` fails."""

    def __init__(self, file: Any, verb: str, code: int) -> None:
        self._file, self._verb, self._code = file, verb, code

    def __enter__(self) -> "_RefusingFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._refuse("close")

    def write(self, raw: bytes) -> None:
        self._file.write(raw[: len(raw) // 2])
        self._refuse("write")

    def flush(self) -> None:
        self._file.flush()
        self._refuse("flush")

    def fileno(self) -> int:
        return self._file.fileno()

    def _refuse(self, verb: str) -> None:
        if verb == self._verb:
            raise OSError(self._code, os.strerror(self._code))


def refuse_file(verb: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def refusing(path: Path, mode: str = "r", **kwargs: Any) -> Any:
        file = original(path, mode, **kwargs)
        return _RefusingFile(file, verb, code) if "w" in mode else file

    monkeypatch.setattr(Path, "open", refusing)


def refuse_call(name: str, nth: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `nth` call of `os.name` fails."""
    original: Callable[..., Any] = getattr(os, name)
    calls: list[int] = []

    def refusing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == nth:
            raise OSError(code, os.strerror(code))
        return original(*args, **kwargs)

    monkeypatch.setattr(os, name, refusing)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("step", ["write", "flush", "close", "fsync of the file", "replace", "fsync of the folder"])
def test_refusals(blobs: Blobs, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    other = blobs.put(b"from the round before")
    with monkeypatch.context() as patch:
        match step:
            case "fsync of the file":
                refuse_call("fsync", 1, code, patch)
            case "fsync of the folder":
                refuse_call("fsync", 2, code, patch)
            case "replace":
                refuse_call("replace", 1, code, patch)
            case _:
                refuse_file(step, code, patch)
        with pytest.raises(StorageError) as error:
            blobs.put(CONTENT)
    assert str(blobs.folder) in str(error.value) and os.strerror(code) in str(error.value)
    assert files(blobs) - {DIGEST} == {other}, "a half-written file was left"
    assert blobs.get(other) == b"from the round before"
    assert blobs.put(CONTENT) == DIGEST  # when there is space again
    assert blobs.get(DIGEST) == CONTENT


def test_a_refused_sync_of_the_folder_is_made_up_for(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there, but its name may not outlive a power cut: the next put must sync the folder again."""
    with monkeypatch.context() as patch:
        refuse_call("fsync", 2, errno.EIO, patch)
        with pytest.raises(StorageError):
            blobs.put(CONTENT)
    synced: list[Path] = []
    monkeypatch.setattr(checkpoint, "sync_folder", synced.append)
    blobs.put(CONTENT)
    assert synced == [blobs.folder]


def test_keep_that_cannot_delete(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs.put(CONTENT)
    refuse_call("unlink", 1, errno.EROFS, monkeypatch)
    with pytest.raises(StorageError, match="old checkpoints cannot be deleted .Read-only file system"):
        blobs.keep(())


def test_order_of_a_write(blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content is synced before it gets its name, the name before anybody hears of it."""
    blobs.folder.mkdir(parents=True)
    steps: list[str] = []
    for name in ("fsync", "replace"):
        original: Callable[..., Any] = getattr(os, name)

        def traced(*args: Any, name: str = name, original: Callable[..., Any] = original) -> Any:
            steps.append(name)
            return original(*args)

        monkeypatch.setattr(os, name, traced)
    blobs.put(CONTENT)
    assert steps == ["fsync", "replace", "fsync"]
