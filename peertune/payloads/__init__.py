"""What may travel between agents and the coordinator, and nothing else."""

from peertune.payloads.arrays import Arrays, Weights
from peertune.payloads.base import Payload
from peertune.payloads.logits import Logits, Precision
from peertune.payloads.values import (
    ALL_FACTORS,
    PROFILE_LIMIT,
    PROFILE_SIZE,
    Change,
    Claims,
    Distillation,
    Factors,
    Gain,
    Number,
    Picks,
    Profile,
    Receipt,
    Record,
    Records,
    Scores,
    Texts,
    Verdicts,
)
from peertune.payloads.wire import PAYLOADS, decode, encode, kind_of

__all__ = [
    "ALL_FACTORS", "Arrays", "Change", "Claims", "Distillation", "Factors", "Gain", "Logits", "Number",
    "PAYLOADS", "PROFILE_LIMIT", "PROFILE_SIZE", "Payload", "Picks", "Precision", "Profile", "Receipt", "Record",
    "Records", "Scores", "Texts", "Verdicts", "Weights", "decode", "encode", "kind_of",
]  # fmt: skip
