"""What a half of a split model keeps between two messages, and how packed hidden states go in and out of a graph."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peertune.errors import PayloadError
from peertune.lm.cut import Parts
from peertune.lm.flops import Pass
from peertune.lm.ragged import Bucket
from peertune.lm.train import Trainer


@dataclass(frozen=True, slots=True)
class Graph:
    """A forward pass that waits for the gradient of its `outputs`; leaves and outputs are packed, fp32 [n, width].

    `passes`: the backward passes that it stands for.
    """

    leaves: list[Tensor]
    outputs: list[Tensor]
    passes: list[Pass]

    def backward(self, gradient: np.ndarray, trainer: Trainer) -> None:
        width, device = self.outputs[0].shape[1], self.outputs[0].device
        pieces = pieces_of(gradient, [len(output) for output in self.outputs], width, device)
        # autograd leaves out the parameters of an adapter that is not in use, though they are in the graph
        with trainer.lm.using(trainer.adapter, train=True):
            for output, piece in zip(self.outputs, pieces, strict=True):
                output.backward(piece)


def passes_of(kind: Literal["forward", "backward"], batch: list[Bucket], start: int, last: int | None) -> list[Pass]:
    """The buckets as they go through a part that ends with block `last` - 1, or with the loss (None)."""
    stop = None if last is None else last + 1
    heads = [len(part.rows) if stop is None else 0 for part in batch]
    shapes = [(len(part.lengths), int(part.lengths.max())) for part in batch]
    return [Pass(kind, *shape, labels, start, stop) for shape, labels in zip(shapes, heads, strict=True)]


def size_of(one: Pass) -> int:
    return one.rows * one.width


def backward_of_loss(parts: Parts, read: Iterable[Tensor], batch: list[Bucket], targets: Tensor) -> float:
    """Mean cross-entropy (nats) over all of `targets`; `read`: for each bucket the hidden states [m, width]."""
    loss = 0.0
    shares = targets.split([len(part.rows) for part in batch])
    for hidden, target in zip(read, shares, strict=True):
        logits = parts.readout(hidden).float()
        if bool(((target < 0) | (target >= logits.shape[1])).any()):
            raise PayloadError(f"expected labels from 0 to {logits.shape[1] - 1}")
        losses = cross_entropy(logits, target, reduction="none")
        share = losses @ torch.full_like(losses, 1 / len(targets))
        share.backward()
        loss += share.item()
    return loss


def pieces_of(packed: np.ndarray, sizes: Sequence[int], width: int, device: torch.device) -> list[Tensor]:
    """fp32 [sum of sizes, width] -> one tensor [size, width] for each. Raises `PayloadError` if it is not."""
    expected = (sum(sizes), width)
    if packed.shape != expected or packed.dtype != np.float32:
        raise PayloadError(f"expected float32 {expected}, found {packed.dtype} {packed.shape}")
    return list(torch.tensor(packed, device=device).split(list(sizes)))


def gradient_of(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def joined(parts: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([part.detach() for part in parts]).cpu().numpy()
