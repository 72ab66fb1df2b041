"""The search for canaries finds them: in bytes, in archives, in the memory of a process."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from canaries import CANARIES, MARK, contents, disguises, hits, marks, may_look, memory

HOLDER = "import sys; kept = sys.stdin.buffer.readline()[:-1] * 3; print('here', flush=True); sys.stdin.buffer.read()"


def holding(raw: bytes) -> "subprocess.Popen[bytes]":
    """A process that has read these bytes."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdin.write(raw + b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"here\n"
    return process


def test_the_search_finds_each_disguise_in_a_process() -> None:
    """Not base64 of its end or of its beginning alone: of any place, so of whatever stands around it."""
    if reason := may_look():
        pytest.skip(reason)
    for disguise in [b"nothing", *disguises(MARK)]:
        with holding(disguise) as process:
            found = sum(map(marks, memory(process.pid)))
            process.kill()
        assert (found > 0) == (disguise != b"nothing"), disguise


def test_the_mark_is_found_wherever_a_canary_is() -> None:
    for canary in CANARIES:
        for form in disguises(f"some text {canary} more"):
            assert marks(form) >= 1
    assert marks(b"nothing of it: zq-canar y") == 0


def test_the_search_opens_archives(tmp_path: Path) -> None:
    for level in range(3):
        with zipfile.ZipFile(tmp_path / f"{level}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            if level:
                archive.write(tmp_path / f"{level - 1}.zip", f"{level - 1}.zip")
            else:
                archive.writestr("text", CANARIES[7] * 2)
    assert marks((tmp_path / "2.zip").read_bytes()) == 0
    assert [hits(raw) for _, raw in contents(tmp_path)] == [0, 1, 0, 0, 1, 0, 0, 0, 1]
