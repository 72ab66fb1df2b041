"""Sums of matrices of low rank, kept as factors: no [m, n] matrix is made unless it is the smaller form."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class LowRank(NamedTuple):
    """The matrix `left @ right`: [m, rank] and [rank, n], float64."""

    left: np.ndarray
    right: np.ndarray

    @property
    def rank(self) -> int:
        return len(self.right)

    def times(self, number: float) -> "LowRank":
        return LowRank(number * self.left, self.right)


def stack(terms: Sequence[LowRank]) -> LowRank:
    """The sum of `terms`; its rank is the sum of theirs."""
    return LowRank(np.hstack([term.left for term in terms]), np.vstack([term.right for term in terms]))


def norm(term: LowRank) -> float:
    """Frobenius norm: that of the product of the triangles of both factors' QR.

    Gram matrices would do in less time, but err by 1e-8 of the terms where these cancel.
    """
    left, right = np.linalg.qr(term.left, mode="r"), np.linalg.qr(term.right.T, mode="r")
    return float(np.linalg.norm(np.inner(left, right)))


def best(term: LowRank, rank: int) -> LowRank:
    """The best approximation of at most `rank`; its first k columns and rows are that of rank k, for every k.

    QR of both factors, SVD of the small core. Both factors get the square root of a singular value each. Directions
    that are zero but for rounding are left out: a zero in both factors would never learn again.
    """
    left, left_core = np.linalg.qr(term.left)
    right, right_core = np.linalg.qr(term.right.T)
    u, values, v = np.linalg.svd(left_core @ right_core.T, full_matrices=False)
    noise = max(len(left), len(right)) * np.finfo(np.float64).eps * values.max(initial=0.0)
    rank = min(rank, int((values > noise).sum()))
    roots = np.sqrt(values[:rank])
    return LowRank(left @ (u[:, :rank] * roots), (roots[:, None] * v[:rank]) @ right.T)


def compact(term: LowRank) -> LowRank:
    """The same matrix with a rank of at most min(m, n). Above it the matrix itself and an identity are smaller."""
    m, n = len(term.left), term.right.shape[1]
    if term.rank <= min(m, n):
        return term
    whole = term.left @ term.right
    return LowRank(np.eye(m), whole) if m <= n else LowRank(whole, np.eye(n))
