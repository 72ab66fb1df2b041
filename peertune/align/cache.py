"""Vocabulary maps on disk: each is made once for two vocabularies, whoever asks again.

A file is the SHA-256 of a map and the map, int32 of little-endian order: its size is known before it is read, and one
that was damaged is noticed and made again.
"""

import hashlib
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

from peertune.align.tokens import Vocabulary
from peertune.align.vocabulary import Rule, Tie, vocabulary_map
from peertune.errors import StorageError

_VERSION = 1  # of the rules; count it up when a map changes
_DIGEST = hashlib.sha256().digest_size


def cached_map(source: Vocabulary, target: Vocabulary, rule: Rule, tie: Tie, folder: Path) -> np.ndarray:
    """`vocabulary_map` of these, from `folder`, or made and put there. Raises `StorageError` if the disk refuses."""
    key = "\n".join([str(_VERSION), source.digest, target.digest, rule, tie])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.map"
    try:
        table = _read(path, len(source.tokens))
        if table is None:
            table = vocabulary_map(source, target, rule, tie)
            _write(path, table)
    except OSError as error:
        raise StorageError(
            f"vocabulary map {path} cannot be read or written ({error.strerror}); free space or check the rights"
        ) from error
    return table


def _read(path: Path, length: int) -> np.ndarray | None:
    """The map of `length` tokens in this file; None = there is none, or not as it was written."""
    size = _DIGEST + 4 * length
    if not path.is_file() or path.stat().st_size != size:
        return None
    raw = path.read_bytes()
    table = raw[_DIGEST:]
    return np.frombuffer(table, dtype="<i4").astype(np.int32) if raw[:_DIGEST] == _sum(table) else None


def _write(path: Path, table: np.ndarray) -> None:
    """Under its name a file is complete, also when several processes make it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = table.astype("<i4").tobytes()
    with NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            file.write(_sum(raw) + raw)
            file.flush()
            os.replace(file.name, path)
        finally:
            Path(file.name).unlink(missing_ok=True)


def _sum(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()
