"""What the matchmaker knows of an agent: 32 numbers, no text, no weights, no logits.

KNEXA-FL, Supplement: 8 static (who it is), 12 dynamic (how it does, and the change since its last profile), 12 of the
distribution of its private data over categories. Contexts of a directed pair are the two profiles side by side: R^64.
"""

import math
import zlib
from collections.abc import Iterable

import msgspec
import numpy as np

from peertune.payloads import PROFILE_SIZE, Gain, Profile

STATIC, DYNAMIC, HISTOGRAM = slice(0, 8), slice(8, 20), slice(20, 32)
PARAMETERS = 5  # the place of log10(parameters) / 10
LOSS, SCORE = 8, 10  # of validation loss (nats a token) and score (0..1): how well an agent does
INVERSE_PERPLEXITY = 12  # of e^-loss, which is bounded
BINS = HISTOGRAM.stop - HISTOGRAM.start
FAMILIES = ("llama", "gpt2", "gpt_neox", "bloom")  # one-hot; others are the fifth
_LLAMA_LIKE = {"llama", "qwen2", "qwen3", "mistral"}


class Lesson(msgspec.Struct, frozen=True):
    """A text for one public problem that the agent learns from."""

    text: str
    verified: bool


class AgentRecord(msgspec.Struct):
    """What an agent remembers of itself from call to call; stored with its checkpoints."""

    static: tuple[float, ...]  # 8 numbers
    histogram: tuple[float, ...]  # 12 numbers that sum to 1
    steps: int = 0
    cursor: int = 0
    given: int = 0
    received: int = 0
    train_loss: float | None = None
    train_loss_change: float = 0.0
    validation_loss: float = 0.0
    validation_score: float = 0.0
    last_gain: float = 0.0
    mean_gain: float = 0.0
    profiled: int = 0
    version: int = 0  # of a shared adapter, that which it took last
    lessons: dict[int, Lesson] = {}  # texts for public problems, by their number

    def trained(self, loss: float) -> None:
        """Note the mean loss (nats a token) of one local training."""
        self.train_loss_change = 0.0 if self.train_loss is None else loss - self.train_loss
        self.train_loss = loss

    def learned(self, gain: Gain) -> None:
        """Note what an exchange brought."""
        self.received += 1
        self.last_gain = gain.private.before - gain.private.after
        self.mean_gain += (self.last_gain - self.mean_gain) / self.received


def static_features(family: str, parameters: int, trainable: int, examples: int) -> tuple[float, ...]:
    """Backbone family (one-hot of 5), log10 of its parameters / 10, share of trainable weights, log2 of examples /
    16.
    """
    name = "llama" if family in _LLAMA_LIKE else family
    one_hot = [float(name == known) for known in FAMILIES]
    other = 1.0 - sum(one_hot)
    return (
        *one_hot,
        other,
        math.log10(parameters) / 10,
        trainable / parameters,
        math.log2(1 + examples) / 16,
    )


def category_histogram(categories: Iterable[str], known: tuple[str, ...]) -> tuple[float, ...]:
    """Share of each category in 12 bins. Up to 12 known categories have a bin each; more share bins by a stable
    hash.
    """
    counts = np.zeros(BINS)
    for category in categories:
        fits = category in known and len(known) <= BINS
        counts[known.index(category) if fits else zlib.crc32(category.encode()) % BINS] += 1
    return tuple((counts / max(1.0, counts.sum())).tolist())


def build_profile(record: AgentRecord, loss: float, score: float) -> Profile:
    """The profile of an agent with this validation `loss` (nats a token) and `score` (0..1); remembers both in
    `record`.
    """
    first = record.profiled == 0
    dynamic = (
        loss,
        0.0 if first else loss - record.validation_loss,
        score,
        0.0 if first else score - record.validation_score,
        math.exp(-loss),  # the reciprocal of perplexity: bounded
        record.train_loss or 0.0,
        record.train_loss_change,
        record.received / 10,
        record.given / 10,
        record.last_gain,
        record.mean_gain,
        record.steps / 1000,
    )
    record.validation_loss, record.validation_score, record.profiled = loss, score, record.profiled + 1
    return Profile((*record.static, *dynamic, *record.histogram))


assert HISTOGRAM.stop == PROFILE_SIZE
