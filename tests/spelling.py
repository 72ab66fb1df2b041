"""Tokenizers of several kinds, small and published, for tests of alignment."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny import TEXTS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

REAL = Path(__file__).parents[2] / "shared" / "data" / "tokenizers"
BUNDLED = Path(__file__).parents[1] / "peertune" / "models"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the published tokenizers are not here")
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def of_model(model: Any, decoder: Any = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    if decoder is not None:
        tokenizer.decoder = decoder
    return fast(tokenizer)


def byte_level(*words: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of these words, without merges."""
    return of_model(models.BPE({word: id for id, word in enumerate(words)}, []), decoders.ByteLevel())


@cache
def sentencepiece_like(metaspace: bool = False) -> PreTrainedTokenizerFast:
    """BPE with byte fallback, and a space in front of each text, as Llama's; its roles as its file has them."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special + BYTE_TOKENS, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    # as converters leave it: the byte tokens belong to the model, the others are special
    parts = json.loads(tokenizer.to_str())
    parts["added_tokens"] = [each for each in parts["added_tokens"] if each["content"] in special]
    return fast(Tokenizer.from_str(json.dumps(parts)), unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def bundled(name: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(BUNDLED / name)
