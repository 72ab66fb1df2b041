"""What goes into a rule, what comes out of it, and the checks that all rules share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from peertune.aggregate.tensors import RANK_SIDES, Tensors, by_matrix, rank_sides
from peertune.errors import MethodError


@dataclass(frozen=True, eq=False)
class Update:
    """One client's adapter as PEFT names it, or the factors of it that travel.

    `....lora_A.weight` [r, n], `....lora_B.weight` [m, r], dW = scale * B A in [m, n], whatever the layout of the base;
    `....lora_R.weight` [r, r] where dW = scale * B R A. Any other name is dense. `weight`: number of examples.
    Raises `MethodError`, with the client's `name`: shapes that do not fit together, a number that is not finite.
    """

    name: str
    tensors: Tensors
    weight: float
    scale: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf or not 0 < self.scale < math.inf:
            raise MethodError(
                f"{self.name}: expected a finite weight >= 0 and scale > 0, found {self.weight} and {self.scale}"
            )
        for path, tensor in self.tensors.items():
            if tensor.dtype.kind != "f" or not np.isfinite(tensor).all():
                raise MethodError(f"{self.name}: {path} holds NaN, infinity or no floats at all; leave this update out")
            if rank_sides(path) and tensor.ndim != 2:
                raise MethodError(f"{self.name}: {path}: expected a matrix, found the shape {tensor.shape}")
        for matrix, parts in by_matrix(self.tensors).items():
            if len({part.shape[side] for letter, part in parts.items() for side in RANK_SIDES[letter]}) > 1:
                found = ", ".join(f"{letter} {part.shape}" for letter, part in parts.items())
                raise MethodError(f"{self.name}: {matrix}: expected factors of one rank, found {found}")


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What all clients go on from, float32.

    `factors`: the next adapter, dW = scale * B A, and the dense tensors; no A or B where clients begin a new adapter.
    `frozen`: what is added to the base for good, already scaled: `....frozen_A.weight` [rank, n] and
    `....frozen_B.weight` [m, rank], dW = frozen_B frozen_A.
    """

    factors: Tensors
    frozen: Tensors
    scale: float


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table of aggregators.

    `turns`: the factors that clients train, round by round in turn. `private`: those of them that stay at the client.
    `mixed_ranks`: clients may have different ranks. `exact`: the result is the sum of what the clients did.
    """

    combine: Callable[[Sequence[Update]], Aggregate]
    paper: str
    idea: str
    turns: tuple[str, ...] = ("AB",)
    private: str = ""
    mixed_ranks: bool = False
    exact: bool = False

    def trained(self, t: int) -> str:
        """The factors that are trained in round `t`, counted from 1: letters of "A", "B", "R"."""
        return self.turns[(t - 1) % len(self.turns)]

    def shared(self, t: int) -> str:
        """The factors that travel in round `t`."""
        return "".join(letter for letter in self.trained(t) if letter not in self.private)


def shares(updates: Sequence[Update], mixed_ranks: bool = False) -> list[tuple[float, Update]]:
    """Each update's part of all examples; those without examples are left out.

    Raises `MethodError` unless there are examples and all have the same names, shapes (`mixed_ranks`: but for the
    rank) and scale (`mixed_ranks`: any).
    """
    total = sum(update.weight for update in updates)
    if not total > 0:
        raise MethodError(f"expected updates with examples behind them, found {len(updates)} updates and no example")
    for update in updates[1:]:
        _compare(updates[0], update, mixed_ranks)
    return [(update.weight / total, update) for update in updates if update.weight > 0]


def _compare(first: Update, other: Update, mixed_ranks: bool) -> None:
    both = f"{first.name} and {other.name}"
    if different := sorted(first.tensors.keys() ^ other.tensors.keys()):
        raise MethodError(
            f"{both}: expected adapters of the same layers; {len(different)} tensors are of one alone, "
            f"the first {different[0]}"
        )
    for name, tensor in first.tensors.items():
        free = rank_sides(name) if mixed_ranks else ()
        shapes = tensor.shape, other.tensors[name].shape
        one, two = ([size for side, size in enumerate(shape) if side not in free] for shape in shapes)
        if one != two:
            wanted = "one model" if mixed_ranks else "one model and one rank (flora, flexlora, hetlora take several)"
            raise MethodError(f"{both}: expected {wanted}, found {name} of the shapes {shapes[0]} and {shapes[1]}")
    if not mixed_ranks and first.scale != other.scale:
        raise MethodError(f"{both}: expected one scale (alpha / rank), found {first.scale:g} and {other.scale:g}")
