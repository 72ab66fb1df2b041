"""Read a base model and its tokenizer from a folder, and refuse what would fail, or be wrong, later."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.activations import NewGELUActivation
from transformers.models.bloom.modeling_bloom import BloomGelu

from peertune.errors import ConfigError
from peertune.lm.seeding import seeded

UNLIMITED = 10**9
UNBOUNDED_CONTEXT = 2048  # tokens, for families without a position limit (bloom)


def load_tokenizer(folder: Path, source: str, writes: bool = True) -> Any:
    """The tokenizer as tokenizer.json describes it, with a padding token and, if the model `writes`, an end token.

    Raises `ConfigError`.
    """
    # AutoTokenizer would replace the pre-tokenizer of tokenizer.json by that of the model family's class
    loader = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer: Any = loader.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ConfigError(
            f"model {source!r}: expected a tokenizer (tokenizer.json) in {folder}, found none that can be read; "
            f"put the model's own there ({first_line(error)})"
        ) from error
    if writes and tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model {source!r}: its tokenizer names no end-of-sequence token, so it cannot learn to stop. "
            "Set eos_token in tokenizer_config.json."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"model {source!r}: its tokenizer names no padding token. Set pad_token in tokenizer_config.json."
        )
    tokenizer.model_max_length = UNLIMITED  # rows are cut, and counted, when they are encoded
    return tokenizer


def load_base(folder: Path, source: str, tokenizer: Any, device: str) -> Any:
    """The frozen base model on `device`: fp32, or bf16 on a GPU. Raises `ConfigError`."""
    base, report = _read(AutoModelForCausalLM, "a causal language model", folder, source, dtype=precision(device))
    _check_complete(report, source)
    _check_vocabulary(tokenizer, base, source)
    as_writer(base, tokenizer)
    return base.requires_grad_(False).eval().to(device)


def load_classifier(folder: Path, source: str, tokenizer: Any, device: str, classes: int, seed: int) -> Any:
    """As `load_base`, for sequence classification; the head is fp32 and new, drawn by `seed`. Raises `ConfigError`."""
    options = {"dtype": precision(device), "num_labels": classes, "ignore_mismatched_sizes": True}
    with seeded(seed, torch.device("cpu")):  # transformers draws what is absent
        base, report = _read(
            AutoModelForSequenceClassification, "an encoder or causal model", folder, source, **options
        )
    _check_complete(report, source, new=head_of(base))
    _check_vocabulary(tokenizer, base, source)
    as_classifier(base, tokenizer, seed)
    return base.requires_grad_(False).eval().to(device)


def as_writer(base: Any, tokenizer: Any) -> None:
    """Make of a causal model what this package runs: plain generation, fewer operations."""
    base.generation_config = _plain_generation(base, tokenizer)
    _fuse_gelu(base)


def as_classifier(base: Any, tokenizer: Any, seed: int) -> None:
    """The same of a sequence classifier, whose head is drawn anew by `seed`."""
    base.config.pad_token_id = tokenizer.pad_token_id  # by which causal models find the last token of a row
    base.config.use_cache = False
    _fuse_gelu(base)
    _begin(base, head_of(base), seed)


def head_of(base: Any) -> list[str]:
    """The names of the modules of a classifier's head that have weights: what is not its backbone, and BERT's pooler.

    A pooler is the dense layer that other encoders have in their heads: LoRA on a frozen one learns far worse.
    """
    parts = [(name, child) for name, child in base.named_children() if child is not base.base_model]
    if pooler := getattr(base.base_model, "pooler", None):
        parts.append((f"{base.base_model_prefix}.pooler", pooler))
    return [name for name, part in parts if any(True for _ in part.parameters())]


def context_of(base: Any) -> int:
    """How many tokens a row may have."""
    limit: int = getattr(base.config, "max_position_embeddings", None) or UNBOUNDED_CONTEXT
    table = getattr(getattr(base.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return limit if padding is None else limit - padding - 1  # roberta counts positions from there


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines() or ["no details"]
    return f"{type(error).__name__}: {lines[0][:200]}"


def precision(device: str) -> torch.dtype:
    """Of base weights on that device."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32


def _read(loader: Any, expected: str, folder: Path, source: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model and which of its weights were not there."""
    try:
        return loader.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    except Exception as error:  # a damaged config.json raises anything, from KeyError to errors of huggingface_hub
        raise ConfigError(
            f"model {source!r}: expected {expected} that transformers can read; copy or download it "
            f"again ({first_line(error)})"
        ) from error


def _begin(base: Any, head: list[str], seed: int) -> None:
    """Torch's own initial values for the head, whatever was there before."""
    with seeded(seed, torch.device("cpu")):
        for name in head:
            for module in base.get_submodule(name).float().modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
            base.get_submodule(name).register_forward_pre_hook(_in_float32)


def _in_float32(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """A bf16 backbone feeds an fp32 head."""
    return inputs[0].float(), *inputs[1:]


def _check_complete(report: dict[str, Any], source: str, new: Sequence[str] = ()) -> None:
    # transformers fills absent weights with random numbers; such a model would train, but badly
    names = {key if isinstance(key, str) else key[0] for key in (*report["missing_keys"], *report["mismatched_keys"])}
    absent = sorted(name for name in names if not any(name.startswith(f"{part}.") for part in new))
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
