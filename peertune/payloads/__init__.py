"""What may travel between agents and the coordinator, and nothing else."""

from peertune.payloads.activations import Activations, Gradient, Labelled
from peertune.payloads.arrays import Arrays, Weights
from peertune.payloads.assessed import Assessed, Bits, Lexicon
from peertune.payloads.base import Payload
from peertune.payloads.logits import Logits, Precision
from peertune.payloads.values import (
    ALL_FACTORS,
    PROFILE_LIMIT,
    PROFILE_SIZE,
    Alignment,
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
    Shares,
    SplitPlan,
    Tally,
    Teaching,
    Texts,
    Verdicts,
)
from peertune.payloads.wire import PAYLOADS, decode, encode, kind_of

__all__ = [
    "ALL_FACTORS", "Activations", "Alignment", "Arrays", "Assessed", "Bits", "Change", "Claims", "Distillation",
    "Factors", "Gain", "Gradient", "Labelled", "Lexicon", "Logits", "Number", "PAYLOADS", "PROFILE_LIMIT",
    "PROFILE_SIZE", "Payload", "Picks", "Precision", "Profile", "Receipt", "Record", "Records", "Scores", "Shares",
    "SplitPlan", "Tally", "Teaching", "Texts", "Verdicts", "Weights", "decode", "encode", "kind_of",
]  # fmt: skip
