"""What a model expects at each token of given completions, or of a class, and how far it is from a teacher's view."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import kl_div, log_softmax

from peertune.knowledge import Knowledge, join, pack
from peertune.lm.encode import IGNORED, Batch, Row, collate
from peertune.lm.flops import Pass
from peertune.lm.model import LanguageModel
from peertune.losses import Teacher, distillation_loss, most_probable


@dataclass(frozen=True, eq=False)
class TaughtRow:
    """A row, and what a teacher expects at each of its `loss_tokens`."""

    row: Row
    teacher: Teacher


@dataclass(frozen=True, eq=False)
class Taught:
    """Rows of one step, the weight of their mean loss, and the temperature of the softmax."""

    rows: Sequence[TaughtRow]
    weight: float
    temperature: float


def backward(lm: LanguageModel, adapter: str, model: Any, taught: Taught, size: int) -> float:
    """Add the gradient of the weighted loss, `size` rows of like length at a time; returns that loss."""
    tokens = sum(item.row.loss_tokens for item in taught.rows)
    ordered, loss = sorted(taught.rows, key=lambda item: len(item.row.ids)), 0.0
    for start in range(0, len(ordered), size):
        part = ordered[start : start + size]
        batch = collate([item.row for item in part], lm.pad_token, lm.device)
        teacher = _joined([item.teacher for item in part], lm.device)
        lm.note(adapter, Pass("training", len(part), batch.ids.shape[1], len(teacher.logp)))
        share = distance(model, batch, teacher, taught.temperature) * (taught.weight * len(teacher.logp) / tokens)
        share.backward()
        loss += share.item()
    return loss


def expectations(
    lm: LanguageModel, adapter: str, rows: Sequence[Row], k: int | None = None, batch_size: int = 64
) -> Knowledge:
    """The k most probable tokens at each position that carries loss, row after row; None: all, dense."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    parts = []
    with lm.using(adapter) as model, torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = [rows[index] for index in order[start : start + batch_size]]
            batch = collate(chosen, lm.pad_token, lm.device)
            lengths = np.array([row.loss_tokens for row in chosen], dtype=np.int32)
            lm.note(adapter, Pass("forward", len(chosen), batch.ids.shape[1], int(lengths.sum())))
            parts.append(_known(model, batch, lengths, k))
    return join(parts).select(np.argsort(order))


def distance(model: Any, batch: Batch, teacher: Teacher, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher || model), the mean over the positions of the batch that carry loss (nats)."""
    if batch.mask is not None:
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits.float()
        expected = log_softmax(teacher.logp / temperature, 1)
        found = log_softmax(logits / temperature, 1)
        return kl_div(found, expected, reduction="batchmean", log_target=True) * temperature**2
    hidden = _hidden(model, batch)
    head = model.get_output_embeddings()
    return distillation_loss(hidden, head.weight, head.bias, teacher, temperature)


def with_teacher(rows: Sequence[Row], known: Knowledge) -> list[TaughtRow]:
    """Those of `rows` of which something is known: `known` has a problem for each, of as many positions or none.

    Raises `ValueError` if a problem has another number of positions.
    """
    ends = np.cumsum(known.lengths)
    found = []
    for row, end, length in zip(rows, ends.tolist(), known.lengths.tolist(), strict=True):
        if length not in (0, row.loss_tokens):
            raise ValueError(f"expected {row.loss_tokens} positions of a problem, found {length}")
        if length:
            found.append(TaughtRow(row, _slice(known, slice(end - length, end))))
    return found


def _joined(teachers: Sequence[Teacher], device: torch.device) -> Teacher:
    """The teachers of several rows as that of a batch."""
    logp = torch.cat([teacher.logp for teacher in teachers]).to(device)
    ids = [teacher.ids for teacher in teachers if teacher.ids is not None]
    tails = [teacher.tail for teacher in teachers if teacher.tail is not None]
    return Teacher(logp, torch.cat(ids).to(device), torch.cat(tails).to(device)) if ids else Teacher(logp)


def _slice(known: Knowledge, rows: slice) -> Teacher:
    logp = torch.from_numpy(known.logp[rows])
    if known.ids is None or known.tail is None:
        return Teacher(logp)
    return Teacher(logp, torch.from_numpy(known.ids[rows]), torch.from_numpy(known.tail[rows]))


def _known(model: Any, batch: Batch, lengths: np.ndarray, k: int | None) -> Knowledge:
    if batch.mask is not None:
        return pack(model(input_ids=batch.ids, attention_mask=batch.mask).logits.float().cpu().numpy(), lengths, k)
    head = model.get_output_embeddings()
    width = head.weight.shape[0]
    found = most_probable(_hidden(model, batch), head.weight, head.bias, k)
    logp = found.logp.float().cpu().numpy()
    if found.ids is None or found.tail is None:
        return Knowledge(lengths, width, logp)
    return Knowledge(lengths, width, logp, found.ids.cpu().numpy(), found.tail.float().cpu().numpy())


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
