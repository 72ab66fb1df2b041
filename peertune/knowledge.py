"""What a client knows of public problems: how probable it finds each token, or class, at each of their positions.

All numbers are natural logarithms of probabilities at temperature 1, whatever is done with them afterwards: they can
be compared between clients, combined, sharpened and distilled at any temperature. The k most probable are sent one by
one; the rest of the vocabulary as one number, the tail, so that nothing is missing and no zero stands in for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from peertune.errors import PayloadError

MASS_ERROR = 0.05  # by how much probabilities may miss 1: those of 8-bit codes do by 0.04
MAX_ENTRIES = 1 << 28  # of a table; what is ragged on the wire is padded in memory
FLOOR = 20.0  # nats below a row's most probable entry; 8-bit codes reach no deeper
_BLOCK = 1 << 22  # numbers that are worked on at a time


@dataclass(frozen=True, eq=False)
class Knowledge:
    """Problem after problem, position after position. N positions in all, `width` tokens or classes.

    `lengths` int32 [P]: the positions of each problem, 0 = nothing is known of it. `logp` float32 [N, k]: log p of the
    tokens `ids` int32 [N, k], each once in a row. `tail` float32 [N]: the log of the probability of all other tokens;
    -inf where there are none. `counts` int32 [N]: how many entries of a row there are; those beyond are padding, with
    log p -inf and the row's first id; None = k everywhere. A row of 0 entries says nothing, since its tail is the whole
    vocabulary: a student loses nothing there. Dense: `logp` [N, width], and `ids`, `tail`, `counts` None.
    """

    lengths: np.ndarray
    width: int
    logp: np.ndarray
    ids: np.ndarray | None = None
    tail: np.ndarray | None = None
    counts: np.ndarray | None = None

    @classmethod
    def ragged(
        cls,
        lengths: np.ndarray,
        width: int,
        counts: np.ndarray,
        ids: np.ndarray,
        logp: np.ndarray,
        tail: np.ndarray,
    ) -> "Knowledge":
        """From `ids` and `logp` [sum of counts], row after row. Raises `PayloadError` if the table would not fit."""
        k, total = int(counts.max(initial=1)), int(counts.sum(dtype=np.int64))
        if (counts < 0).any() or not total == len(ids) == len(logp) or len(counts) * k > MAX_ENTRIES:
            raise PayloadError(
                f"knowledge: expected counts that sum to {len(ids)} ids and as many log-probabilities, and a table of "
                f"at most {MAX_ENTRIES} entries; found {len(logp)}, and {len(counts)} rows of up to {k}, in all {total}"
            )
        listed = np.arange(k) < counts[:, None]
        table = np.zeros(listed.shape, dtype=np.int32), np.full(listed.shape, -np.inf, dtype=np.float32)
        table[0][listed], table[1][listed] = ids, logp
        padded = np.where(listed, table[0], table[0][:, :1])
        return cls(lengths, width, table[1], padded, tail, None if listed.all() else counts.astype(np.int32))

    @property
    def problems(self) -> np.ndarray:
        """The problem of each position, [N]."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def listed(self) -> np.ndarray:
        """Which entries are no padding, [N, k]."""
        counts = np.full(len(self.logp), self.logp.shape[1]) if self.counts is None else self.counts
        return np.arange(self.logp.shape[1]) < counts[:, None]

    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What `ragged` takes: counts [N], ids and logp [sum of counts], tail [N]; of sparse knowledge only."""
        assert self.ids is not None and self.tail is not None
        listed = self.listed
        return listed.sum(axis=1), self.ids[listed], self.logp[listed], self.tail

    def select(self, problems: Sequence[int] | np.ndarray) -> "Knowledge":
        """Of these problems, in this order."""
        starts = np.cumsum(self.lengths) - self.lengths
        ranges = [np.arange(starts[each], starts[each] + self.lengths[each]) for each in problems]
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *ranges])
        parts = {name: None if array is None else array[rows] for name, array in self._tables()}
        return replace(self, lengths=self.lengths[np.asarray(problems, dtype=np.int64)], **parts)

    def only(self, keep: np.ndarray) -> "Knowledge":
        """Of the same problems, but nothing of those where `keep`, bool [P], is False."""
        rows = keep[self.problems]
        parts = {name: None if array is None else array[rows] for name, array in self._tables()}
        return replace(self, lengths=np.where(keep, self.lengths, 0).astype(np.int32), **parts)

    def spread(self, rows: np.ndarray, lengths: np.ndarray) -> "Knowledge":
        """As knowledge of all positions of problems of `lengths` [P]: the i-th row is that of position `rows[i]`.

        `rows` [N] rises. Nothing is said of the other positions, nor, with length 0, of a problem without any row. Of
        sparse knowledge only.
        """
        assert self.ids is not None and self.tail is not None
        shape = int(lengths.sum()), self.logp.shape[1]
        logp, ids = np.full(shape, -np.inf, dtype=np.float32), np.zeros(shape, dtype=np.int32)
        tail, counts = np.zeros(shape[0], dtype=np.float32), np.zeros(shape[0], dtype=np.int32)
        logp[rows], ids[rows], tail[rows], counts[rows] = self.logp, self.ids, self.tail, self.listed.sum(axis=1)
        return Knowledge(lengths.astype(np.int32), self.width, logp, ids, tail, counts).only(self.lengths > 0)

    def trim(self, mass: float) -> "Knowledge":
        """Of each row no more entries than it takes to have the probability `mass` together; the others join the tail.

        Of sparse knowledge whose rows are by falling log p, as `pack` makes them.
        """
        assert self.ids is not None and self.tail is not None
        before = np.cumsum(np.exp(self.logp, dtype=np.float64), axis=1) - np.exp(self.logp)
        kept = (before < mass) & self.listed
        tail = log_sum(np.column_stack([np.where(kept, -np.inf, self.logp), self.tail])).astype(np.float32)
        counts = kept.sum(axis=1)
        return Knowledge.ragged(self.lengths, self.width, counts, self.ids[kept], self.logp[kept], tail)

    @property
    def sound(self) -> np.ndarray:
        """Which positions have finite log-probabilities of at most 0, and a tail of at most 0; bool [N]."""
        entries = np.all((np.isfinite(self.logp) | ~self.listed) & (self.logp <= 0), axis=1)
        return entries if self.tail is None else entries & (self.tail <= 0)

    def check(self) -> None:
        """Raise `PayloadError` unless all is as the class says and every row's probabilities sum to 1."""
        _check_shapes(self)
        if not self.sound.all():
            raise PayloadError("knowledge: expected finite log-probabilities of at most 0, found others")
        mass = np.exp(self.logp, dtype=np.float64).sum(axis=1)
        if self.ids is not None and self.tail is not None:
            _check_sparse(self, self.ids, self.tail)
            mass += np.exp(self.tail, dtype=np.float64)
        if len(mass) and (worst := float(np.abs(mass - 1).max())) > MASS_ERROR:
            raise PayloadError(
                f"knowledge: expected probabilities that sum to 1, found a sum that misses it by {worst:g}"
            )

    def _tables(self) -> Iterator[tuple[str, np.ndarray | None]]:
        yield from (("logp", self.logp), ("ids", self.ids), ("tail", self.tail), ("counts", self.counts))


