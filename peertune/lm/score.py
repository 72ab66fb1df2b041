"""Losses of given completions: of their tokens, or of their class."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from peertune.lm.encode import IGNORED, Batch, Row, collate
from peertune.lm.flops import Pass
from peertune.lm.model import LanguageModel


def losses(lm: LanguageModel, adapter: str, rows: Sequence[Row], batch_size: int = 64) -> list[tuple[float, int]]:
    """For each row, in order: the summed negative log-likelihood (nats) of its completion, and its tokens."""
    found: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    with lm.using(adapter) as model, torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([rows[index] for index in chosen], lm.pad_token, lm.device)
            tokens = [rows[index].loss_tokens for index in chosen]
            lm.note(adapter, Pass("forward", len(batch.ids), batch.ids.shape[1], sum(tokens)))
            of_rows = completion_losses(model, batch).double().cpu().split(tokens)
            for index, of_row in zip(chosen, of_rows, strict=True):
                found[index] = (float(of_row.sum()), len(of_row))
    return found


def completion_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood (nats, fp32) of each label, row after row; shape (label,).

    Causal attention never looks right, so padding on the right needs no mask, and attention is cheaper without.
    """
    if batch.mask is not None:
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        return cross_entropy(logits.float(), batch.labels, reduction="none")
    row, position = (batch.labels != IGNORED).nonzero(as_tuple=True)
    with _head_only_at(model, row, position - 1):  # position p predicts token p + 1
        logits = model(input_ids=batch.ids, attention_mask=torch.ones_like(batch.ids), use_cache=False).logits[0]
    return cross_entropy(logits.float(), batch.labels[row, position], reduction="none")


@contextmanager
def _head_only_at(model: Any, row: torch.Tensor, position: torch.Tensor) -> Iterator[None]:
    """In the block the LM head gets these hidden states only, as one row: its work is a quarter of a small model's."""
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: (inputs[0][row, position].unsqueeze(0), *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()
