"""The two halves of a split model and the graphs that they keep between messages (SplitFed, arXiv:2004.12088).

One step of one client, U-shape, labels at home (arXiv:1812.00564), 2 round trips:

    smashed        = client.lower(samples)               client -> server   hidden states
    hidden         = server.middle(name, smashed)        server -> client   hidden states
    loss, gradient = client.loss(hidden)                 client -> server   gradient of `hidden`
    gradient       = server.back(name, gradient)         server -> client   gradient of `smashed.hidden`; steps
    client.back(gradient)                                                   steps

Plain, the head and the labels at the server, 1 round trip:

    smashed        = client.lower(samples)               client -> server   hidden states, labels
    loss, gradient = server.loss(smashed)                server -> client   gradient; steps
    client.back(gradient)                                                   steps

Without dropout, and where nobody clips, a step is that of `Trainer.step` on the whole model. Each side clips the
gradient of its own parameters. All rows of a step travel together, and their graphs are in memory together.

FLOPs: those of a `Pass` [start:stop] of the model: lower [0:first + 1], middle [first + 1:last + 1], head [last + 1:].
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peertune.errors import MethodError, PayloadError
from peertune.lm.cut import Cut, Parts
from peertune.lm.encode import Row
from peertune.lm.flops import Pass
from peertune.lm.graphs import Graph, backward_of_loss, gradient_of, joined, passes_of, pieces_of, size_of
from peertune.lm.ragged import (
    NO_INTEGERS,
    Bucket,
    Sample,
    Smashed,
    buckets,
    check,
    completion,
    flat_reads,
    pack,
    unpack,
)
from peertune.lm.seeding import seeded
from peertune.lm.train import Trainer, micro_batch


@dataclass(slots=True)
class _Step:
    """One step of a client: its batch, the labels int64 [M], its lower part's graph, and the loss once it is known."""

    batch: list[Bucket]
    targets: Tensor
    graph: Graph
    loss: float | None = None


