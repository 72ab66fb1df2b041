"""Text from a model."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from peertune.errors import ConfigError
from peertune.lm.classify import classify
from peertune.lm.encode import cut_left, encode_prompt
from peertune.lm.flops import Pass
from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet
from peertune.lm.seeding import seeded
from peertune.lm.settings import Sampling


def generate(
    lm: LanguageModel,
    adapter: str,
    prompts: Sequence[str],
    sampling: Sampling,
    batch_size: int = 64,
    template: bool = False,
) -> list[str]:
    """Continue each prompt; returns the new text only, in the order of the prompts, without special tokens.

    A classifier answers with names of classes. A prompt too long for the context loses its beginning. Sampled text
    depends on the model, `prompts`, `sampling` and `batch_size`, not on what ran before. `template`: the prompts are
    rendered chat templates. Raises `ConfigError` if `max_new_tokens` leaves no room for a prompt.
    """
    if lm.labels:
        return classify(lm, adapter, prompts, sampling, batch_size)
    room = lm.max_length - sampling.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"{lm.source}: expected max_new_tokens below the context of {lm.max_length} tokens, "
            f"found {sampling.max_new_tokens}; lower it."
        )
    heads = [cut_left(lm.tokenizer, encode_prompt(lm.tokenizer, prompt, template), room) for prompt in prompts]
    order = sorted(range(len(heads)), key=lambda index: len(heads[index]))
    texts = [""] * len(heads)
    with quiet(), seeded(sampling.seed, lm.device), lm.using(adapter) as model, torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = len(heads[chosen[-1]])
            ends = _continue(lm, model, [heads[index] for index in chosen], _config(lm, sampling))
            lm.note(adapter, Pass("generation", len(chosen), width, len(ends[0])))
            for index, new in zip(chosen, ends, strict=True):
                texts[index] = _text(lm, heads[index], _until_end(lm, new))
    return texts


def _config(lm: LanguageModel, sampling: Sampling) -> GenerationConfig:
    common = {
        "max_new_tokens": sampling.max_new_tokens,
        "pad_token_id": lm.pad_token,
        "num_beams": 1,
    }
    if sampling.temperature == 0.0:
        return GenerationConfig(do_sample=False, **common)
    # top_k and top_p: neither the library's nor the model's own defaults cut the distribution
    return GenerationConfig(do_sample=True, temperature=sampling.temperature, top_p=1.0, top_k=0, **common)


def _continue(lm: LanguageModel, model: Any, heads: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    """New tokens of each head, as many for all. Heads are padded on the left."""
    width = max(map(len, heads))
    ids = torch.full((len(heads), width), lm.pad_token)
    attention = torch.zeros_like(ids)
    for row, head in enumerate(heads):
        ids[row, width - len(head) :] = torch.tensor(head)
        attention[row, width - len(head) :] = 1
    output = model.generate(
        input_ids=ids.to(lm.device), attention_mask=attention.to(lm.device), generation_config=config
    )
    return output[:, width:].tolist()


def _until_end(lm: LanguageModel, ids: list[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in lm.end_tokens:
            return ids[:position]
    return ids


def _text(lm: LanguageModel, head: list[int], new: list[int]) -> str:
    """Decode after the prompt: some tokenizers drop the space at the start of a text."""
    before = lm.tokenizer.decode(head, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    whole = lm.tokenizer.decode(head + new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(whole)[len(str(before)) :]
