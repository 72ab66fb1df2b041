"""What a client knows of public problems, on the wire: log-probabilities of the most probable tokens, or of classes."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from peertune.errors import PayloadError
from peertune.knowledge import MAX_ENTRIES, Knowledge, dequantise, quantise
from peertune.payloads.arrays import Arrays

Precision = Literal["fp32", "fp16", "int8"]
NOTHING = -1e4  # stands for the log of no probability at all, which is no number
FLOATS = {"fp32": np.float32, "fp16": np.float16, "int8": np.float16}  # of numbers that are no codes
_WIDE = 1 << 16  # ids of smaller vocabularies take two bytes


class Logits(Arrays, frozen=True):
    """Arrays of one `Knowledge` with `width` tokens or classes.

    `lengths` int32 [P]. Values, row after row, without padding: `logp` fp32 or fp16, or `codes` uint8 with `top` and
    `step` fp32 [N]. Sparse: also `ids` uint16 (int32 where `width` needs it), `tail` fp16 or fp32 [N] and, where rows
    differ, `counts` int32 [N].
    """

    kind: ClassVar[str] = "logits"
    width: int

    @classmethod
    def of(cls, known: Knowledge, precision: Precision = "fp16") -> "Logits":
        """The wire form of `known`; values are rounded to `precision`."""
        listed = known.listed
        tensors = {"lengths": known.lengths, **coded(known.logp, listed, precision)}
        if known.ids is not None and known.tail is not None:
            tensors["ids"] = known.ids[listed].astype(id_type(known.width))
            tensors["tail"] = np.maximum(known.tail, NOTHING).astype(FLOATS[precision])
        if known.counts is not None:
            tensors["counts"] = known.counts
        return cls(tensors, known.width)

    def knowledge(self) -> Knowledge:
        """What was sent. Raises `PayloadError` if it is not what the class says, or not probabilities."""
        try:
            known = self._assembled()
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise PayloadError(f"logits: their arrays do not fit together ({type(error).__name__})") from None
        known.check()
        return known

    def check(self) -> None:
        super().check()
        if sum(array.size for array in self.tensors.values()) > MAX_ENTRIES:
            raise PayloadError(f"logits: at most {MAX_ENTRIES} numbers")
        self.knowledge()

    def _assembled(self) -> Knowledge:
        tensors = dict(self.tensors)
        lengths, ids, tail, counts = (tensors.pop(name, None) for name in ("lengths", "ids", "tail", "counts"))
        if lengths is None or lengths.ndim != 1 or (lengths < 0).any():
            raise PayloadError("logits: expected lengths of 0 or more, found none or others")
        counts = _counts(int(lengths.sum(dtype=np.int64)), _sent(tensors), counts)
        values = decoded(tensors, counts)
        if ids is None or tail is None:
            return Knowledge(lengths, self.width, values.reshape(len(counts), self.width))
        return Knowledge.ragged(lengths, self.width, counts, ids.astype(np.int32), values, logs(tail))


def id_type(width: int) -> type[np.uint16] | type[np.int32]:
    """Of ids below `width`."""
    return np.uint16 if width <= _WIDE else np.int32


def coded(logp: np.ndarray, listed: np.ndarray, precision: Precision) -> dict[str, np.ndarray]:
    """The entries of `logp` [N, k] that are `listed`, row after row, as arrays of the wire."""
    if precision == "int8":
        codes, top, step = quantise(logp)
        return {"codes": codes[listed], "top": top, "step": step}
    return {"logp": np.maximum(logp[listed], NOTHING).astype(FLOATS[precision])}


def _sent(tensors: dict[str, np.ndarray]) -> int:
    """How many values were sent, of no other arrays than it takes."""
    if tensors.keys() == {"logp"}:
        return tensors["logp"].size
    if tensors.keys() != {"codes", "top", "step"}:
        raise PayloadError("logits: expected logp, or codes, top and step, found other arrays")
    return tensors["codes"].size


def _counts(positions: int, sent: int, counts: np.ndarray | None) -> np.ndarray:
    """How many values each position has; checked before anything of that size is made."""
    if positions > sent or (positions == 0) != (sent == 0):
        raise PayloadError(f"logits: expected values for {positions} positions, found {sent}")
    if counts is None:
        counts = np.full(positions, sent // max(1, positions), dtype=np.int32)
    if counts.shape != (positions,) or (counts < 1).any() or int(counts.sum(dtype=np.int64)) != sent:
        raise PayloadError(f"logits: expected counts of {positions} positions that sum to {sent}, found others")
    return counts


def decoded(tensors: Mapping[str, np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Log-probabilities float32 [sum of counts], row after row, of the arrays that `coded` makes."""
    if "logp" in tensors:
        return logs(tensors["logp"])
    top, step = (np.repeat(tensors[name], counts) for name in ("top", "step"))
    return dequantise(tensors["codes"].reshape(-1, 1), top, step)[:, 0]


def logs(values: np.ndarray) -> np.ndarray:
    """Log-probabilities float32, as sent: at most 0, -inf for `NOTHING`."""
    return np.where(values <= NOTHING, -np.inf, np.minimum(values, 0)).astype(np.float32)