class ClientHalf:
    """Lower part and, in the U-shape, head of one client's model; `trainer` steps on their LoRA parameters. Final.

    Raises `MethodError`: a model that cannot be cut so, a call out of turn; `PayloadError`: an answer of another
    shape; `TrainingDiverged`. After an error `lower` starts a new step. `ran`: all passes so far. `peak`: those whose
    activations were in memory together at the most in the last step.
    """

    def __init__(self, trainer: Trainer, cut: Cut) -> None:
        self.trainer, self.parts = trainer, Parts(trainer.lm, trainer.adapter, cut)
        self.ran: Counter[Pass] = Counter()
        self.peak: tuple[Pass, ...] = ()
        self._step: _Step | None = None

    def lower(self, samples: Sequence[Sample], seed: int) -> Smashed:
        """Run the lower part and keep its graph. `seed` decides dropout: give each call, and each side, its own."""
        ordered = sorted(samples, key=lambda sample: len(sample.ids))
        lengths = np.array([len(sample.ids) for sample in ordered], np.int32)
        targets = np.array([target for sample in ordered for target in sample.targets], np.int32)
        if not len(targets):
            raise ValueError(f"{len(ordered)} rows, but no token with loss")
        reads = flat_reads(ordered)
        batch = _batch(self.trainer, lengths, reads)
        rows = iter(ordered)
        self.trainer.discard()
        with _training(self.trainer, seed):
            outputs = [self._run([next(rows).ids for _ in part.lengths], part) for part in batch]
        labels = torch.tensor(targets, dtype=torch.long, device=self.trainer.lm.device)
        self.ran.update(passes_of("forward", batch, 0, self.parts.first))
        graph = Graph([], outputs, passes_of("backward", batch, 0, self.parts.first))
        self._step, self.peak = _Step(batch, labels, graph), tuple(graph.passes)
        sent = NO_INTEGERS if self.parts.whole_return else reads
        return Smashed(joined(outputs), lengths, sent, targets if self.parts.cut.plain else NO_INTEGERS)

    def loss(self, hidden: np.ndarray, seed: int) -> tuple[float, np.ndarray]:
        """U-shape: mean cross-entropy over all reads (nats), and the gradient of `hidden`, of the same shape.

        `hidden`: what `ServerHalf.middle` returned. The head's own gradients stay for the step in `back`; a second
        call replaces them.
        """
        step = self._current()
        sizes = [part.tokens if self.parts.whole_return else len(part.rows) for part in step.batch]
        pieces = pieces_of(hidden, sizes, self.parts.width, self.trainer.lm.device)
        leaves = [piece.requires_grad_() for piece in pieces]
        self.trainer.discard()
        with _training(self.trainer, seed):
            read = (self._upper(leaf.to(self.parts.dtype), part) for leaf, part in zip(leaves, step.batch, strict=True))
            step.loss = backward_of_loss(self.parts, read, step.batch, step.targets)
        passes = _both(self.ran, step.batch, self.parts.last + 1)
        self.peak = (*step.graph.passes, max(passes, key=size_of))
        return step.loss, joined([gradient_of(leaf) for leaf in leaves])

    def back(self, gradient: np.ndarray) -> None:
        """Finish the backward pass with the gradient of `Smashed.hidden`, fp32 [N, width], and take the step."""
        step = self._current()
        if step.loss is None and not self.parts.cut.plain:
            raise MethodError("split: a gradient came before the loss of its step was asked for; call `loss` first")
        self._step = None
        step.graph.backward(gradient, self.trainer)
        self.ran.update(step.graph.passes)
        self.trainer.apply(step.loss)

    @property
    def tokens(self) -> int:
        """N: how many gradients of hidden states the step under way waits for."""
        return sum(part.tokens for part in self._current().batch)

    @property
    def returned(self) -> int:
        """How many hidden states it waits for: N, or M of `reads` only."""
        return self.tokens if self.parts.whole_return else len(self._current().targets)

    def _current(self) -> _Step:
        if self._step is None:
            raise MethodError("split: this client has no step under way; call `lower` first")
        return self._step

    def _run(self, ids: Sequence[Sequence[int]], part: Bucket) -> Tensor:
        width = max(len(row) for row in ids)
        padding = [self.trainer.lm.pad_token] * width
        padded = torch.tensor([[*row, *padding[len(row) :]] for row in ids], device=self.trainer.lm.device)
        return pack(self.parts.lower(padded, self.parts.mask_of(part.lengths)), part.lengths).float()

    def _upper(self, hidden: Tensor, part: Bucket) -> Tensor:
        if not self.parts.whole_return:
            return hidden
        upper = self.parts.upper(unpack(hidden, part.lengths), self.parts.mask_of(part.lengths))
        return upper[part.rows, part.places]


