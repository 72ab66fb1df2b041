"""What an agent knows of public problems and what it loses on their answers, on the wire; and its vocabulary."""

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from peertune.align.positions import BEFORE
from peertune.align.tokens import ROLES, Vocabulary
from peertune.assessment import Assessment
from peertune.errors import PayloadError
from peertune.knowledge import MAX_ENTRIES, Knowledge
from peertune.payloads.arrays import Arrays
from peertune.payloads.logits import NOTHING, coded, decoded, id_type, logs
from peertune.payloads.packing import names, packed, unpacked

Bits = Literal["fp16", "int8"]
MOST_TOKENS = 1 << 19  # twice the largest in use; a hostile vocabulary costs its receiver work
MOST_SPELT = 1 << 23  # bytes of all tokens of a vocabulary; the largest in use have 2 MB
_DIGEST = 32


class Assessed(Arrays, frozen=True):
    """Arrays of one `Assessment` with `width` tokens.

    As they are: `lengths` int32, `nats` fp32 and `texts` int32 [P], `vocabulary` uint8 [32], `k` int32 [1], the most
    entries of a position. Packed: `starts` uint16 [N], how much further each position begins than the last one;
    `counts` [N], where positions differ in entries; of the entries, by rising id, `ids`, how much greater each is than
    the last one of its position, and `logp` fp16, or `codes` uint8 with `top` and `step` fp32 [N]; `tail` fp16 [N].
    Counts and ids are uint16, or int32 where `width` needs it.
    """

    kind: ClassVar[str] = "assessed"
    width: int

    @classmethod
    def of(cls, found: Assessment, precision: Bits = "fp16") -> "Assessed":
        """The wire form; log-probabilities are rounded to `precision`, losses are not."""
        known = found.known
        assert known.ids is not None and known.tail is not None
        listed, kind = known.listed, id_type(known.width)
        order = np.argsort(np.where(listed, known.ids, known.width), axis=1)
        ids, logp = (np.take_along_axis(table, order, 1) for table in (known.ids, known.logp))
        arrays = {
            "starts": _steps(found),
            "ids": np.diff(ids, axis=1, prepend=0)[listed].astype(kind),
            "tail": np.maximum(known.tail, NOTHING).astype(np.float16),
            **coded(logp, listed, precision),
        }
        if known.counts is not None:
            arrays["counts"] = known.counts.astype(kind)
        tensors = {
            **{"lengths": known.lengths, "nats": found.nats, "texts": found.texts},
            "vocabulary": np.frombuffer(bytes.fromhex(found.vocabulary), np.uint8),
            "k": np.array([logp.shape[1]], np.int32),
        }
        for name, array in arrays.items():
            tensors |= packed(name, array)
        return cls(tensors, known.width)

    def assessment(self) -> Assessment:
        """What was sent, entries by falling log p. Raises `PayloadError` if it is not what the class says."""
        lengths, nats, texts, vocabulary, k = (plain(self, name, dtype) for name, dtype in _PLAIN.items())
        most = int(k[0]) if k.shape == (1,) else 0
        if (lengths < 0).any() or vocabulary.shape != (_DIGEST,) or not 1 <= most <= self.width:
            raise PayloadError(f"assessed: expected lengths of 0 or more, a digest, and k of 1 to {self.width}")
        starts = unpacked(self.tensors, "starts", np.uint16, int(lengths.sum(dtype=np.int64)))
        known = self._known(lengths, most)
        known.check()
        found = Assessment(known, _starts(lengths, starts), nats, texts, vocabulary.tobytes().hex())
        found.check()
        return found

    def check(self) -> None:
        super().check()
        present = names(self.tensors)
        if len(set(present)) < len(present) or not set(present) <= {*_PLAIN, *_PACKED}:
            raise PayloadError("assessed: expected each array once and no others")
        self.assessment()

    def _known(self, lengths: np.ndarray, most: int) -> Knowledge:
        positions, present = int(lengths.sum(dtype=np.int64)), names(self.tensors)
        if positions * most > MAX_ENTRIES:
            raise PayloadError(f"assessed: expected at most {MAX_ENTRIES} entries, found {positions} of up to {most}")
        counts = np.full(positions, most, dtype=np.int32)
        if "counts" in present:
            counts = self._numbers("counts", id_type(self.width), positions).astype(np.int32)
        if (counts < 1).any() or (counts > most).any():
            raise PayloadError(f"assessed: expected 1 to {most} entries a position, found others")
        total = int(counts.sum(dtype=np.int64))
        ids = _rising(self._numbers("ids", id_type(self.width), total), counts)
        if (ids < 0).any() or (ids >= self.width).any():
            raise PayloadError(f"assessed: expected ids of 0 to {self.width - 1}, found others")
        sizes = {"codes": total, "top": positions, "step": positions} if "codes" in present else {"logp": total}
        logp = decoded({name: self._numbers(name, _VALUES[name], size) for name, size in sizes.items()}, counts)
        tail = logs(self._numbers("tail", np.float16, positions))
        return _falling(Knowledge.ragged(lengths, self.width, counts, ids.astype(np.int32), logp, tail))

    def _numbers(self, name: str, dtype: type, count: int) -> np.ndarray:
        array = unpacked(self.tensors, name, dtype, count)
        if not np.isfinite(array).all():
            raise PayloadError(f"assessed: {name} holds NaN or infinity")
        return array


