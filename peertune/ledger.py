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
SERVER = "server"  # the party with a model and no data
SCHEMA_VERSION = 1
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
PATIENCE = 60.0  # seconds to wait for whoever else reads or writes the file
EventKind = Literal[
    "run",
    "transfer",
    "metric",
    "scores",
    "samples",
    "server_scores",
    "pair",
    "knowledge",  # what clients knew of public problems, together
    "teachers",  # how many public problems each source taught a learner
    "late",  # the report of an exchange of an earlier round has come
    "refused",  # a report that fits no exchange
    "aggregation",  # of adapters, and its error
    "failure",
    "clock",  # a round in virtual time
    "checkpoint",
    "done",
]

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
    """One row of the chain. `phase` is init, round, deploy, evaluate or checkpoint; `arm` names the method that ran."""

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
        self.seq, self.head = self._last()

    @classmethod
    def create(cls, path: Path) -> "Ledger":
        """A new, empty ledger at `path`. Raises `StorageError` if the disk refuses."""
        with _connected(path, "rwc") as connection:
            connection.executescript(f"{_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};")
            return cls(path, connection)

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        """The ledger at `path`, to be continued. Raises `ConfigError` if it is missing, damaged or of another
        version.
        """
        with _checked(path, "rw") as connection:
            return cls(path, connection)

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        """The ledger at `path`, for reading only; another process may be writing it. Raises as `open` does."""
        try:
            with _checked(path, "ro") as connection:
                return cls(path, connection)
        except StorageError as error:
            if getattr(error.__cause__, "sqlite_errorcode", 0) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
        cls.open(path).close()  # the run was killed while it committed: roll that back, as its resumption would
        return cls.read(path)

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
        self.seq, self.head = self._last()

    def events(self, kind: EventKind | None = None, arm: str | None = None) -> Iterator[Event]:
        """Committed events in order, optionally of one kind or arm."""
        where = "(?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR arm = ?2)"
        query = f"SELECT seq, arm, round, phase, kind, body FROM events WHERE {where} ORDER BY seq"
        for seq, arm_, round_, phase, kind_, body in self._rows(query, kind, arm):
            yield Event(seq, arm_, round_, phase, kind_, self._parsed(f"event {seq}", body))

    def facts(self, kind: str | None = None) -> Iterator[Fact]:
        """Committed facts in order, optionally of one kind."""
        query = "SELECT seq, time, kind, body FROM facts WHERE ?1 IS NULL OR kind = ?1 ORDER BY id"
        for seq, time_, kind_, body in self._rows(query, kind):
            yield Fact(seq, time_, kind_, self._parsed(f"a fact after event {seq}", body))

    def verify(self) -> None:
        """Check the hash chain from the first event to the head. Raises `ConfigError` naming the first broken event.

        Events cut off at the end leave a whole chain: only a head noted elsewhere can tell.
        """
        head = "0" * 64
        rows = self._rows("SELECT seq, arm, round, phase, kind, body, hash FROM events ORDER BY seq")
        for place, (seq, *fields, stored) in enumerate(rows, start=1):
            head = _link(head, *fields)
            if (seq, stored) != (place, head):
                raise ConfigError(f"{self.path}: event {place} was changed after it was written; its hash does not fit")

    def export(self, path: Path) -> None:
        """Write all events and facts as JSON lines (`ledger.jsonl`)."""
        with _translate(path), path.open("w", encoding="utf-8") as file:
            for row in (*self.events(), *self.facts()):
                file.write(json.dumps(msgspec.to_builtins(row)) + "\n")

    def close(self) -> None:
        self._db.close()

    def _storage(self) -> AbstractContextManager[None]:
        return _translate(self.path)

    def _last(self) -> tuple[int, str]:
        rows = self._rows("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1")
        return rows[0] if rows else (0, "0" * 64)

    def _rows(self, query: str, *parameters: str | None) -> list[tuple[Any, ...]]:
        """All rows at once: a reader that kept the file while its caller works would keep the run from writing."""
        with self._storage():
            return self._db.execute(query, parameters).fetchall()

    def _parsed(self, what: str, body: str) -> dict[str, Any]:
        try:
            return json.loads(body)
        except ValueError:
            raise ConfigError(f"{self.path}: {what} is damaged; restore the ledger from a backup") from None


def total_bytes(events: Iterable[Event]) -> int:
    """Bytes of all transfers among `events`."""
    return sum(event.body["bytes"] for event in events if event.kind == "transfer")


def _canonical(body: dict[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _link(head: str, *fields: str | int) -> str:
    return hashlib.sha256(json.dumps([head, *fields]).encode()).hexdigest()


@contextmanager
def _connected(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection, closed again if what follows fails."""
    with _translate(path):
        connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode={mode}", timeout=PATIENCE, uri=True)
        try:
            if mode != "ro":  # a rollback journal: WAL has a corruption bug in the SQLite of today's distributions
                connection.execute("PRAGMA journal_mode = TRUNCATE")
                connection.execute("PRAGMA synchronous = EXTRA")
            yield connection
        except BaseException:
            connection.close()
            raise


@contextmanager
def _checked(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    """A connection to a ledger that is there, whole and of this version."""
    if not path.is_file():
        raise ConfigError(f"no ledger at {path}; `peertune ls` shows the runs there are")
    with _connected(path, mode) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:  # SQLite's own default
            raise ConfigError(f"{path} holds no ledger; restore it from a backup or start a new run")
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"{path} has ledger version {version}, this peertune reads {SCHEMA_VERSION}; "
                f"use the version that wrote it"
            )
        query = "SELECT integrity_check = 'ok' FROM pragma_integrity_check(1)"
        (whole,) = connection.execute(query).fetchone()
        if not whole:
            raise ConfigError(f"{path} is damaged; restore it from a backup or start a new run")
        yield connection


@contextmanager
def _translate(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into one clear line."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as error:  # SQLite quotes what a damaged file says
        damaged = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in DAMAGED
        cure = "restore it from a backup or start a new run" if damaged else "free space or check the rights"
        raise StorageError(f"{path}: the ledger cannot be read or written ({error}); {cure}") from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; free space or check the rights") from error