class ServerHalf:
    """Middle part and, in the plain variant, head, for clients by name; `trainer` steps on its LoRA parameters. Final.

    One for each client, each with its own adapter (SplitFed V1), or one for all (V2): a step for one client then drops
    the graphs of the others, so let clients take turns. Clients may be cut in different places. Refuses more than
    `settings.batch_size` rows or rows of more than `settings.max_length` tokens. Raises `MethodError`: a model that
    cannot be cut so, a call out of turn; `PayloadError`: what a client sent cannot be; `TrainingDiverged`.
    `ran`, `peak`: as of `ClientHalf`.
    """

    def __init__(self, trainer: Trainer, cuts: Mapping[str, Cut]) -> None:
        made = {cut: Parts(trainer.lm, trainer.adapter, cut) for cut in set(cuts.values())}
        self.trainer = trainer
        self.parts = {client: made[cut] for client, cut in cuts.items()}
        self.ran: Counter[Pass] = Counter()
        self.peak: tuple[Pass, ...] = ()
        self._graphs: dict[str, Graph] = {}

    @property
    def held(self) -> tuple[Pass, ...]:
        """The passes whose activations wait in memory for a gradient."""
        return tuple(one for graph in self._graphs.values() for one in graph.passes)

    def middle(self, client: str, smashed: Smashed, seed: int) -> np.ndarray:
        """U-shape: the hidden states that the client's head needs, fp32 [N, width], or [M, width] of `reads` only."""
        parts = self.parts[client]
        batch, leaves = self._open(parts, smashed)
        outputs = []
        with _training(self.trainer, seed):
            for leaf, part in zip(leaves, batch, strict=True):
                hidden = _run(parts, leaf, part)
                packed = pack(hidden, part.lengths) if parts.whole_return else hidden[part.rows, part.places]
                outputs.append(packed.float())
        self.ran.update(passes_of("forward", batch, parts.first + 1, parts.last))
        self._graphs[client] = Graph(leaves, outputs, passes_of("backward", batch, parts.first + 1, parts.last))
        self.peak = self.held
        return joined(outputs)

    def back(self, client: str, gradient: np.ndarray) -> np.ndarray:
        """U-shape: step with the gradient of what `middle` returned; returns that of the smashed data [N, width]."""
        graph = self._waiting(client)
        del self._graphs[client]
        self.trainer.discard()
        graph.backward(gradient, self.trainer)
        self.ran.update(graph.passes)
        return self._apply(graph.leaves)

    def loss(self, client: str, smashed: Smashed, seed: int) -> tuple[float, np.ndarray]:
        """Plain: step; returns the mean cross-entropy (nats) and the gradient of the smashed data, fp32 [N, width]."""
        parts = self.parts[client]
        batch, leaves = self._open(parts, smashed)
        if not len(smashed.reads) == len(smashed.targets) > 0:
            raise PayloadError(f"expected a label for each of {len(smashed.reads)} reads, found {len(smashed.targets)}")
        targets = torch.tensor(smashed.targets, dtype=torch.long, device=self.trainer.lm.device)
        self.trainer.discard()
        with _training(self.trainer, seed):
            read = (_run(parts, leaf, part)[part.rows, part.places] for leaf, part in zip(leaves, batch, strict=True))
            loss = backward_of_loss(parts, read, batch, targets)
        self.peak = (max(_both(self.ran, batch, parts.first + 1), key=size_of),)
        return loss, self._apply(leaves, loss)

    def returned(self, client: str) -> int:
        """How many gradients of hidden states the step of that client waits for."""
        return sum(len(output) for output in self._waiting(client).outputs)

    def _waiting(self, client: str) -> Graph:
        if client not in self._graphs:
            raise MethodError(
                f"split: no hidden states of {client!r} are waiting for a gradient: none came, or a step for another "
                "client of the same adapter dropped them; call `middle`, then `back`, for one client after the other"
            )
        return self._graphs[client]

    def check(self, lengths: np.ndarray, reads: np.ndarray, targets: np.ndarray) -> None:
        """Raise `PayloadError` unless these integers, as in `Smashed`, describe a batch that is not too large."""
        settings = self.trainer.settings
        check(lengths, reads, targets, settings.batch_size, min(settings.max_length, self.trainer.lm.max_length))

    def _open(self, parts: Parts, smashed: Smashed) -> tuple[list[Bucket], list[Tensor]]:
        self.check(smashed.lengths, smashed.reads, smashed.targets)
        batch = _batch(self.trainer, smashed.lengths, smashed.reads)
        pieces = pieces_of(smashed.hidden, [part.tokens for part in batch], parts.width, self.trainer.lm.device)
        return batch, [piece.requires_grad_() for piece in pieces]

    def _apply(self, leaves: list[Tensor], loss: float | None = None) -> np.ndarray:
        self._graphs.clear()  # they hold the parameters as they were before this step
        self.trainer.apply(loss)
        return joined([gradient_of(leaf) for leaf in leaves])


def samples_of(parts: Parts, rows: Iterable[Row]) -> list[Sample]:
    """What a client trains on: completions, or messages and their classes."""
    return [
        completion(row) if row.label is None else Sample(row.ids, (parts.pooled(row.ids),), (row.label,))
        for row in rows
    ]


@contextmanager
def _training(trainer: Trainer, seed: int) -> Iterator[None]:
    with trainer.lm.using(trainer.adapter, train=True), seeded(seed, trainer.lm.device):
        yield


def _run(parts: Parts, leaf: Tensor, part: Bucket) -> Tensor:
    return parts.middle(unpack(leaf.to(parts.dtype), part.lengths), parts.mask_of(part.lengths))


def _both(ran: Counter[Pass], batch: list[Bucket], start: int) -> list[Pass]:
    """Note both directions of a part that ends with the loss; returns the backward passes."""
    ran.update(passes_of("forward", batch, start, None))
    backward = passes_of("backward", batch, start, None)
    ran.update(backward)
    return backward


def _batch(trainer: Trainer, lengths: np.ndarray, reads: np.ndarray) -> list[Bucket]:
    size = micro_batch(len(lengths), trainer.settings.accumulate, trainer.lm.device)
    return buckets(lengths, reads, size, trainer.lm.device)
