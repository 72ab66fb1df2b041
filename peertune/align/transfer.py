"""What is known in one vocabulary, said in another: ids are mapped, what has no counterpart joins the tail.

Only what is listed is worked on, k numbers a row whatever the size of the vocabularies. An entry is packed in one
integer, id above depth: a sort of these takes a fraction of a stable argsort and needs no second look-up.
"""

from typing import Literal

import numpy as np

from peertune.align.vocabulary import NONE
from peertune.errors import PayloadError
from peertune.knowledge import Knowledge

Merge = Literal["sum", "first"]
_HALF = 32  # bits
_LOW = (1 << _HALF) - 1
_PADDING = int(np.float32(np.inf).view(np.int32)) << _HALF  # an entry of log p -inf and id 0
_LEAST = 1e-300  # probability: stands for what exp cannot hold
_BLOCK = 1 << 20  # entries that are worked on at a time


def transfer(
    known: Knowledge, rows: np.ndarray, vocabulary_map: np.ndarray, width: int, merge: Merge = "sum"
) -> Knowledge:
    """Rows of `known` in terms of a vocabulary of `width` tokens; `lengths` then count those of each problem in `rows`.

    `rows` int [M], problem after problem. `vocabulary_map` int32: the counterpart of each token of the source, or
    `NONE`. Ids beyond it but below `known.width` belong to no token (a head may have more rows than its tokenizer
    has tokens): nowhere, too. Where several tokens have one counterpart it gets their probability (`sum`), or that of
    the most probable, and the others join the tail (`first`; FedMKT, arXiv:2406.02224). Each row keeps its sum and
    comes by falling log p; one whose tokens have no counterpart at all has no entries, so says nothing.

    The tail stays the probability of all tokens that are not listed: which of the target's they are is not known.
    Raises `PayloadError` if `known` is dense, or an id out of range.
    """
    if known.ids is None or known.tail is None:
        raise PayloadError("transfer: expected the most probable tokens of each position, found all; send the top k")
    size = max(1, _BLOCK // known.logp.shape[1])
    blocks = [rows[start : start + size] for start in range(0, max(1, len(rows)), size)]
    parts = zip(*(_said(known, block, vocabulary_map, width, merge) for block in blocks), strict=True)
    lengths = np.bincount(known.problems[rows], minlength=len(known.lengths)).astype(np.int32)
    return Knowledge.ragged(lengths, width, *(np.concatenate(part) for part in parts))


def _said(
    known: Knowledge, rows: np.ndarray, vocabulary_map: np.ndarray, width: int, merge: Merge
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of n rows: counts [n], ids and log p [sum of counts], tails [n]."""
    assert known.ids is not None and known.tail is not None
    ids, logp, tail = (np.take(table, rows, axis=0) for table in (known.ids, known.logp, known.tail))
    found = _mapped(ids, vocabulary_map, known.width)
    found[np.isneginf(logp)] = NONE
    counts, ids, logp, dropped = _merged(found, logp, merge)
    ids, logp = _falling(counts, ids, logp)
    tail = _added(tail, dropped)
    full = (counts == width) & (tail > -np.inf)  # a tail stands for at least one token: the least probable
    tail[full] = _added(tail[full], np.exp(logp[full, width - 1 : width], dtype=np.float64).sum(axis=1))
    counts -= full
    listed = np.arange(logp.shape[1]) < counts[:, None]
    return counts, ids[listed], logp[listed], tail


def _mapped(ids: np.ndarray, vocabulary_map: np.ndarray, width: int) -> np.ndarray:
    """The counterparts of `ids`, int64. Raises `PayloadError` unless they are from 0 to `width` - 1."""
    if ids.size and (ids.min() < 0 or ids.max() >= width):
        raise PayloadError(f"transfer: expected ids of 0 to {width - 1}, found {ids.min()} to {ids.max()}")
    found = np.take(vocabulary_map, ids, mode="clip").astype(np.int64)
    found[ids >= len(vocabulary_map)] = NONE
    return found


def _merged(found: np.ndarray, logp: np.ndarray, merge: Merge) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Each counterpart once: counts [n], ids and log p [sum of counts], row after row; what joins the tail [n]."""
    n, k = found.shape
    entries = np.sort(found << _HALF | _depth(logp), axis=1)
    first = np.ones(entries.shape, dtype=bool)
    first[:, 1:] = entries[:, 1:] >> _HALF != entries[:, :-1] >> _HALF
    begins = np.flatnonzero(first)
    mass = np.add.reduceat(np.exp(_logp(entries), dtype=np.float64).ravel(), begins) if n else np.zeros(0)
    row, ids, best = begins // k, entries.ravel()[begins] >> _HALF, _logp(entries.ravel()[begins])
    several = np.diff(begins, append=n * k) > 1
    kept = ids != NONE
    lost = np.where(kept, 0.0, mass)
    if merge == "first":
        lost[several & kept] = (mass - np.exp(best, dtype=np.float64))[several & kept]
    else:
        best[several] = np.minimum(np.log(np.maximum(mass[several], _LEAST)), 0)
    return np.bincount(row[kept], minlength=n), ids[kept], best[kept], np.bincount(row, weights=lost, minlength=n)


def _falling(counts: np.ndarray, ids: np.ndarray, logp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As tables [n, the most of a row] by falling log p, of equals the lower id first; then log p -inf."""
    listed = np.arange(counts.max(initial=1)) < counts[:, None]
    entries = np.full(listed.shape, _PADDING)
    entries[listed] = _depth(logp) << _HALF | ids
    entries.sort(axis=1)
    return (entries & _LOW).astype(np.int32), _logp(entries >> _HALF)


def _depth(logp: np.ndarray) -> np.ndarray:
    """Whole numbers, int64 below 2^31, that rise as log p falls: the bits of its magnitude."""
    return np.abs(logp).view(np.int32).astype(np.int64)


def _logp(entries: np.ndarray) -> np.ndarray:
    """The log p, float32, whose depth the lower half of each entry is."""
    return -(entries & _LOW).astype(np.int32).view(np.float32)


def _added(tail: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Tails [n] float32 with the probabilities `dropped` [n]; exactly as they were where nothing is."""
    mass = np.maximum(np.exp(tail, dtype=np.float64) + dropped, _LEAST)
    return np.where(dropped > 0, np.minimum(np.log(mass), 0), tail).astype(np.float32)
