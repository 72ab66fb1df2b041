"""What all clients begin from: one adapter, made of those that they bring.

Each raises `MethodError` if the adapters do not fit together.
"""

from collections.abc import Sequence

import numpy as np

from peertune.aggregate.base import Aggregate, Update
from peertune.aggregate.lowrank import LowRank
from peertune.aggregate.rules import flexlora
from peertune.aggregate.tensors import Tensors, by_matrix, named, product


def common_start(updates: Sequence[Update]) -> Aggregate:
    """The best form of the average of `updates`, of the greatest rank among them.

    Where the average has a lower rank, the first update of that rank gives the other rows of A, with B = 0: its whole
    A if nobody has learnt anything yet.
    """
    start = flexlora(updates)
    found, factors = by_matrix(start.factors), dict(start.factors)
    for matrix, parts in by_matrix(updates[0].tensors).items():
        largest = max((by_matrix(update.tensors)[matrix]["A"] for update in updates), key=len)
        missing = largest[len(found[matrix]["A"]) :]
        left, right = product(found[matrix])
        blank = np.zeros((len(parts["B"]), len(missing)))
        factors |= named(matrix, "lora", LowRank(np.hstack([left, blank]), np.vstack([right, missing])))
    return Aggregate(factors, {}, start.scale)


def with_core(factors: Tensors, seed: int) -> dict[str, np.ndarray]:
    """The same product as B R A, A and B orthonormal; where B = 0, of random directions (Fed-SB, arXiv:2502.15436).

    The paper takes them from the SVD of the first gradients; here they are those of what has been learnt so far.
    """
    random, cores = np.random.default_rng(seed), dict(factors)
    for matrix, parts in by_matrix(factors).items():
        b, a = product(parts)
        unused = ~b.any(axis=0)
        left, left_core = np.linalg.qr(np.where(unused, random.normal(size=b.shape), b))
        right, right_core = np.linalg.qr(a.T)
        left_core[:, unused] = 0
        cores |= named(matrix, "lora", LowRank(left, right.T))
        cores[f"{matrix}.lora_R.weight"] = (left_core @ right_core.T).astype(np.float32)
    return cores
