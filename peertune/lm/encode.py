"""Text to token rows: what the model is given, and which tokens carry loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100  # the label that cross-entropy skips


@dataclass(frozen=True, slots=True)
class Row:
    """One example as tokens; loss is on `ids[prompt_length:]`, or, for a classifier, on the class `label`.

    `prompt_length` >= 1, since nothing predicts a first token. `truncated`: it was too long and lost tokens.
    """

    ids: tuple[int, ...]
    prompt_length: int
    truncated: bool
    label: int | None = None

    @property
    def loss_tokens(self) -> int:
        return len(self.ids) - self.prompt_length if self.label is None else 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right; int64 of shape (row, token), but for `labels` (row) of a classifier."""

    ids: torch.Tensor
    labels: torch.Tensor  # the token itself in a completion, else -100; or classes
    mask: torch.Tensor | None = None  # of a classifier: 1 where there is a token, 0 where there is padding


def encode_prompt(tokenizer: Any, prompt: str, template: bool = False) -> list[int]:
    """Tokens of a prompt as the model sees it when it generates: BOS first, if the tokenizer has one.

    `template`: `prompt` is a rendered chat template, so names of control tokens in it are control tokens and
    it may bring its own BOS. Otherwise they are plain text: data cannot forge the end of a turn.
    """
    ids = _tokens(tokenizer, prompt, template)
    start = tokenizer.bos_token_id
    if start is None:
        # an empty prompt still needs a token to predict the first one from; EOS separates documents
        return ids or [_end(tokenizer)]
    return ids if template and ids[:1] == [start] else [start, *ids]


def encode(tokenizer: Any, prompt: str, completion: str, max_length: int, template: bool = False) -> Row:
    """BOS + prompt + completion + EOS, at most `max_length` tokens.

    Too long: the prompt loses its beginning (BOS stays). A completion loses its end, EOS first, only if it is
    too long by itself. `template`: prompt and completion are a rendered chat template of one's own data, as in
    `encode_prompt`; never for text that others wrote.
    """
    head = encode_prompt(tokenizer, prompt, template)
    tail = _completion_tokens(tokenizer, prompt, completion, template)
    if len(head) + len(tail) <= max_length:
        return Row((*head, *tail), len(head), False)
    kept = cut_left(tokenizer, head, max(1, max_length - len(tail)))
    return Row((*kept, *tail)[:max_length], len(kept), True)


def encode_message(tokenizer: Any, text: str, max_length: int, label: int | None = None) -> Row:
    """A whole text as a classifier sees it: in the frame of its tokenizer ([CLS] ... [SEP]), or after BOS.

    At most `max_length` >= 2 tokens: a longer text loses its end, the frame stays. Names of special tokens are text.
    """
    framed = tokenizer.cls_token_id is not None
    ids = tokenizer.encode(text, split_special_tokens=True) if framed else encode_prompt(tokenizer, text)
    kept = ids
    if len(ids) > max_length:
        kept = [*ids[: max_length - 1], ids[-1]] if framed else ids[:max_length]
    return Row(tuple(kept), len(kept), len(ids) > max_length, label)


def cut_left(tokenizer: Any, ids: list[int], length: int) -> list[int]:
    """The last `length` >= 1 tokens of a prompt, with its BOS still in front."""
    if len(ids) <= length:
        return ids
    if ids[0] == tokenizer.bos_token_id:
        return [ids[0], *ids[len(ids) - length + 1 :]]
    return ids[-length:]


def collate(rows: Sequence[Row], pad_id: int, device: torch.device | str) -> Batch:
    """Pad rows on the right to the longest; all have a `label`, or none has."""
    ids, mask = pad([row.ids for row in rows], pad_id, device)
    if rows[0].label is not None:
        return Batch(ids, torch.tensor([row.label for row in rows]).to(device), mask)
    return Batch(ids, torch.tensor([_labels(row, ids.shape[1]) for row in rows]).to(device))


def pad(ids: Sequence[Sequence[int]], pad_id: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens padded on the right to the longest row, and 1 where there is a token, else 0; int64 (row, token)."""
    width = max(map(len, ids))
    padded = [[*row, *[pad_id] * (width - len(row))] for row in ids]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in ids]
    return torch.tensor(padded).to(device), torch.tensor(mask).to(device)


def render_example(row: Row, tokenizer: Any, labels: Sequence[str] = ()) -> str:
    """Plain-text view of one example: the text given, then the tokens that carry loss, each in brackets, or the class.

    `labels`: the names of the classes.
    """
    given, learned = row.ids[: row.prompt_length], row.ids[row.prompt_length :]
    cut = ", truncated" if row.truncated else ""
    head = f"given ({len(given)} tokens, no loss{cut}):\n{tokenizer.decode(list(given))}\n"
    if row.label is not None:
        return f"{head}learned (1 class of {len(labels)}):\n[{labels[row.label]}]"
    pieces = "".join(f"[{str(tokenizer.decode([token])).replace(chr(10), chr(92) + 'n')}]" for token in learned)
    return f"{head}learned ({len(learned)} tokens):\n{pieces}"


def _labels(row: Row, width: int) -> list[int]:
    return [*[IGNORED] * row.prompt_length, *row.ids[row.prompt_length :], *[IGNORED] * (width - len(row.ids))]


def _completion_tokens(tokenizer: Any, prompt: str, completion: str, template: bool) -> list[int]:
    """Tokens of the completion after the prompt, and EOS.

    Tokenised with the prompt in front (some tokenizers add a space at the start of a text) where that leaves
    the prompt's own tokens as they are. Where the two would merge, alone: in use the prompt comes alone, too.
    """
    alone, together = _tokens(tokenizer, prompt, template), _tokens(tokenizer, prompt + completion, template)
    joined = together[: len(alone)] == alone
    return [
        *(together[len(alone) :] if joined else _tokens(tokenizer, completion, template)),
        _end(tokenizer),
    ]


def _tokens(tokenizer: Any, text: str, template: bool) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not template)


def _end(tokenizer: Any) -> int:
    return int(tokenizer.eos_token_id)  # LanguageModel.load makes sure that there is one
