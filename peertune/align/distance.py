"""The nearest word by Levenshtein distance, exactly, without comparing every pair.

Two bounds from below leave few pairs to compare. Both count symbols: an edit (insert, delete or substitute one byte)
removes at most one symbol from a word and adds at most one, so the distance of two words is at least the number of
symbols that either has and the other lacks.

* Words are put into boxes by how many ASCII bytes and how many other bytes they have: two kinds of symbols. One
  comparison of two boxes bounds all pairs of words in them.
* Each word has a mark of 64 bits. Its symbols are its bytes, the first, second, third `e` of a word each its own, and
  each symbol has a bit, which others may share. Marks are compared pair by pair, some 1.5 ns each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

_REPEATS = 4  # of one byte in a word that are symbols of their own
_BITS = 64
_MARKED = 2  # the greatest distance at which marks still exclude nearly all pairs
_PAIRS = 1 << 16  # of marks compared at a time: they stay in the processor's cache
_CELLS = 1 << 24  # of a table of distances
_FAR = (1 << 31) - 1  # more than any distance
_SHIFT = 32


@dataclass(frozen=True)
class _Words:
    """`words` object [n], `marks` uint64 [n] of each; box b holds the words `boxes[b]`, all with `counts` [b, 2]."""

    words: np.ndarray
    marks: np.ndarray
    counts: np.ndarray
    boxes: list[np.ndarray]

    def inside(self, chosen: np.ndarray) -> np.ndarray:
        """The words of the boxes where `chosen`, bool, is true; ascending."""
        return np.sort(np.concatenate([np.zeros(0, np.int64), *(self.boxes[b] for b in np.flatnonzero(chosen))]))


def nearest(queries: Sequence[bytes], candidates: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Of each query the index of its nearest candidate, of several the first, and its distance in bytes; int64 [n].

    Without candidates the index is -1. The result is that of comparing all pairs; what it costs depends on how near the
    nearest are: some 50 microseconds a query among 30 000 candidates.
    """
    if not (queries and candidates):
        return np.full(len(queries), -1), np.full(len(queries), _FAR)
    ours, theirs = _prepared(queries, candidates)
    best = np.full(len(queries), _FAR << _SHIFT)  # distance, then index: the least is the first of the nearest
    for count, box in zip(ours.counts, ours.boxes, strict=True):
        bounds = _bound(theirs.counts - count)
        for least in (*range(1, _MARKED + 1), *np.unique(np.maximum(bounds, _MARKED + 1))):
            # a tie at `least` may still have a lower index
            box = box[best[box] >> _SHIFT >= least]
            if not len(box):
                break
            if least <= _MARKED:
                _compare_marked(best, ours, theirs, box, theirs.inside(bounds <= least), least)
            else:
                _compare_all(best, ours, theirs, box, theirs.inside(np.maximum(bounds, _MARKED + 1) == least))
    return best & (1 << _SHIFT) - 1, best >> _SHIFT


def _bound(difference: np.ndarray) -> np.ndarray:
    """The least distance of words whose counts of symbols differ by `difference`, int [..., kinds]."""
    return np.maximum(np.maximum(difference, 0).sum(-1), np.maximum(-difference, 0).sum(-1))


def _compare_marked(
    best: np.ndarray, ours: _Words, theirs: _Words, box: np.ndarray, others: np.ndarray, least: int
) -> None:
    """Put into `best` the distances of those pairs of `box` and `others` whose marks allow a distance of `least`."""
    marks = theirs.marks[others]
    weights = np.bitwise_count(marks)
    for rows in _parts(box, max(1, _PAIRS // max(1, len(others)))):
        own = ours.marks[rows, None]
        bounds = np.maximum(np.bitwise_count(own), weights) - np.bitwise_count(own & marks)
        i, j = np.divmod(np.flatnonzero(bounds <= least), max(1, len(others)))
        left, right = rows[i], others[j]
        distances = process.cpdist(
            ours.words[left].tolist(),
            theirs.words[right].tolist(),
            scorer=Levenshtein.distance,
            dtype=np.int32,
        )
        np.minimum.at(best, left, distances.astype(np.int64) << _SHIFT | right)


def _compare_all(best: np.ndarray, ours: _Words, theirs: _Words, box: np.ndarray, others: np.ndarray) -> None:
    """Put into `best` the least distances of the words in `box` among `others`."""
    words = theirs.words[others].tolist()
    longest = max(len(ours.words[box[0]]), *map(len, words))  # the words of a box are of one length
    kind = np.uint8 if longest < 256 else np.int32
    for rows in _parts(box, max(1, _CELLS // len(others))):
        table = process.cdist(ours.words[rows].tolist(), words, scorer=Levenshtein.distance, dtype=kind)
        first = table.argmin(axis=1)
        distances = table[np.arange(len(rows)), first].astype(np.int64)
        best[rows] = np.minimum(best[rows], distances << _SHIFT | others[first])


def _parts(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _prepared(queries: Sequence[bytes], candidates: Sequence[bytes]) -> tuple[_Words, _Words]:
    sides = [(words, *_symbols(words)) for words in (queries, candidates)]
    bits = _bits(np.concatenate([symbols for _, _, symbols in sides]))
    ours, theirs = (_side(words, rows, symbols, bits) for words, rows, symbols in sides)
    return ours, theirs


def _symbols(words: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The word and the symbol, 0 to 256 * _REPEATS - 1, of each byte of all words; by rising word."""
    rows = np.repeat(np.arange(len(words)), [len(word) for word in words])
    keys = np.sort(rows << 8 | np.frombuffer(b"".join(words), dtype=np.uint8))
    repeats = np.arange(len(keys)) - np.searchsorted(keys, keys)
    return keys >> 8, (keys & 255) * _REPEATS + np.minimum(repeats, _REPEATS - 1)


def _bits(symbols: np.ndarray) -> np.ndarray:
    """The bit of each symbol, uint64 [256 * _REPEATS]: the most frequent are dealt out first, there and back again."""
    order = np.argsort(-np.bincount(symbols, minlength=256 * _REPEATS), kind="stable")
    there = np.arange(_BITS)
    bits = np.empty(len(order), dtype=np.uint64)
    bits[order] = np.resize(np.concatenate([there, there[::-1]]), len(order))
    return np.uint64(1) << bits


def _side(words: Sequence[bytes], rows: np.ndarray, symbols: np.ndarray, bits: np.ndarray) -> _Words:
    marks = np.zeros(len(words), dtype=np.uint64)
    np.bitwise_or.at(marks, rows, bits[symbols])
    plain = symbols < 128 * _REPEATS
    plain, others = (np.bincount(rows[kind], minlength=len(words)) for kind in (plain, ~plain))
    keys, box, sizes = np.unique(plain << _SHIFT | others, return_inverse=True, return_counts=True)
    boxes = np.split(np.argsort(box, kind="stable"), np.cumsum(sizes)[:-1])
    counts = np.stack([keys >> _SHIFT, keys & (1 << _SHIFT) - 1], axis=1)
    return _Words(np.array(words, dtype=object), marks, counts, boxes)
