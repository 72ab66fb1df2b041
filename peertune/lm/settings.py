"""Settings of adapters, training and sampling. The defaults suit models of a few million parameters."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """A LoRA adapter (Hu et al. 2021): W + alpha / rank * B A.

    `target_modules`: names of the layers that get an adapter; None = all linear layers but the LM head.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """AdamW with a linear warm-up and then a constant learning rate.

    `batch_size`: rows of own data in an optimiser step. `accumulate`: micro-batches that a step is cut into.
    `max_length`: tokens of a row, prompt and completion together.
    """

    learning_rate: float = 5e-3
    batch_size: int = 16
    warmup_steps: int = 20
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    accumulate: int = 1
    max_length: int = 192


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to generate: greedy if `temperature` is 0, else sampling from the whole distribution at it."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
