"""What a pass of a model costs: FLOPs and bytes, as polynomials in the shape of its batch.

A transformer multiplies matrices for every token (rows * width), for every pair of tokens in a row
(rows * width ** 2) and, in its head, for every label. So a few small batches tell what any batch costs, exactly, and
counting costs a running step nothing. `lm.calibrate` measures.

FLOPs are those of matrix products, two a multiplication and addition, as torch counts them: what is executed, padding
and the upper triangle of causal attention with it (a kernel may skip some of that).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Monomials = tuple[int, ...]  # rows * width, rows * width ** 2, labels, width, 1; or factors of these
# (rows, width, labels), with a label a row: five that tell all terms apart. One row alone would not do: operations
# that expand rows copy then what they else share
SHAPES = ((2, 2, 2), (3, 2, 3), (2, 3, 2), (2, 4, 2), (3, 3, 3))


class Pass(NamedTuple):
    """One batch that went through a model: `rows` padded to `width` tokens.

    `heads`: label positions in all; of a generation the tokens that each row was continued by. `start` and `stop`:
    only the parts [start:stop] of the model, numbered as in `Costs`, ran; a generation is never in parts. A training
    pass is forward and backward; of a split model each of them comes in a call of its own. `still`: letters of the
    adapter's factors, A, B and R, that were not trained: their gradients were not worked out.
    """

    kind: Literal["forward", "backward", "training", "generation"]
    rows: int
    width: int
    heads: int
    start: int = 0
    stop: int | None = None
    still: str = ""


def monomials(rows: int, width: int, labels: int) -> Monomials:
    """The terms of a batch; the last two are of what its rows share, such as rotary angles: bytes, no FLOPs."""
    return rows * width, rows * width**2, labels, width, 1


def fit(measured: Sequence[int]) -> Monomials:
    """The coefficients of the polynomial that has the values `measured` at `SHAPES`."""
    terms = np.array([monomials(*shape) for shape in SHAPES], dtype=np.float64)
    return tuple(np.rint(np.linalg.solve(terms, np.array(measured, dtype=np.float64))).astype(int).tolist())


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of one model with one shape of adapter.

    Polynomials by part: [what is below the blocks, block 0, ..., the last block, what is above them, loss included].
    `backward` is past frozen weights, and block 0 needs no gradient of its input. `base` and `adapter`: bytes of
    the weights.
    """

    forward: tuple[Monomials, ...]
    backward: tuple[Monomials, ...]
    saved: tuple[Monomials, ...]
    base: int
    adapter: int

    def forward_parts(self, rows: int, width: int, labels: int) -> list[int]:
        """FLOPs of each part for `rows` padded to `width`, with the head at `labels` positions in all."""
        return _values(self.forward, monomials(rows, width, labels))

    def backward_parts(self, rows: int, width: int, labels: int) -> list[int]:
        """FLOPs of each part's gradients: of its adapters, and of its input if there are adapters below."""
        return _values(self.backward, monomials(rows, width, labels))

    def saved_parts(self, rows: int, width: int, labels: int) -> list[int]:
        """Bytes of activations that each part keeps for its backward pass."""
        return _values(self.saved, monomials(rows, width, labels))

    def flops(self, ran: Pass) -> int:
        """What was executed; no matrices are multiplied by the optimiser."""
        shape = (ran.rows, ran.width, ran.heads)
        if ran.kind == "generation":
            return self.generation_flops(*shape)
        forward = 0 if ran.kind == "backward" else sum(self.forward_parts(*shape)[ran.start : ran.stop])
        backward = 0 if ran.kind == "forward" else sum(self.backward_parts(*shape)[ran.start : ran.stop])
        return forward + backward

    def memory(self, *together: Pass) -> int:
        """Bytes in training: weights, the adapter with its gradients and two AdamW moments, and the activations that
        are saved for the backward passes of these batches.

        Not in it: buffers that an operation frees when it ends, and what the allocator keeps in reserve.
        """
        saved = (self.saved_parts(one.rows, one.width, one.heads)[one.start : one.stop] for one in together)
        return self.base + 4 * self.adapter + sum(map(sum, saved))

    def forward_flops(self, rows: int, width: int, labels: int) -> int:
        return self.flops(Pass("forward", rows, width, labels))

    def training_flops(self, rows: int, width: int, labels: int) -> int:
        """Forward and backward of one micro-batch."""
        return self.flops(Pass("training", rows, width, labels))

    def generation_flops(self, rows: int, width: int, new_tokens: int) -> int:
        """`rows` prompts padded to `width`, and `new_tokens` after them with a cache of keys and values.

        The last token is never read. A row that ended runs on until all have.
        """
        steps = new_tokens - 1
        pairs = width**2 + steps * width + steps * (steps + 1) // 2
        return sum(_values(self.forward, (rows * (width + steps), rows * pairs, rows * new_tokens, 0, 0)))

    def training_memory(self, rows: int, width: int, labels: int) -> int:
        return self.memory(Pass("training", rows, width, labels))


def _values(parts: Sequence[Monomials], terms: Monomials) -> list[int]:
    return [sum(factor * term for factor, term in zip(part, terms, strict=True)) for part in parts]
