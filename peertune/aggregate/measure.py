"""How far an aggregate is from what the clients did."""

from collections.abc import Mapping, Sequence

import numpy as np

from peertune.aggregate.base import Aggregate, Update, shares
from peertune.aggregate.lowrank import LowRank, norm, stack
from peertune.aggregate.tensors import by_matrix, product

_TINY = float(np.finfo(np.float32).tiny)


def relative_error(updates: Sequence[Update], aggregate: Aggregate) -> float:
    """||sum p_k s_k B_k A_k - (scale B A + frozen)||_F / ||sum p_k s_k B_k A_k||_F over all matrices together.

    Of a matrix of which one factor travels (ffa, rolora, fed_sb: the others are common; fedsa: there is no common
    product) it is the error of that factor. 0 where nobody changed anything. Dense tensors do not count.
    """
    shared = shares(updates, mixed_ranks=True)
    parts = [(share * update.scale, by_matrix(update.tensors)) for share, update in shared]
    factors, frozen = by_matrix(aggregate.factors), by_matrix(aggregate.frozen)
    wanted, missed = [0.0], [0.0]
    for matrix in by_matrix(updates[0].tensors):
        whole = stack([_term(of[matrix]).times(weight) for weight, of in parts])
        found = [
            _term(of[matrix]).times(-weight)
            for weight, of in ((aggregate.scale, factors), (1.0, frozen))
            if matrix in of
        ]
        wanted.append(norm(whole))
        missed.append(norm(stack([whole, *found])))
    return float(np.linalg.norm(missed) / max(float(np.linalg.norm(wanted)), _TINY))


def _term(parts: Mapping[str, np.ndarray]) -> LowRank:
    """B A, or the one factor that there is."""
    if parts.keys() >= {"A", "B"}:
        return product(parts)
    ((letter, part),) = parts.items()
    left = (part.T if letter == "A" else part).astype(np.float64)
    return LowRank(left, np.eye(left.shape[1]))
