"""What somebody knows of public problems, and how well it knows their answers: who should teach whom (DualMinCE).

Fan et al., FedMKT (arXiv:2406.02224), Algorithm 2: the teacher of a problem is whoever loses least on its answer, if
that is less than the learner itself loses. Losses are of whole answers, by byte and in fp32: tokens differ between
tokenizers, and a prompt's length says nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from peertune.align.positions import BEFORE, MASKED, Positions
from peertune.errors import PayloadError
from peertune.knowledge import Knowledge

ROUNDING = 0.05  # nats a position by which what was sent can be off: log p in 8 bits by 0.04
_NO_TOKEN = -1


@dataclass(frozen=True, eq=False)
class Assessment:
    """Of P problems with N positions in all.

    `known`: what is expected at each position, sparse; a problem of length 0 is not known. `starts` int32 [N]: where
    the token of each position begins in the answer, as in `Positions`; the last one is at its end. `nats` float32 [P]:
    the loss on the answer, its end included. `texts` int32 [P]: checksums of the problems. `vocabulary`: of the
    tokenizer, its digest.
    """

    known: Knowledge
    starts: np.ndarray
    nats: np.ndarray
    texts: np.ndarray
    vocabulary: str

    @property
    def positions(self) -> Positions:
        return Positions(self.known.lengths, self.starts)

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each answer, int64 [P]; 0 where it is not known."""
        last = np.cumsum(self.known.lengths) - 1
        return np.where(self.known.lengths > 0, np.append(self.starts, 0)[last], 0).astype(np.int64)

    @property
    def loss(self) -> np.ndarray:
        """Nats a byte, float32 [P]; infinite where nothing is known, the answer is empty or the loss is no number."""
        sizes = self.sizes
        by_byte = self.nats.astype(np.float32) / np.maximum(sizes, 1).astype(np.float32)
        return np.where((sizes > 0) & np.isfinite(by_byte), by_byte, np.float32(np.inf))

    def only(self, keep: np.ndarray) -> "Assessment":
        """Of the same problems, but nothing of those where `keep`, bool [P], is False."""
        starts, nats = self.starts[keep[self.known.problems]], np.where(keep, self.nats, np.float32(0))
        return replace(self, known=self.known.only(keep), starts=starts, nats=nats)

    def check(self) -> None:
        """Raise `PayloadError` unless arrays fit each other, every answer is whole, and no loss is negative."""
        problems = len(self.known.lengths)
        for name, array, dtype in (("nats", self.nats, np.float32), ("texts", self.texts, np.int32)):
            if array.dtype != dtype or array.shape != (problems,):
                raise PayloadError(f"assessment: expected {name} to be {np.dtype(dtype)} ({problems},), found others")
        self.positions.check()
        if (self.starts == MASKED).any() or not (self.nats >= 0).all():
            raise PayloadError("assessment: expected a place for every position and losses of 0 or more, found others")


def right_tokens(claim: Assessment, answers: Sequence[bytes], ids: Mapping[bytes, int], end: int) -> np.ndarray:
    """The token at each position of `claim`, int32 [N], -1 where its bytes are no token. `ids`: of tokens by their
    bytes. `end`: of the token that ends a text.
    """
    found = np.full(len(claim.starts), _NO_TOKEN, dtype=np.int32)
    row = 0
    for answer, length in zip(answers, claim.known.lengths.tolist(), strict=True):
        starts = claim.starts[row : row + length].tolist()
        for place, (start, stop) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            piece = b" " + answer[:stop] if start == BEFORE else answer[start:stop]
            found[row + place] = ids.get(piece, _NO_TOKEN)
        if length:
            found[row + length - 1] = end
        row += length
    return found


def believable(claim: Assessment, texts: np.ndarray, sizes: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of which problems what is claimed can be true, bool [P]. `texts`, `sizes`: of the problems and of their answers'
    bytes, as the receiver has them; `right`: as `right_tokens` gives.

    Not if the text is another; if it is cut into what are no tokens; nor if the claimed loss is less than the
    log-probabilities beside it make it: what the right token has where it is listed; where it is not, no token has more
    than the tail, nor than the least of the listed.
    """
    known, problems = claim.known, len(claim.known.lengths)
    assert known.ids is not None and known.tail is not None
    hit = (known.ids == right[:, None]) & known.listed
    least = np.minimum(np.where(known.listed, known.logp, 0).min(axis=1), known.tail)
    logp = np.where(hit.any(axis=1), np.where(hit, known.logp, -np.inf).max(axis=1), least)
    floor = np.bincount(known.problems, weights=-logp, minlength=problems)
    unspelt = np.bincount(known.problems[right == _NO_TOKEN], minlength=problems) > 0
    whole = (claim.texts == texts) & (claim.sizes == sizes) & ~unspelt
    return whole & (claim.nats + ROUNDING * known.lengths >= floor) | (known.lengths == 0)


def least_loss(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Who teaches each problem, int [P]: the row of `others` [K, P] that loses least and less than `own` [P], of equals
    the first; -1 = nobody. What is no number counts as infinite.
    """
    losses = np.where(np.isnan(others), np.inf, others).astype(np.float32)
    own = np.where(np.isnan(own), np.inf, own).astype(np.float32)
    if not len(losses):
        return np.full(len(own), -1)
    best = losses.argmin(axis=0)
    return np.where(losses[best, np.arange(len(own))] < own, best, -1)


def shares(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """By how much each row of `others` [K, P] teaches each problem, [K, P]: exp(-loss), normalised over those that lose
    less than `own` [P]; columns sum to 1, or are 0 where nobody does.
    """
    better = np.where(np.isnan(own), np.inf, own) > np.where(np.isnan(others), np.inf, others)
    weights = np.where(better, np.exp(-np.where(better, others, 0), dtype=np.float64), 0.0)
    return weights / np.maximum(weights.sum(axis=0), np.finfo(np.float64).tiny)
