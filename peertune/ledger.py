"""The ledger: everything that happened in a run, append-only and hash-chained, in one SQLite file.

Two kinds of rows. `events` are what the run *is*: transfers, metrics, pairings, failures, checkpoints. They are
hashed in a chain, and the same seed gives the same head whatever the number of workers and however often the run was
interrupted. `facts` are about the machine and the clock: durations, interruptions. They stand beside it, unhashed.

All events of a round and its checkpoint are committed in one transaction at the round's barrier. One connection writes.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from peertune.errors import ConfigError, StorageError

COORDINATOR = "coordinator"
SCHEMA_VERSION = 1
EventKind = Literal["run", "transfer", "metric", "scores", "profile", "pair", "failure", "checkpoint", "done"]

_SCHEMA = """
CREATE TABLE events (
  seq INTEGER PRIMARY KEY, arm TEXT NOT NULL, round INTEGER NOT NULL, phase TEXT NOT NULL,
  kind TEXT NOT NULL, body TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_kind ON events (kind, arm, round);
CREATE TABLE facts (
  id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, time REAL NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL
) STRICT;
"""


class Event(msgspec.Struct, frozen=True):
    """One row of the chain. `phase` is init, round, evaluate or checkpoint; `arm` names the method that ran."""

    seq: int
    arm: str
    round: int
    phase: str
    kind: str
    body: dict[str, Any]


class Fact(msgspec.Struct, frozen=True):
    """Something about machine or clock: `time` in seconds since the epoch, `seq` the last event before it."""

    seq: int
    time: float
    kind: str
    body: dict[str, Any]


class Ledger:
    """One run's event log. Use `Ledger.create`, `Ledger.open` or `Ledger.read`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection
        self._pending: list[tuple[str, int, str, str, str]] = []
        self._pending_facts: list[tuple[float, str, str]] = []
        with self._storage():
            row = self._db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        self.seq, self.head = row if row else (0, "0" * 64)

    @classmethod
    def create(cls, path: Path) -> "Ledger":
        """A new, empty ledger at `path`. Raises `StorageError` if the disk refuses."""
        with _translate(path):
            connection = _connect(path)
            connection.executescript(f"{_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};")
        return cls(path, connection)

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        """The ledger at `path`, to be continued. Raises `ConfigError` if it is missing, damaged or of another
        version.
        """
        return cls(path, _open(path, "rw"))

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """The ledger at `path`, for reading only; another process may be writing it."""
        return cls(path, _open(path, "ro"))

    def append(self, arm: str, round: int, phase: str, kind: EventKind, body: dict[str, Any]) -> None:
        """Add an event to the transaction that the next `commit` writes. NaN and infinity are refused."""
        self._pending.append((arm, round, phase, kind, _canonical(body)))

    def fact(self, kind: str, body: dict[str, Any]) -> None:
        """Add an unhashed fact; it is written with the next `commit`."""
        self._pending_facts.append((time.time(), kind, _canonical(body)))

    def commit(self) -> None:
        """Write everything appended since the last commit: all of it or, if the disk refuses, nothing."""
        seq, head, rows = self.seq, self.head, []
        for arm, round_, phase, kind, body in self._pending:
            seq, head = seq + 1, _link(head, arm, round_, phase, kind, body)
            rows.append((seq, arm, round_, phase, kind, body, head))
        with self._storage(), self._db:
            self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            facts = [(seq, *fact) for fact in self._pending_facts]
            self._db.executemany("INSERT INTO facts (seq, time, kind, body) VALUES (?, ?, ?, ?)", facts)
        self.seq, self.head = seq, head
        self.discard()

    def discard(self) -> None:
        """Forget what was appended since the last commit."""
        self._pending, self._pending_facts = [], []

    def rewind(self, seq: int) -> None:
        """Drop the events after `seq`, because the checkpoint that they end in cannot be read; they will be made
        again.
        """
        with self._storage(), self._db:
            self._db.execute("DELETE FROM events WHERE seq > ?", (seq,))
        row = self._db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        self.seq, self.head = row if row else (0, "0" * 64)

    def events(self, kind: EventKind | None = None, arm: str | None = None) -> Iterator[Event]:
        """Committed events in order, optionally of one kind or arm."""
        query = (
            "SELECT seq, arm, round, phase, kind, body FROM events WHERE (?1 IS NULL OR kind = ?1) "
            "AND (?2 IS NULL OR arm = ?2)"
        )
        with self._storage():
            for seq, arm_, round_, phase, kind_, body in self._db.execute(f"{query} ORDER BY seq", (kind, arm)):
                yield Event(seq, arm_, round_, phase, kind_, json.loads(body))

    def facts(self, kind: str | None = None) -> Iterator[Fact]:
        """Committed facts in order, optionally of one kind."""
        query = "SELECT seq, time, kind, body FROM facts WHERE ?1 IS NULL OR kind = ?1 ORDER BY id"
        with self._storage():
            for seq, time_, kind_, body in self._db.execute(query, (kind,)):
                yield Fact(seq, time_, kind_, json.loads(body))

    def verify(self) -> None:
        """Check the hash chain from the first event to the head. Raises `ConfigError` naming the first broken event."""
        head = "0" * 64
        query = "SELECT seq, arm, round, phase, kind, body, hash FROM events ORDER BY seq"
        with self._storage():
            for seq, arm, round_, phase, kind, body, stored in self._db.execute(query):
                head = _link(head, arm, round_, phase, kind, body)
                if head != stored:
                    raise ConfigError(
                        f"{self.path}: event {seq} was changed after it was written; its hash does not fit"
                    )

    def export(self, path: Path) -> None:
        """Write all events and facts as JSON lines (`ledger.jsonl`)."""
        with _translate(path), path.open("w", encoding="utf-8") as file:
            for row in (*self.events(), *self.facts()):
                file.write(json.dumps(msgspec.to_builtins(row), ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._db.close()

    def _storage(self) -> AbstractContextManager[None]:
        return _translate(self.path)


def total_bytes(events: Iterable[Event]) -> int:
    """Bytes of all transfers among `events`."""
    return sum(event.body["bytes"] for event in events if event.kind == "transfer")


def _canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _link(head: str, *fields: str | int) -> str:
    return hashlib.sha256(json.dumps([head, *fields], ensure_ascii=False).encode()).hexdigest()


def _connect(path: Path, mode: str = "rwc") -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode={mode}", uri=True)
    if mode != "ro":  # a rollback journal: WAL has a corruption bug in the SQLite of today's distributions
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = EXTRA")
    return connection


def _open(path: Path, mode: str) -> sqlite3.Connection:
    if not path.is_file():
        raise ConfigError(f"no ledger at {path}; `peertune ls` shows the runs there are")
    with _translate(path):
        connection = _connect(path, mode)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (verdict,) = connection.execute("PRAGMA quick_check").fetchone()
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has ledger version {version}, this peertune reads {SCHEMA_VERSION}; use the version that wrote it"
        )
    if verdict != "ok":
        raise ConfigError(f"{path} is damaged ({verdict}); restore it from a backup or start a new run")
    return connection


@contextmanager
def _translate(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into one clear line."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise StorageError(
            f"{path}: the ledger cannot be read or written ({error}); free space or check the rights"
        ) from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; free space or check the rights") from error
