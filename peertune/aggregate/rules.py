"""The rules: from the clients' updates to what all go on from. Their costs are in the table of `peertune.aggregate`.

Each raises `MethodError` if the updates do not fit together or have no examples.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from peertune.aggregate.base import Aggregate, Update, shares
from peertune.aggregate.lowrank import LowRank, best, compact, norm, stack
from peertune.aggregate.tensors import by_matrix, dense, named, product
from peertune.errors import MethodError

Shares = list[tuple[float, Update]]


def mean(updates: Sequence[Update]) -> Aggregate:
    """Every tensor that came, averaged by number of examples.

    FedIT (arXiv:2305.05644) if A and B came; exact for what travels alone, the rest being common: FFA-LoRA's B
    (arXiv:2403.12313), RoLoRA's B or A (arXiv:2502.01755), Fed-SB's R (arXiv:2502.15436). FedSA-LoRA (arXiv:2410.01463)
    averages A, the Bs stay at home.
    """
    return Aggregate(_mean(shares(updates), updates[0].tensors), {}, updates[0].scale)


def fedex(updates: Sequence[Update]) -> Aggregate:
    """FedEx-LoRA (arXiv:2410.09432): the mean; what it misses, s sum p_k (B_k - B)(A_k - A), is frozen.

    As sum p_k (B_k - B) = 0, this is s sum_{k<K} p_k (B_k - B)(A_k - A_K): of rank (K - 1) r without decomposition.
    """
    shared = shares(updates)
    frozen: dict[str, np.ndarray] = {}
    for matrix, terms in _matrices(shared):
        left, last = sum(share * term.left for share, term in terms), terms[-1][1].right
        missed = [LowRank(share * (term.left - left), term.right - last) for share, term in terms[:-1]]
        if missed:
            frozen |= named(matrix, "frozen", compact(stack(missed)))
    return Aggregate(_mean(shared, updates[0].tensors), frozen, updates[0].scale)


def flora(updates: Sequence[Update]) -> Aggregate:
    """FLoRA (arXiv:2409.05976): [p_1 s_1 B_1 | ...] [A_1; ...] is frozen; clients begin new adapters.

    p_k and s_k belong on one factor alone.
    """
    shared = shares(updates, mixed_ranks=True)
    frozen: dict[str, np.ndarray] = {}
    for matrix, terms in _matrices(shared):
        frozen |= named(matrix, "frozen", compact(_sum(terms)))
    return Aggregate(_mean(shared, dense(updates[0].tensors)), frozen, _scale(shared))


def flexlora(updates: Sequence[Update]) -> Aggregate:
    """FlexLoRA (arXiv:2402.11505): the best approximation of the sum by the greatest rank that came, by QR of the
    stacked factors and the SVD of a small core (HLoRA, arXiv:2503.00813), never an [m, n] matrix.

    `for_rank` then gives each client the best one of its rank. There are fewer rows where the sum has a lower rank.
    """
    shared = shares(updates, mixed_ranks=True)
    factors, scale = _mean(shared, dense(updates[0].tensors)), _scale(shared)
    for matrix, terms in _matrices(shared):
        rank = max(term.rank for _, term in terms)
        factors |= named(matrix, "lora", best(_sum(terms).times(1 / scale), rank))
    return Aggregate(factors, {}, scale)


def hetlora(updates: Sequence[Update]) -> Aggregate:
    """HetLoRA (arXiv:2401.06432): factors padded with zeros to the greatest rank, averaged by ||s_k B_k A_k||_F.

    Weights are by matrix; numbers of examples count for dense tensors, and where no client has learnt anything. The
    paper's pruning of a client's own rank belongs to training.
    """
    shared = shares(updates, mixed_ranks=True)
    factors, scale = _mean(shared, dense(updates[0].tensors)), _scale(shared)
    for matrix, terms in _matrices(shared):
        norms = [norm(term) for _, term in terms]
        weights = [each / sum(norms) for each in norms] if any(norms) else [share for share, _ in shared]
        rank, (_, first) = max(term.rank for _, term in terms), terms[0]
        left, right = np.zeros((len(first.left), rank)), np.zeros((rank, first.right.shape[1]))
        for weight, (_, update), (_, term) in zip(weights, shared, terms, strict=True):
            left[:, : term.rank] += weight / math.sqrt(update.scale * scale) * term.left
            right[: term.rank] += weight * math.sqrt(update.scale / scale) * term.right
        factors |= named(matrix, "lora", LowRank(left, right))
    return Aggregate(factors, {}, scale)


def _mean(shared: Shares, names: Iterable[str]) -> dict[str, np.ndarray]:
    means: dict[str, np.ndarray] = {}
    for name in names:
        total = np.zeros(shared[0][1].tensors[name].shape)
        for share, update in shared:
            total += share * update.tensors[name].astype(np.float64)
        means[name] = total.astype(np.float32)
    return means


def _matrices(shared: Shares) -> Iterator[tuple[str, list[tuple[float, LowRank]]]]:
    """Of each adapted matrix the clients' (p_k, s_k B_k A_k). Raises `MethodError` if A or B is missing."""
    clients = [(share, update.scale, by_matrix(update.tensors)) for share, update in shared]
    for matrix, parts in clients[0][2].items():
        if parts.keys() != {"A", "B"}:
            raise MethodError(f"{matrix}: expected lora_A and lora_B, found only {', '.join(sorted(parts))}")
        yield matrix, [(share, product(of[matrix]).times(scale)) for share, scale, of in clients]


def _sum(terms: list[tuple[float, LowRank]]) -> LowRank:
    return stack([term.times(share) for share, term in terms])


def _scale(shared: Shares) -> float:
    """At which to state the sum of updates of several scales."""
    return max(update.scale for _, update in shared)
