"""Content-addressed files: what an agent or the coordinator must find again after a crash.

A blob is written to a temporary file, synced, renamed to its SHA-256 and its folder synced, *before* the ledger
row that names it is committed. So whatever moment a machine stops at, the last committed row names complete files.
"""

import errno
import hashlib
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from peertune.errors import DamagedError, StorageError


class Blobs:
    """Files named by the SHA-256 of their content, in one folder of one owner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, raw: bytes) -> str:
        """Store `raw` and return its digest. If the disk refuses: `StorageError`, and no half-written file is left."""
        digest = hashlib.sha256(raw).hexdigest()
        target, temporary = self.folder / digest, self.folder / f"{digest}.{os.getpid()}.tmp"
        try:
            make_folder(self.folder)
            if not (target.exists() and target.read_bytes() == raw):  # what was damaged on disk is written again
                write_synced(temporary, raw)
                os.replace(temporary, target)
            sync_folder(self.folder)  # also of a file that is there: an earlier sync may have been refused
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise StorageError(
                f"{self.folder}: a checkpoint of {len(raw):,} bytes was not written ({error.strerror}); "
                f"free space or check the rights"
            ) from error
        return digest

    def get(self, digest: str) -> bytes:
        """The content of `digest`. Raises `DamagedError` if it is missing or is not what was stored, `StorageError`
        if the disk refuses to read it.
        """
        path = self.folder / digest
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise DamagedError(f"checkpoint {path} is missing") from None
        except OSError as error:
            raise StorageError(f"checkpoint {path} cannot be read ({error.strerror})") from error
        if hashlib.sha256(raw).hexdigest() != digest:
            raise DamagedError(f"checkpoint {path} was damaged on disk: its content does not match its name")
        return raw

    def keep(self, digests: Collection[str]) -> None:
        """Delete every file of the folder that is not named in `digests`, and what interrupted writes left.

        Raises `StorageError` if the disk refuses.
        """
        try:
            for path in self.folder.glob("*"):
                if path.name not in digests:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder}: old checkpoints cannot be deleted ({error.strerror})") from error


def write_synced(path: Path, raw: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make `folder` and its parents, each on the disk when this returns."""
    if folder.is_dir():
        return
    if folder.exists():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
