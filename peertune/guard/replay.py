"""What was opened before: a message is opened once, whatever is sent again, by whichever process asks first.

A message is kept until its round is settled: its receipt has been handed over, and nothing of that round opens any
more. What stays is one row for each start of a run. A run's starts are named `run/start`; the last one ends all others.
"""

from collections import defaultdict
from pathlib import Path

from peertune.guard.store import Store

_ENDED = (1 << 63) - 1  # a floor that no round reaches
_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
  run TEXT NOT NULL, source TEXT NOT NULL, sequence INTEGER NOT NULL, round INTEGER NOT NULL, digest BLOB NOT NULL,
  PRIMARY KEY (run, source, sequence)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS seen_by_round ON seen (run, round);
CREATE TABLE IF NOT EXISTS starts (run TEXT PRIMARY KEY, floor INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
_OTHERS = "run <> ?1 AND substr(run, 1, length(?2)) = ?2"  # starts of the same run
_OVER = f"SELECT run FROM starts WHERE floor = {_ENDED} AND {_OTHERS}"
Digests = dict[int, bytes]  # of contents, by sequence number
Place = tuple[str, int, str]  # run, round, source


class Replay:
    """The seen-set of one party, in a SQLite file that its processes share."""

    def __init__(self, path: Path) -> None:
        """Raises `StorageError` if the file cannot be used."""
        self._store = Store(path, _SCHEMA)

    def first(self, run: str, source: str, sequence: int, round: int, digest: bytes) -> bool:
        """Note a message; false if one of this run, source and sequence was noted before, or its round is settled.

        Raises `StorageError`.
        """
        with self._store.transaction() as db:
            if db.execute("SELECT 1 FROM starts WHERE run = ? AND floor > ?", (run, round)).fetchone():
                return False
            row = (run, source, sequence, round, digest)
            return db.execute("INSERT INTO seen VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount == 1

    def begin(self, run: str) -> None:
        """A start begins: nothing more of other starts of the same run is first. Raises `StorageError`."""
        with self._store.transaction() as db:
            db.execute(f"UPDATE starts SET floor = {_ENDED} WHERE {_OTHERS}", (run, _name(run)))
            db.execute("INSERT INTO starts VALUES (?, 0) ON CONFLICT DO NOTHING", (run,))

    def received(self, run: str) -> dict[Place, Digests]:
        """What was opened in this start, and in those that it ended, and is not settled."""
        columns = "run, round, source, sequence, digest"
        query = f"SELECT {columns} FROM seen WHERE run = ?1 OR run IN ({_OVER}) ORDER BY {columns}"
        found: dict[Place, Digests] = defaultdict(dict)
        with self._store.transaction() as db:
            for start, round, source, sequence, digest in db.execute(query, (run, _name(run))):
                found[start, round, source][sequence] = digest
        return dict(found)

    def settle(self, run: str, round: int) -> None:
        """Forget the rounds of this start up to this one, and the starts that it ended; none of that is first again.

        Raises `StorageError`.
        """
        with self._store.transaction() as db:
            raised = "ON CONFLICT DO UPDATE SET floor = max(floor, excluded.floor)"
            db.execute(f"INSERT INTO starts VALUES (?, ?) {raised}", (run, round + 1))
            settled = f"(run = ?1 AND round <= ?3) OR run IN ({_OVER})"
            db.execute(f"DELETE FROM seen WHERE {settled}", (run, _name(run), round))

    def close(self) -> None:
        self._store.close()


def _name(run: str) -> str:
    """What all starts of its run begin with."""
    return f"{run.rpartition('/')[0]}/"
