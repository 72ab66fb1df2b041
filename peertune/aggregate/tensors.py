"""The tensors of an adapter by name: which are the factors of a matrix, cutting them to a rank, adding frozen ones."""

import math
import re
from collections.abc import Mapping

import numpy as np

from peertune.aggregate.lowrank import LowRank, compact, stack

Tensors = Mapping[str, np.ndarray]
_FACTOR = re.compile(r"(.+)\.(?:lora|frozen)_([ABR])\.weight")
RANK_SIDES = {"A": (0,), "B": (1,), "R": (0, 1)}  # the dimensions of a factor that are the rank


def by_matrix(tensors: Tensors) -> dict[str, dict[str, np.ndarray]]:
    """Adapted matrix -> its factors by letter."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        if factor := _FACTOR.fullmatch(name):
            found.setdefault(factor[1], {})[factor[2]] = tensor
    return found


def named(matrix: str, kind: str, term: LowRank) -> dict[str, np.ndarray]:
    """The tensors of one matrix, float32. `kind`: lora or frozen."""
    pair = {"A": term.right, "B": term.left}
    return {f"{matrix}.{kind}_{letter}.weight": part.astype(np.float32) for letter, part in pair.items()}


def having(tensors: Tensors, letters: str) -> dict[str, np.ndarray]:
    """These factors of each matrix, and what is no factor."""
    found = ((name, tensor, _FACTOR.fullmatch(name)) for name, tensor in tensors.items())
    return {name: tensor for name, tensor, factor in found if factor is None or factor[2] in letters}


def dense(tensors: Tensors) -> list[str]:
    """The names of tensors that are no factor of a matrix: a classification head, a bias."""
    return [name for name in tensors if not _FACTOR.fullmatch(name)]


def rank_sides(name: str) -> tuple[int, ...]:
    """The dimensions of a tensor that are its adapter's rank."""
    factor = _FACTOR.fullmatch(name)
    return RANK_SIDES[factor[2]] if factor else ()


def product(parts: Mapping[str, np.ndarray]) -> LowRank:
    """B A in float64."""
    return LowRank(parts["B"].astype(np.float64), parts["A"].astype(np.float64))


def for_rank(factors: Tensors, rank: int, gain: float = 1.0) -> dict[str, np.ndarray]:
    """What a client of `rank` gets of an aggregate's factors: the first rows of A and columns of B, as many as there
    are; other tensors as they are. `gain`: the aggregate's scale over the client's own, which A and B share evenly.
    """
    root, cut = math.sqrt(gain), dict(factors)
    for name, tensor in factors.items():
        if rank_sides(name) == (0,):
            cut[name] = root * tensor[:rank]
        elif rank_sides(name) == (1,):
            cut[name] = root * tensor[:, :rank]
    return cut


def fold(old: Tensors, new: Tensors) -> dict[str, np.ndarray]:
    """The sum of two frozen parts: by concatenation, and above a rank of min(m, n) by multiplication."""
    before, after = by_matrix(old), by_matrix(new)
    both: dict[str, np.ndarray] = {}
    for matrix in before | after:
        terms = [product(parts[matrix]) for parts in (before, after) if matrix in parts]
        both |= named(matrix, "frozen", compact(stack(terms)))
    return both