def _check_shapes(known: Knowledge) -> None:
    rows, k = known.logp.shape if known.logp.ndim == 2 else (-1, -1)
    sparse = known.ids is not None
    expected = {
        "lengths": (known.lengths, np.int32, known.lengths.shape[:1]),
        "logp": (known.logp, np.float32, (rows, k if sparse else known.width)),
        "ids": (known.ids, np.int32, (rows, k)),
        "tail": (known.tail, np.float32, (rows,)),
        "counts": (known.counts, np.int32, (rows,)),
    }
    for name, (array, dtype, shape) in expected.items():
        needed = name in ("lengths", "logp") or (sparse and name != "counts")
        if (array is None and needed) or (array is not None and (array.dtype != dtype or array.shape != shape)):
            found = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise PayloadError(f"knowledge: expected {name} to be {np.dtype(dtype)} {shape}, found {found}")
    if not sparse and (known.tail is not None or known.counts is not None):
        raise PayloadError("knowledge: expected ids beside the tail or the counts, found none")
    if not 1 <= k <= known.width < 1 << 31:
        raise PayloadError(f"knowledge: expected 1 to {known.width} entries a position, found {k}")
    if known.counts is not None and ((known.counts < 0) | (known.counts > k)).any():
        raise PayloadError(f"knowledge: expected counts of 0 to {k}, found others")
    if (known.lengths < 0).any() or int(known.lengths.sum(dtype=np.int64)) != rows:
        raise PayloadError(f"knowledge: expected lengths of 0 or more that sum to {rows} positions, found others")


