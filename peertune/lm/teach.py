"""What a model expects at each token of given completions, or of a class, and how far it is from a teacher's view."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn.functional import pad

from peertune.knowledge import Knowledge, join, pack
from peertune.lm.encode import IGNORED, Batch, Row, collate
from peertune.lm.flops import Pass
from peertune.lm.model import LanguageModel
from peertune.losses import Loss, Teacher, most_probable, most_probable_and_loss, taught_loss

Part = TypeVar("Part")


@dataclass(frozen=True, eq=False)
class TaughtRow:
    """A row, and what a teacher expects at n of its `loss_tokens`. `places` int64 [n]: which; None: all, in order."""

    row: Row
    teacher: Teacher
    places: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Taught:
    """Rows of one step, the weight of their mean loss against their teachers, and what that loss is. `labels`: the
    weight of the mean cross-entropy of the rows' own tokens, beside it.
    """

    rows: Sequence[TaughtRow]
    weight: float
    loss: Loss
    labels: float = 0.0


def backward(lm: LanguageModel, adapter: str, model: Any, taught: Taught, size: int) -> float:
    """Add the gradient of the weighted loss, `size` rows of like length at a time; returns that loss."""
    weights = sum(item.teacher.total for item in taught.rows)
    tokens = sum(item.row.loss_tokens for item in taught.rows)
    ordered, loss = sorted(taught.rows, key=lambda item: len(item.row.ids)), 0.0
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        batch = collate([item.row for item in part], lm.pad_token, lm.device)
        teacher, places = _joined(part, lm.device)
        labels = sum(item.row.loss_tokens for item in part) if taught.labels else 0
        lm.note(adapter, Pass("training", len(part), batch.ids.shape[1], len(teacher.logp) + labels))
        outputs, shares = read(model, batch), []
        if len(teacher.logp):
            shares.append(outputs.loss(teacher, taught.loss, places) * (taught.weight * teacher.total / weights))
        if labels:
            shares.append(outputs.loss(_labels(batch), Loss()) * (taught.labels * labels / tokens))
        share = torch.stack(shares).sum()
        share.backward()
        loss += share.item()
    return loss


def expectations(
    lm: LanguageModel, adapter: str, rows: Sequence[Row], k: int | None = None, batch_size: int = 64
) -> Knowledge:
    """The k most probable tokens at each position that carries loss, row after row; None: all, dense."""

    def known(model: Any, batch: Batch, lengths: np.ndarray) -> Knowledge:
        if batch.mask is not None:
            logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
            return pack(logits.float().cpu().numpy(), lengths, k)
        outputs = read(model, batch)
        return _packed(most_probable(outputs.hidden, outputs.weight, outputs.bias, k), lengths, len(outputs.weight))

    parts, order = _of_batches(lm, adapter, rows, known, batch_size)
    return join(parts).select(order)


def assess(lm: LanguageModel, adapter: str, rows: Sequence[Row], k: int) -> tuple[Knowledge, np.ndarray]:
    """The `k` most probable tokens at each position that carries loss, and what the model loses on each row's own
    tokens, summed nats, float32 [rows]. Of a row where something is no number nothing is known.
    """

    def known(model: Any, batch: Batch, lengths: np.ndarray) -> tuple[Knowledge, np.ndarray]:
        outputs, labels = read(model, batch), batch.labels[batch.labels != IGNORED]
        found, losses = most_probable_and_loss(outputs.hidden, outputs.weight, outputs.bias, labels, k)
        sums = np.add.reduceat(losses.cpu().numpy(), np.cumsum(lengths) - lengths)
        return _packed(found, lengths, len(outputs.weight)), sums

    parts, order = _of_batches(lm, adapter, rows, known)
    found, nats = join([part for part, _ in parts]).select(order), np.concatenate([sums for _, sums in parts])[order]
    finite = np.bincount(found.problems[~found.sound], minlength=len(rows)) == 0
    return found.only(finite & np.isfinite(nats)), nats


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model's head reads at the n positions that carry loss, `hidden` [n, d], and the head."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None

    def loss(self, teacher: Teacher, loss: Loss, places: torch.Tensor | None = None) -> torch.Tensor:
        """The mean over positions, those at `places` or all, one for each row of the teacher (nats)."""
        hidden = self.hidden if places is None else self.hidden[places]
        return taught_loss(hidden, self.weight, self.bias, teacher, loss)


def read(model: Any, batch: Batch) -> Outputs:
    """A forward pass. Of a classifier the logits themselves, with a head that changes nothing."""
    if batch.mask is not None:
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits.float()
        return Outputs(logits, torch.eye(logits.shape[1], device=logits.device), None)
    head = model.get_output_embeddings()
    return Outputs(_hidden(model, batch), head.weight, head.bias)


def with_teacher(rows: Sequence[Row], known: Knowledge) -> list[TaughtRow]:
    """Those of `rows` of which something is known: `known` has a problem for each, of as many positions or none.

    Raises `ValueError` if a problem has another number of positions.
    """
    ends = np.cumsum(known.lengths)
    found = []
    for row, end, length in zip(rows, ends.tolist(), known.lengths.tolist(), strict=True):
        if length not in (0, row.loss_tokens):
            raise ValueError(f"expected {row.loss_tokens} positions of a problem, found {length}")
        places = np.arange(end - length, end)
        if known.counts is not None:
            places = places[known.counts[places] > 0]  # a row of no entries says nothing
        if len(places):
            whole = len(places) == length
            at = None if whole else torch.from_numpy(places - (end - length))
            found.append(TaughtRow(row, teacher_of(known, places), at))
    return found


def teacher_of(known: Knowledge, rows: np.ndarray) -> Teacher:
    """What `known` says in these rows."""
    logp = torch.from_numpy(known.logp[rows])
    if known.ids is None or known.tail is None:
        return Teacher(logp)
    return Teacher(logp, torch.from_numpy(known.ids[rows]), torch.from_numpy(known.tail[rows]))


def _joined(items: Sequence[TaughtRow], device: torch.device) -> tuple[Teacher, torch.Tensor | None]:
    """The teachers of several rows as that of a batch, and which of its positions they are of; None: all, in order."""
    teachers, places, before = [item.teacher for item in items], None, 0
    if any(item.places is not None for item in items):
        places = []
        for item in items:
            own = torch.arange(item.row.loss_tokens) if item.places is None else item.places
            places.append(own + before)
            before += item.row.loss_tokens
        places = torch.cat(places).to(device)
    if teachers[0].ids is None:
        return Teacher(torch.cat([teacher.logp for teacher in teachers]).to(device)), places
    return one_after_the_other(teachers, device), places


def one_after_the_other(teachers: Sequence[Teacher], device: torch.device | str = "cpu") -> Teacher:
    """The positions of several sparse teachers as those of one."""
    k = max(teacher.logp.shape[1] for teacher in teachers)
    parts = zip(*(_widened(teacher, k) for teacher in teachers), strict=True)
    return Teacher(*(torch.cat(part).to(device) for part in parts))


def _widened(teacher: Teacher, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Its arrays with `k` entries a row, those beyond its own padding, and weights."""
    assert teacher.ids is not None and teacher.tail is not None
    more = k - teacher.logp.shape[1]
    ids = torch.cat([teacher.ids, teacher.ids[:, :1].expand(-1, more)], 1)
    weights = torch.ones(len(ids)) if teacher.weights is None else teacher.weights
    return pad(teacher.logp, (0, more), value=-torch.inf), ids, teacher.tail, weights


