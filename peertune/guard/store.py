"""Files of one party, for its owner's eyes (0600), and SQLite files that its threads and processes share.

A write is in the hands of the operating system when it returns: it survives `kill -9`. It is not synced, because a sync
costs more than the message that it would record: a power cut can take the last seconds, and leaves the file whole.
"""

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peertune.errors import StorageError

_VERSION = 1


def private_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it; others may not look into it. Raises `StorageError`."""
    with translated(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_private(path: Path, raw: bytes, sync: bool = True) -> None:
    """Write a file of mode 0600, whole or not at all, and wait until it is on the disk unless `sync` is false.

    Raises `StorageError`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with translated(path):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(raw)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class Store:
    """One SQLite file. Its write-ahead log is written and folded back under a lock between processes: two at once can
    damage the file in SQLite 3.7.0 to 3.51.2.
    """

    def __init__(self, path: Path, schema: str) -> None:
        """Open `path`; what `schema` makes "IF NOT EXISTS" is there then. Raises `StorageError`."""
        private_folder(path.parent)
        self.path = path
        self._thread = threading.Lock()
        with translated(path):
            self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._db = self._opened(schema)
            except BaseException:
                os.close(self._lock)
                raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done with the connection, or nothing of it. Raises `StorageError`."""
        with translated(self.path), self._alone():
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                yield self._db

    def close(self) -> None:
        with translated(self.path):
            with self._alone():
                self._db.close()
            os.close(self._lock)

    def _opened(self, schema: str) -> sqlite3.Connection:
        with self._alone():
            with suppress(FileExistsError):  # SQLite would make it 0644; closing one that is there drops SQLite's locks
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(db, schema)
            except BaseException:
                db.close()
                raise
            return db

    def _prepare(self, db: sqlite3.Connection, schema: str) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise StorageError(
                f"{self.path} has version {version}, this peertune reads {_VERSION}; use the version that wrote it"
            )
        db.executescript(f"BEGIN; {schema} PRAGMA user_version = {_VERSION}; COMMIT;")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._thread:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into one `StorageError`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        cure = "move it away and start a run under a new name" if damaged else "free space or check the rights"
        raise StorageError(f"{path} cannot be read or written ({error}); {cure}") from None
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; free space or check the rights") from error