_PLAIN = {"lengths": np.int32, "nats": np.float32, "texts": np.int32, "vocabulary": np.uint8, "k": np.int32}
_VALUES = {"logp": np.float16, "codes": np.uint8, "top": np.float32, "step": np.float32}
_PACKED = ("starts", "counts", "ids", "tail", *_VALUES)


class Lexicon(Arrays, frozen=True):
    """A `Vocabulary` of `size` tokens.

    `roles` int32 [7]: the id of each of `ROLES`, -1 = none. Packed: `lengths` uint16 [size] of the tokens in bytes;
    `bytes` uint8 of all, one after the other. `spare` int32: ids.
    """

    kind: ClassVar[str] = "lexicon"
    size: int

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> "Lexicon":
        lengths = np.array([len(token) for token in vocabulary.tokens], np.int32)
        if lengths.max(initial=0) >= 1 << 16:
            raise PayloadError(f"lexicon: expected tokens of less than {1 << 16} bytes, found one of {lengths.max()}")
        tensors = {
            "roles": np.array([vocabulary.roles.get(role, -1) for role in ROLES], np.int32),
            "spare": np.array(sorted(vocabulary.spare), np.int32),
            **packed("lengths", lengths.astype(np.uint16)),
            **packed("bytes", np.frombuffer(b"".join(vocabulary.tokens), np.uint8)),
        }
        return cls(tensors, len(lengths))

    def vocabulary(self) -> Vocabulary:
        """What was sent. Raises `PayloadError` if it is not what the class says."""
        roles, spare = (plain(self, name, np.int32) for name in ("roles", "spare"))
        listed = np.concatenate([roles, spare])
        if roles.shape != (len(ROLES),) or (listed < -1).any() or (listed >= self.size).any() or (spare < 0).any():
            raise PayloadError(
                f"lexicon: expected ids of 0 to {self.size - 1} for roles and spare tokens, found others"
            )
        lengths = unpacked(self.tensors, "lengths", np.uint16, self.size).astype(np.int64)
        if (total := int(lengths.sum())) > MOST_SPELT:
            raise PayloadError(f"lexicon: expected at most {MOST_SPELT} bytes of tokens, found {total}")
        spelt = unpacked(self.tensors, "bytes", np.uint8, total).tobytes()
        ends = np.cumsum(lengths).tolist()
        tokens = tuple(spelt[start:end] for start, end in zip([0, *ends], ends, strict=False))
        named = {role: id for role, id in zip(ROLES, roles.tolist(), strict=True) if id >= 0}
        return Vocabulary(tokens, named, frozenset(spare.tolist()))

    def check(self) -> None:
        super().check()
        if not 1 <= self.size <= MOST_TOKENS:
            raise PayloadError(f"lexicon: expected 1 to {MOST_TOKENS} tokens, found {self.size}")
        if sorted(names(self.tensors)) != ["bytes", "lengths", "roles", "spare"]:
            raise PayloadError("lexicon: expected lengths, bytes, roles and spare, each once")
        self.vocabulary()


def plain(payload: Arrays, name: str, dtype: type) -> np.ndarray:
    """An array of one dimension that is not packed. Raises `PayloadError` if it is another."""
    array = payload.tensors.get(name)
    if array is None or array.dtype != dtype or array.ndim != 1:
        found = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise PayloadError(f"{payload.kind}: expected {name} to be a list of {np.dtype(dtype)}, found {found}")
    return array


def _steps(found: Assessment) -> np.ndarray:
    """From the start of each position to that of the next, uint16 [N]; the first from before the answer."""
    steps = np.diff(found.starts, prepend=0)
    first = _first(found.known.lengths)
    steps[first] = found.starts[first] - BEFORE
    if len(steps) and (steps.min() < 0 or steps.max() >= 1 << 16):
        raise PayloadError(f"assessed: expected positions that go forward by less than {1 << 16} bytes, found others")
    return steps.astype(np.uint16)


def _starts(lengths: np.ndarray, steps: np.ndarray) -> np.ndarray:
    starts = _rising(steps, lengths[lengths > 0]) + BEFORE
    if len(starts) and starts.max() >= 1 << 31:
        raise PayloadError("assessed: expected answers of less than 2 GB, found a longer one")
    return starts.astype(np.int32)


def _first(lengths: np.ndarray) -> np.ndarray:
    """The first position of each problem that has any."""
    return (np.cumsum(lengths) - lengths)[lengths > 0]


def _rising(deltas: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums of `deltas` from the beginning of each run of `counts`, int64."""
    total = np.cumsum(deltas, dtype=np.int64)
    before = np.append(0, total)[np.cumsum(counts) - counts]
    return total - np.repeat(before, counts)


def _falling(known: Knowledge) -> Knowledge:
    """The same rows by falling log p, of equals the lower id first."""
    assert known.ids is not None
    order = np.argsort(-known.logp, axis=1, kind="stable")
    ids, logp = (np.take_along_axis(table, order, 1) for table in (known.ids, known.logp))
    return replace(known, ids=np.where(known.listed, ids, ids[:, :1]), logp=logp)
