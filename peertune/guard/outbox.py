"""The outbox: everything that left a party, as it was before it was sealed. It stays with the party, mode 0600.

`outbox.sqlite` has a row for each departure, and the receipts; `contents/` has each content once, in a file named by
its SHA-256. A departure is written before it leaves, and kept until its owner prunes it.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from peertune.errors import ConfigError, DamagedError, PayloadError, SealError
from peertune.guard.header import Header
from peertune.guard.receipts import Receipt, digest_of
from peertune.guard.store import Store, private_folder, translated, write_private
from peertune.payloads import decode, kind_of
from peertune.payloads.arrays import Arrays

OUTBOX = "outbox.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS receipts (id INTEGER PRIMARY KEY, raw BLOB NOT NULL UNIQUE) STRICT;
CREATE TABLE IF NOT EXISTS departures (
  number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
  source TEXT NOT NULL, destination TEXT NOT NULL, sequence INTEGER NOT NULL, call INTEGER NOT NULL, kind TEXT NOT NULL,
  size INTEGER NOT NULL, verdict TEXT NOT NULL, content TEXT NOT NULL, salt BLOB NOT NULL, digest BLOB NOT NULL,
  receipt INTEGER REFERENCES receipts (id), UNIQUE (run, destination, sequence)
) STRICT;
"""


class Departure(msgspec.Struct, frozen=True):
    """One thing that left. `time` in seconds since the epoch, `size` in bytes; `content` is the SHA-256 of what left,
    `digest` what the receiver's receipt says of it; `receipt` is that receipt's number, None until there is one.
    """

    number: int
    time: float
    run: str
    round: int
    source: str
    destination: str
    sequence: int
    call: int
    kind: str
    size: int
    verdict: str
    content: str
    salt: bytes
    digest: bytes
    receipt: int | None


