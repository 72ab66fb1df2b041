"""A classifier's answers: the label of a text, as names and as probabilities."""

import difflib
from collections.abc import Sequence

import torch

from peertune.errors import ConfigError
from peertune.lm.encode import Row, encode_message, pad
from peertune.lm.flops import Pass
from peertune.lm.model import LanguageModel
from peertune.lm.seeding import seeded
from peertune.lm.settings import Sampling


def encode_labelled(lm: LanguageModel, text: str, name: str, max_length: int) -> Row:
    """A text and the name of its class. Raises `ConfigError` if there is no such class."""
    label = name.strip()
    if label not in lm.labels:
        near = difflib.get_close_matches(label[:100], lm.labels, 1, 0)[0]
        raise ConfigError(
            f"expected one of {len(lm.labels)} labels as a completion, found another text of {len(label)} characters; "
            f"the nearest label: {near!r}."
        )
    return encode_message(lm.tokenizer, text, max_length, lm.labels.index(label))


def class_logits(lm: LanguageModel, adapter: str, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
    """The logits of each class for each text, fp32 (text, class), on the CPU."""
    rows = [encode_message(lm.tokenizer, text, lm.max_length).ids for text in texts]
    found = torch.empty(len(rows), len(lm.labels))
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    with lm.using(adapter) as model, torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids, mask = pad([rows[index] for index in chosen], lm.pad_token, lm.device)
            lm.note(adapter, Pass("forward", len(ids), ids.shape[1], len(ids)))
            found[chosen] = model(input_ids=ids, attention_mask=mask).logits.float().cpu()
    return found


def classify(
    lm: LanguageModel, adapter: str, texts: Sequence[str], sampling: Sampling, batch_size: int = 64
) -> list[str]:
    """The name of the most probable class of each text; at a temperature, of one drawn by its probability."""
    logits = class_logits(lm, adapter, texts, batch_size)
    if sampling.temperature == 0.0:
        chosen = logits.argmax(1)
    else:
        with seeded(sampling.seed, torch.device("cpu")):
            chosen = torch.multinomial((logits / sampling.temperature).softmax(1), 1)[:, 0]
    return [lm.labels[index] for index in chosen.tolist()]
