"""Token losses of given completions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from peertune.lm.encode import IGNORED, Batch, Row, collate
from peertune.lm.model import LanguageModel


def losses(lm: LanguageModel, adapter: str, rows: Sequence[Row], batch_size: int = 64) -> list[tuple[float, int]]:
    """For each row, in order: the summed negative log-likelihood (nats) of its completion, and its tokens."""
    found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    with lm.using(adapter) as model, torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([rows[index] for index in chosen], lm.pad_token, lm.device)
            sums = completion_losses(model, batch).double().sum(1).tolist()
            for index, total in zip(chosen, sums, strict=True):
                found[index] = (total, len(rows[index].ids) - rows[index].prompt_length)
    return found


def completion_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood (nats, fp32) of each label, 0 where there is none.

    Shape (row, kept), where `kept` are the positions from the first label of any row on: the LM head is not
    computed before it, which is most of its work when prompts are long.
    """
    has_label = (batch.labels != IGNORED).any(0)
    first = int(has_label.int().argmax()) if bool(has_label.any()) else batch.labels.shape[1] - 1
    kept = batch.labels.shape[1] - first
    output = model(
        input_ids=batch.ids, attention_mask=batch.attention, use_cache=False, logits_to_keep=kept + 1
    ).logits[:, :-1]  # position p predicts token p + 1
    flat = cross_entropy(
        output.float().flatten(0, 1),
        batch.labels[:, first:].flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return flat.view(len(batch.ids), kept)
