"""Read a base model and its tokenizer from a folder, and refuse what would fail, or be wrong, later."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.activations import NewGELUActivation
from transformers.models.bloom.modeling_bloom import BloomGelu

from peertune.errors import ConfigError

UNLIMITED = 10**9


def load_tokenizer(folder: Path, source: str) -> Any:
    """The tokenizer as tokenizer.json describes it, with an end and a padding token. Raises `ConfigError`."""
    # AutoTokenizer would replace the pre-tokenizer of tokenizer.json by that of the model family's class
    loader = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer: Any = loader.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ConfigError(
            f"model {source!r}: expected a tokenizer (tokenizer.json) in {folder}, found none that can be read; "
            f"put the model's own there ({first_line(error)})"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model {source!r}: its tokenizer names no end-of-sequence token, so it cannot learn to stop. "
            "Set eos_token in tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = UNLIMITED  # rows are cut, and counted, when they are encoded
    return tokenizer


def load_base(folder: Path, source: str, tokenizer: Any, device: str) -> Any:
    """The frozen base model on `device`: fp32, or bf16 on a GPU. Raises `ConfigError`."""
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    loader: Any = AutoModelForCausalLM
    try:
        base, report = loader.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # a damaged config.json raises anything, from KeyError to errors of huggingface_hub
        raise ConfigError(
            f"model {source!r}: expected a causal language model that transformers can read; copy or download it "
            f"again ({first_line(error)})"
        ) from error
    _check_complete(report, source)
    _check_vocabulary(tokenizer, base, source)
    base.generation_config = _plain_generation(base, tokenizer)
    _fuse_gelu(base)
    return base.requires_grad_(False).eval().to(device)


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines() or ["no details"]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _check_complete(report: dict[str, Any], source: str) -> None:
    # transformers fills absent weights with random numbers; such a model would train, but badly
    absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if absent:
        raise ConfigError(
            f"model {source!r}: {len(absent)} weights are absent or of another shape than config.json says, "
            f"the first {absent[0]}. Copy or download it again."
        )


def _check_vocabulary(tokenizer: Any, base: Any, source: str) -> None:
    rows = base.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ConfigError(
            f"model {source!r}: its tokenizer has token ids up to {largest}, the model only up to {rows - 1}. "
            "Put the tokenizer that belongs to the model beside it."
        )


def _fuse_gelu(base: Any) -> None:
    """The tanh form of GELU, which gpt2 and bloom spell out in eight operations, as the one that torch has for it."""
    for module in list(base.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation | BloomGelu):
                setattr(module, name, torch.nn.GELU("tanh"))


def _plain_generation(base: Any, tokenizer: Any) -> GenerationConfig:
    """Keep a model's end tokens, drop its sampling habits (top_k, repetition penalty ...)."""
    ends = base.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return GenerationConfig(
        eos_token_id=sorted({*listed, tokenizer.eos_token_id}),
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