def _check_sparse(known: Knowledge, ids: np.ndarray, tail: np.ndarray) -> None:
    listed = known.listed
    if (ids < 0).any() or (ids >= known.width).any():
        raise PayloadError(f"knowledge: expected ids of 0 to {known.width - 1}, found others")
    if (ids != ids[:, :1])[~listed].any() or (known.logp[~listed] != -np.inf).any():
        raise PayloadError("knowledge: expected padding of log p -inf and the first id of its row, found other entries")
    beside = np.sort(np.where(listed, ids, -1 - np.arange(ids.shape[1])), axis=1)
    if (beside[:, 1:] == beside[:, :-1]).any():
        raise PayloadError("knowledge: expected every id once in a row, found one twice")
    if np.isfinite(tail[listed.sum(axis=1) == known.width]).any():
        raise PayloadError("knowledge: expected a tail of -inf where all tokens are listed, found probability there")


def pack(logits: np.ndarray, lengths: np.ndarray, k: int | None = None) -> Knowledge:
    """Knowledge from a model's logits, or its log-probabilities at temperature 1, [N, width].

    `k`: keep that many of each row, the most probable; None = all, dense. The tail is added up over the tokens that are
    left out, so it is exact however small. Raises `PayloadError` if a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise PayloadError("knowledge: expected finite logits, found NaN or infinity; the model has diverged")
    lengths, width = np.asarray(lengths, dtype=np.int32), logits.shape[1]
    size = max(1, _BLOCK // width)
    blocks = (logits[start : start + size] for start in range(0, max(1, len(logits)), size))
    if k is None:
        return Knowledge(lengths, width, np.concatenate([log_softmax(block).astype(np.float32) for block in blocks]))
    parts = zip(*(_most_probable(block, min(k, width)) for block in blocks), strict=True)
    ids, logp, tail = (np.concatenate(part) for part in parts)
    return Knowledge(lengths, width, logp.astype(np.float32), ids.astype(np.int32), tail.astype(np.float32))


def _most_probable(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and log p [n, k] by falling log p, of equals the lower id first, and tails [n]."""
    ids = np.sort(np.argpartition(-logits, k - 1, axis=1)[:, :k], axis=1)
    ids = np.take_along_axis(ids, np.argsort(-np.take_along_axis(logits, ids, 1), axis=1, kind="stable"), 1)
    logp = log_softmax(logits)
    listed = np.take_along_axis(logp, ids, 1)
    np.put_along_axis(logp, ids, -np.inf, 1)
    return ids, listed, log_sum(logp)


def join(parts: Sequence[Knowledge]) -> Knowledge:
    """The problems of all `parts`, which are of one width and either all dense or all sparse, one after the other."""
    lengths, width = np.concatenate([part.lengths for part in parts]), parts[0].width
    if parts[0].ids is None:
        return Knowledge(lengths, width, np.concatenate([part.logp for part in parts]))
    rows = zip(*(part.rows() for part in parts), strict=True)
    return Knowledge.ragged(lengths, width, *(np.concatenate(each) for each in rows))


def quantise(logp: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """8-bit codes [N, k] of log-probabilities [N, k], and of each row its greatest value and the step of its codes.

    Off by half a step at most: 0.04 nats, less where a row spans less than `FLOOR`; what lies deeper becomes the floor.
    The codes of padding mean nothing.
    """
    top = logp.max(axis=1, keepdims=True)
    clipped = np.clip(np.where(np.isneginf(logp), top, logp), top - FLOOR, None)
    step = (top - clipped.min(axis=1, keepdims=True)) / np.float32(255)
    codes = np.rint((top - clipped) / np.where(step > 0, step, 1))
    return codes.astype(np.uint8), top[:, 0], step[:, 0]


def dequantise(codes: np.ndarray, top: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The log-probabilities, float32 [N, k], that `quantise` made `codes` of."""
    return top[:, None] - codes * step[:, None]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """By row, in float64."""
    return logits - log_sum(logits)[:, None]


def log_sum(logits: np.ndarray) -> np.ndarray:
    """The log of the sum of exp, by row, in float64; -inf where all are -inf."""
    top = np.maximum(logits.max(axis=1), np.finfo(np.float64).min)
    mass = np.exp(logits - top[:, None], dtype=np.float64).sum(axis=1)
    return top + np.log(mass, out=np.full(len(mass), -np.inf), where=mass > 0)