class Outbox:
    """The outbox in `folder`, made if it is not there. Threads and processes may share it."""

    def __init__(self, folder: Path) -> None:
        """Raises `StorageError` if the folder cannot be used."""
        self.folder = folder
        self._contents = folder / "contents"
        private_folder(folder)
        private_folder(self._contents)
        self._store = Store(folder / OUTBOX, _SCHEMA)

    def record(self, header: Header, salt: bytes, raw: bytes, verdict: str) -> None:
        """Write down that `raw` leaves as `header` says, with the guard's verdict. Raises `StorageError`."""
        content = hashlib.sha256(raw)
        path = self._contents / content.hexdigest()
        row = (
            *(time.time(), header.run, header.round, header.source, header.destination, header.sequence, header.call),
            *(_kind(raw), len(raw), verdict, content.hexdigest(), salt, digest_of(salt, content.digest())),
        )
        with self._store.transaction() as db:  # contents are written and pruned under its lock
            if not (path.is_file() and path.stat().st_size == len(raw)):  # a power cut can leave an empty file
                write_private(path, raw, sync=False)
            db.execute(f"INSERT INTO departures VALUES (NULL, {'?, ' * len(row)} NULL)", row)

    def confirm(self, receipt: Receipt, raw: bytes) -> None:
        """Put a receipt whose signature was checked, `raw` on the wire, to the departures that it names.

        Raises `SealError`, and keeps nothing of it, if it names one that is not here or of other content.
        """
        with self._store.transaction() as db:
            db.execute("INSERT INTO receipts VALUES (NULL, ?) ON CONFLICT DO NOTHING", (raw,))
            (number,) = db.execute("SELECT id FROM receipts WHERE raw = ?", (raw,)).fetchone()
            where = "run = ? AND round = ? AND destination = ? AND sequence = ? AND digest = ?"
            for sequence, digest in receipt.contents.items():
                named = (number, receipt.run, receipt.round, receipt.destination, sequence, digest)
                if not db.execute(f"UPDATE departures SET receipt = ? WHERE {where}", named).rowcount:
                    raise SealError(
                        f"a receipt of {receipt.destination} names message {sequence}, which did not leave with that "
                        f"content in round {receipt.round} of {receipt.run!r}, as the outbox {self.folder} has it"
                    )

    def departures(self, to: str | None = None, kind: str | None = None, find: str | None = None) -> list[Departure]:
        """What left, in order: to one party, of one kind, with `find` in its content; ASCII letters of any case.

        Raises `DamagedError` if a content that is to be searched is not what was written.
        """
        columns = ", ".join(Departure.__struct_fields__)
        where = "(?1 IS NULL OR destination = ?1) AND (?2 IS NULL OR kind = ?2)"
        with self._store.transaction() as db:
            rows = db.execute(f"SELECT {columns} FROM departures WHERE {where} ORDER BY number", (to, kind)).fetchall()
        found = [Departure(*row) for row in rows]
        if find is None:
            return found
        pattern = re.compile(re.escape(find.encode()), re.IGNORECASE)
        return [departure for departure in found if pattern.search(self.content(departure))]

    def content(self, departure: Departure) -> bytes:
        """What left. Raises `DamagedError` if it is gone or was changed since."""
        path = self._contents / departure.content
        if not path.is_file():
            raise DamagedError(f"{path}: the content of departure {departure.number} is missing")
        with translated(path):
            raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != departure.content:
            raise DamagedError(f"{path} was changed since it left as departure {departure.number}")
        return raw

    def receipt(self, departure: Departure) -> bytes | None:
        """The receiver's receipt on the wire, for `read_receipt`; None if there is none."""
        with self._store.transaction() as db:
            row = db.execute("SELECT raw FROM receipts WHERE id = ?", (departure.receipt,)).fetchone()
        return row[0] if row else None

    def prune(self, before: float) -> tuple[int, int]:
        """Delete what left before that time, in seconds since the epoch, confirmed or not, and contents and receipts
        that nothing names any more: how many departures, and how many bytes of contents. Raises `StorageError`.
        """
        with self._store.transaction() as db:
            count = db.execute("DELETE FROM departures WHERE time < ?", (before,)).rowcount
            db.execute("DELETE FROM receipts WHERE id NOT IN (SELECT receipt FROM departures WHERE receipt NOT NULL)")
        with self._store.transaction() as db:  # another one: a row without a content would be damage, this is not
            named = {content for (content,) in db.execute("SELECT DISTINCT content FROM departures")}
            stale = [path for path in self._contents.iterdir() if path.name not in named]
            size = sum(path.stat().st_size for path in stale)
            for path in stale:
                path.unlink()
        return count, size

    def export(self, folder: Path, departures: Iterable[Departure]) -> None:
        """Write departures into a new folder: `outbox.jsonl`, texts and numbers in readable form; `contents/`, the
        exact bytes; `receipts/`. Raises `ConfigError` if the folder is there.
        """
        if folder.exists():
            raise ConfigError(f"{folder} exists and is not overwritten; name another folder")
        for place in (folder, folder / "contents", folder / "receipts"):
            private_folder(place)
        lines = []
        for departure in departures:
            raw, receipt = self.content(departure), self.receipt(departure)
            write_private(folder / "contents" / departure.content, raw)
            if receipt:
                write_private(folder / "receipts" / str(departure.receipt), receipt)
            lines.append(json.dumps(_line(departure, raw), ensure_ascii=False) + "\n")
        write_private(folder / "outbox.jsonl", "".join(lines).encode())

    def close(self) -> None:
        self._store.close()


def _kind(raw: bytes) -> str:
    """The payload kind; what is no payload has none."""
    try:
        return kind_of(raw)
    except PayloadError:
        return "other"


def _line(departure: Departure, raw: bytes) -> dict[str, Any]:
    fields = {name: getattr(departure, name) for name in Departure.__struct_fields__}
    return fields | {"salt": departure.salt.hex(), "digest": departure.digest.hex(), "payload": _readable(raw)}


def _readable(raw: bytes) -> Any:
    """Texts and numbers as they are, of arrays dtypes and shapes, of what is no payload nothing."""
    try:
        payload = decode(raw)
    except PayloadError:
        return None
    if isinstance(payload, Arrays):
        return {name: [str(tensor.dtype), *tensor.shape] for name, tensor in payload.tensors.items()}
    return msgspec.to_builtins(payload)
