"""Small values: counts, texts, claims, profiles, grades. On the wire: msgpack."""

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from peertune.codecs import Kind
from peertune.errors import PayloadError
from peertune.payloads.base import MAX_BYTES, Bit, LongText, Name, Payload, Text, finite

PROFILE_SIZE = 32
PROFILE_LIMIT = 1e3


class Number(Payload, frozen=True):
    """A plain argument of a call: a count, a weight."""

    kind: ClassVar[str] = "number"
    value: int | float

    def check(self) -> None:
        finite("number", [self.value], 1e18)


class Factors(Payload, frozen=True):
    """Which factors of a LoRA adapter are meant: A, B, and R, the core of B R A."""

    kind: ClassVar[str] = "factors"
    letters: Annotated[str, Meta(pattern=r"^A?B?R?\Z", min_length=1)]


ALL_FACTORS = Factors("ABR")


class Distillation(Payload, frozen=True):
    """How to learn from logits: their weight beside one's own data, optimiser steps, the softmax temperature, and by
    how much (nats a token) the private validation loss may rise before the lesson is undone.
    """

    kind: ClassVar[str] = "distillation"
    kd_weight: Annotated[float, Meta(ge=0, le=1)]
    steps: Annotated[int, Meta(ge=1, le=1 << 20)]
    temperature: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    tolerance: Annotated[float, Meta(ge=0)] = 1e9


class Alignment(Payload, frozen=True):
    """How tokens of another vocabulary become one's own. `rule`: which of one's own a token is; `tie`: of equally near
    ones; `merge`: of tokens that become the same one, the sum of their probabilities, or that of the first.
    """

    kind: ClassVar[str] = "alignment"
    rule: Literal["mined", "first_piece", "exact"] = "mined"
    tie: Literal["lex", "id"] = "lex"
    merge: Literal["sum", "first"] = "sum"


class Teaching(Payload, frozen=True):
    """How to learn what others expect at the answers of public problems: the `kd_weight` of that `beside` the answers
    themselves, or own data, optimiser steps, the softmax temperature, who teaches a problem (`mode`) and what is done
    where nobody does better than oneself, and the loss. `beta`: of the generalised JSD; `top_k`: of what one teaches
    oneself.
    """

    kind: ClassVar[str] = "teaching"
    kd_weight: Annotated[float, Meta(ge=0, le=1)]
    steps: Annotated[int, Meta(ge=1, le=1 << 20)]
    temperature: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    mode: Literal["hard", "weighted", "mean"] = "hard"
    on_no_teacher: Literal["skip", "self"] = "skip"
    loss: Literal["kl", "uld", "gjsd"] = "kl"
    beta: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    top_k: Annotated[int, Meta(ge=1, le=1 << 20)] = 64
    beside: Literal["answers", "own"] = "answers"


_Count = Annotated[int, Meta(ge=0, le=1 << 16)]
_BySource = Annotated[dict[_Count, _Count], Meta(max_length=1 << 12)]


class Tally(Payload, frozen=True):
    """Of so many public problems, how many each source taught, alone or with others, by the number it was heard under,
    and how many each was not believed about.
    """

    kind: ClassVar[str] = "tally"
    max_bytes: ClassVar[int] = 1 << 16
    problems: Annotated[int, Meta(ge=0, le=1 << 16)]
    taught: _BySource
    refused: _BySource


class SplitPlan(Payload, frozen=True):
    """How a model is split. `cuts`: the clients by name, and how many blocks each has below the first cut; a client is
    told its own. `last`: the blocks from here on are at the client, too; None: none are. `plain`: the head is at the
    server. `shared`: the server has one adapter for all, else one for each. The others: the codec of what passes.
    """

    kind: ClassVar[str] = "split_plan"
    max_bytes: ClassVar[int] = 1 << 20
    cuts: Annotated[dict[Name, Annotated[int, Meta(ge=1, le=1 << 16)]], Meta(min_length=1, max_length=1 << 12)]
    last: Annotated[int, Meta(ge=1, le=1 << 16)] | None
    plain: bool
    shared: bool
    codec: Kind
    outliers: Annotated[int, Meta(ge=0, le=1 << 20)]
    keep: Annotated[int, Meta(ge=0, le=1 << 20)]


class Shares(Payload, frozen=True):
    """Whose work counts, by name, and how many training examples are behind it."""

    kind: ClassVar[str] = "shares"
    max_bytes: ClassVar[int] = 1 << 20
    examples: Annotated[dict[Name, Annotated[int, Meta(ge=1, lt=1 << 53)]], Meta(max_length=1 << 12)]


