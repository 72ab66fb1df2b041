"""What may travel between agents and the coordinator, and nothing else."""

from peertune.payloads.arrays import Arrays, Weights
from peertune.payloads.base import Payload
from peertune.payloads.values import (
    PROFILE_LIMIT,
    PROFILE_SIZE,
    Change,
    Claims,
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
    "PAYLOADS", "PROFILE_LIMIT", "PROFILE_SIZE", "Arrays", "Change", "Claims", "Factors", "Gain", "Number", "Payload",
    "Picks", "Profile", "Receipt", "Record", "Records", "Scores", "Texts", "Verdicts", "Weights", "decode", "encode",
    "kind_of",
]  # fmt: skip