def _labels(batch: Batch) -> Teacher:
    """A teacher that is certain of the batch's own tokens."""
    ids = batch.labels[batch.labels != IGNORED][:, None]
    certain = torch.zeros(ids.shape, device=ids.device)
    return Teacher(certain, ids, certain[:, 0] - torch.inf)


def _packed(found: Teacher, lengths: np.ndarray, width: int) -> Knowledge:
    logp = found.logp.float().cpu().numpy()
    if found.ids is None or found.tail is None:
        return Knowledge(lengths, width, logp)
    return Knowledge(lengths, width, logp, found.ids.cpu().numpy(), found.tail.float().cpu().numpy())


def _of_batches(
    lm: LanguageModel,
    adapter: str,
    rows: Sequence[Row],
    known: Callable[[Any, Batch, np.ndarray], Part],
    batch_size: int = 64,
) -> tuple[list[Part], np.ndarray]:
    """What is `known` (model, batch, positions of each row) of batches of like length, and the place of each row in
    them.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    parts = []
    with lm.using(adapter) as model, torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = [rows[index] for index in order[start : start + batch_size]]
            batch = collate(chosen, lm.pad_token, lm.device)
            lengths = np.array([row.loss_tokens for row in chosen], dtype=np.int32)
            lm.note(adapter, Pass("forward", len(chosen), batch.ids.shape[1], int(lengths.sum())))
            parts.append(known(model, batch, lengths))
    return parts, np.argsort(order)


def _hidden(model: Any, batch: Batch) -> torch.Tensor:
    """What the head reads at the positions that carry loss; [position, d]."""
    row, position = (batch.labels != IGNORED).nonzero(as_tuple=True)
    with _before_the_head(model) as read:
        model(input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids), use_cache=False)
    return read[0][row, position - 1]


@contextmanager
def _before_the_head(model: Any) -> Iterator[list[torch.Tensor]]:
    """In the block the list gets the head's inputs, and the head itself only one position of them."""
    read: list[torch.Tensor] = []

    def catch(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        read.append(inputs[0])
        return inputs[0][:1, :1], *inputs[1:]

    hook = model.get_output_embeddings().register_forward_pre_hook(catch)
    try:
        yield read
    finally:
        hook.remove()
