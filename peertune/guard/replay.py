"""What was opened before: a message is opened once, whatever is sent again, by whichever process asks first."""

from collections import defaultdict
from pathlib import Path

from peertune.guard.store import Store

_SCHEMA = """
CREATE TABLE seen (
  run TEXT NOT NULL, source TEXT NOT NULL, sequence INTEGER NOT NULL, round INTEGER NOT NULL, digest BLOB NOT NULL,
  PRIMARY KEY (run, source, sequence)
) STRICT, WITHOUT ROWID;
CREATE INDEX seen_by_round ON seen (run, round);
"""
Digests = dict[int, bytes]  # of contents, by sequence number


class Replay:
    """The seen-set of one party, in a SQLite file that its processes share."""

    def __init__(self, path: Path) -> None:
        """Raises `StorageError` if the file cannot be used."""
        self._store = Store(path, _SCHEMA)

    def first(self, run: str, source: str, sequence: int, round: int, digest: bytes) -> bool:
        """Note a message; false if one of this run, source and sequence was noted before. Raises `StorageError`."""
        with self._store.transaction() as db:
            row = (run, source, sequence, round, digest)
            return db.execute("INSERT INTO seen VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount == 1

    def received(self, run: str, round: int) -> dict[str, Digests]:
        """What was opened in a round, by source."""
        with self._store.transaction() as db:
            rows = db.execute("SELECT source, sequence, digest FROM seen WHERE run = ? AND round = ?", (run, round))
            found: dict[str, Digests] = defaultdict(dict)
            for source, sequence, digest in rows:
                found[source][sequence] = digest
            return dict(found)

    def close(self) -> None:
        self._store.close()