class Texts(Payload, frozen=True):
    """Prompts, or the completions that an agent wrote for them: one string an example."""

    kind: ClassVar[str] = "texts"
    max_bytes: ClassVar[int] = 1 << 26
    items: Annotated[tuple[Text, ...], Meta(max_length=1 << 16)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training example: plain text, no control tokens of any model."""

    prompt: LongText
    completion: LongText


class Records(Payload, frozen=True):
    """Training examples, which are private: an agent releases them to nobody unless it is told to."""

    kind: ClassVar[str] = "records"
    max_bytes: ClassVar[int] = MAX_BYTES
    items: Annotated[tuple[Record, ...], Meta(max_length=1 << 20)]


class Profile(Payload, frozen=True):
    """What an agent says of itself to the matchmaker: 32 bounded numbers (`peertune.profiles` names them)."""

    kind: ClassVar[str] = "profile"
    values: Annotated[tuple[float, ...], Meta(min_length=PROFILE_SIZE, max_length=PROFILE_SIZE)]

    def check(self) -> None:
        finite("profile", self.values, PROFILE_LIMIT)


class Picks(Payload, frozen=True):
    """Which of the public problems: their numbers."""

    kind: ClassVar[str] = "picks"
    max_bytes: ClassVar[int] = 1 << 20
    items: Annotated[tuple[Annotated[int, Meta(ge=0, lt=1 << 16)], ...], Meta(max_length=1 << 16)]


class Claims(Payload, frozen=True):
    """What an agent says of the drafts it wrote at home, one number each for every problem it was asked.

    `surprise`: how improbable its text is to itself, -mean log p, in thousandths of a nat a token. `offered`: 1 where
    others may have the text. `settled`: 1 where it has a text that passes the public tests and needs no other.
    """

    kind: ClassVar[str] = "claims"
    max_bytes: ClassVar[int] = 1 << 20
    surprise: Annotated[tuple[Annotated[int, Meta(ge=0, lt=1 << 16)], ...], Meta(max_length=1 << 16)]
    offered: Annotated[tuple[Bit, ...], Meta(max_length=1 << 16)]
    settled: Annotated[tuple[Bit, ...], Meta(max_length=1 << 16)]

    def check(self) -> None:
        if not len(self.surprise) == len(self.offered) == len(self.settled):
            raise PayloadError("claims have three numbers for every problem")


class Verdicts(Payload, frozen=True):
    """What a receiver found out about texts that it pulled: 1 where one was of use, in the order of the picks."""

    kind: ClassVar[str] = "verdicts"
    max_bytes: ClassVar[int] = 1 << 20
    passed: Annotated[tuple[Bit, ...], Meta(max_length=1 << 16)]


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A loss (nats a token) on the same items before and after; `error` is the standard error of the difference."""

    before: float
    after: float
    error: float


class Gain(Payload, frozen=True):
    """What one exchange brought its receiver: the change of its private validation loss, and of its loss on the public
    probe if there is one; kilobytes pulled; whether it kept what it learnt or went back.
    """

    kind: ClassVar[str] = "gain"
    private: Change
    probe: Change | None
    kilobytes: float
    kept: bool

    def check(self) -> None:
        changes = (self.private, self.probe) if self.probe else (self.private,)
        numbers = [self.kilobytes, *(number for each in changes for number in (each.before, each.after, each.error))]
        finite("gain", numbers, 1e9)
        if min(numbers) < 0:
            raise PayloadError("a gain has a negative loss, error or size")


class Scores(Payload, frozen=True):
    """Grades: for each problem how many of `samples` completions were right, and named numbers beside them."""

    kind: ClassVar[str] = "scores"
    max_bytes: ClassVar[int] = 1 << 24
    correct: Annotated[tuple[Annotated[float, Meta(ge=0)], ...], Meta(max_length=1 << 20)]
    samples: Annotated[int, Meta(ge=1, le=10_000)]
    metrics: Annotated[dict[Name, float], Meta(max_length=64)]

    def check(self) -> None:
        finite("scores", self.correct, self.samples)
        finite("scores", self.metrics.values(), 1e9)


class Receipt(Payload, frozen=True):
    """The SHA-256 of a checkpoint that its agent keeps."""

    kind: ClassVar[str] = "receipt"
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
