"""What may travel between agents and the coordinator, and nothing else.

On the wire a payload is `b"PT" | version | kind length | kind | body`: msgpack for small values, safetensors for
arrays. Decoding foreign bytes gives a valid payload or raises `PayloadError`, quickly and in little memory: sizes,
counts, names, shapes, dtypes and finiteness are checked before anything is believed. Nothing is ever unpickled.
"""

import math
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from peertune.errors import PayloadError

VERSION = 1
MAX_BYTES = 1 << 30  # of one payload; a rank-64 adapter of a 70B model is below
MAX_HEADER_BYTES = 1 << 20  # safetensors' own limit is 100 MB, which took 600 MB of memory to refuse
MAX_TENSORS = 8192
MAX_DIMENSIONS = 8
PROFILE_SIZE = 32
PROFILE_LIMIT = 1e3

Text = Annotated[str, Meta(max_length=1 << 16)]
LongText = Annotated[str, Meta(max_length=1 << 20)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Size = Annotated[int, Meta(ge=0, le=MAX_BYTES)]
Bit = Annotated[int, Meta(ge=0, le=1)]
_DTYPES = {"F32": np.float32, "F16": np.float16}


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all payloads; a subclass names its `kind` and adds checks that types cannot express in `check`."""

    kind: ClassVar[str]
    max_bytes: ClassVar[int] = 4096  # on the wire

    def check(self) -> None:
        """Raise `PayloadError` if a value is out of its bounds."""


class Number(Payload, frozen=True):
    """A plain argument of a call: a count, a weight."""

    kind: ClassVar[str] = "number"
    value: int | float

    def check(self) -> None:
        _finite("number", [self.value], 1e18)


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
        _finite("profile", self.values, PROFILE_LIMIT)


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
        _finite("gain", numbers, 1e9)
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
        _finite("scores", self.correct, self.samples)
        _finite("scores", self.metrics.values(), 1e9)


class Receipt(Payload, frozen=True):
    """The SHA-256 of a checkpoint that its agent keeps."""

    kind: ClassVar[str] = "receipt"
    digest: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Weights(Payload, frozen=True):
    """An adapter: named fp32 or fp16 arrays, and the number of training examples behind it."""

    kind: ClassVar[str] = "weights"
    max_bytes: ClassVar[int] = MAX_BYTES
    tensors: dict[str, np.ndarray]
    examples: int

    def check(self) -> None:
        if not 0 <= self.examples < 1 << 53:
            raise PayloadError(f"weights come from 0 to 2**53 examples, not {self.examples}")
        for name, tensor in self.tensors.items():
            if not np.isfinite(tensor).all():
                raise PayloadError(f"tensor {name[:80]!r} holds NaN or infinity")


PAYLOADS: dict[str, type[Payload]] = {
    payload.kind: payload
    for payload in (Number, Texts, Records, Picks, Claims, Verdicts, Profile, Gain, Scores, Receipt, Weights)
}


def encode(payload: Payload) -> bytes:
    """The wire form of `payload`. Raises `PayloadError` if a receiver would refuse it."""
    try:
        payload.check()
        body = _encode_weights(payload) if isinstance(payload, Weights) else _encode_struct(payload)
    except (TypeError, ValueError, SafetensorError) as error:
        raise PayloadError(f"not a valid {payload.kind} payload ({type(error).__name__})") from error
    kind = payload.kind.encode()
    raw = b"PT" + bytes([VERSION, len(kind)]) + kind + body
    kind_of(raw)
    return raw


def kind_of(raw: bytes) -> str:
    """The payload kind that `raw` claims. Raises `PayloadError` if it is none of ours, or too large for its kind."""
    if len(raw) < 4 or raw[:2] != b"PT":
        raise PayloadError("these bytes are not a peertune payload")
    if raw[2] != VERSION:
        raise PayloadError(
            f"payload version {raw[2]} is not version {VERSION}; install the same peertune on both sides"
        )
    kind = raw[4 : 4 + raw[3]].decode("ascii", errors="replace")
    if kind not in PAYLOADS or len(kind) != raw[3]:
        raise PayloadError(f"unknown payload kind {kind[:40]!r}")
    if len(raw) > PAYLOADS[kind].max_bytes:
        raise PayloadError(f"a {kind} payload has at most {PAYLOADS[kind].max_bytes} bytes, this one has {len(raw)}")
    return kind


def decode(raw: bytes) -> Payload:
    """The payload in `raw`. Raises `PayloadError` whatever the bytes are."""
    kind = kind_of(raw)
    body = memoryview(raw)[4 + len(kind) :]
    payload = _decode_weights(body) if kind == Weights.kind else _decode_struct(body, PAYLOADS[kind])
    payload.check()
    return payload


def _encode_struct(payload: Payload) -> bytes:
    body = msgspec.msgpack.encode(payload)
    _decode_struct(memoryview(body), type(payload))  # bounds in the types are checked by decoding alone
    return body


def _decode_struct(body: memoryview, payload: type[Payload]) -> Payload:
    try:
        return msgspec.msgpack.decode(body, type=payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # invalid UTF-8 and deep nesting are not MsgspecErrors; the text of the error can quote the sender's bytes
        raise PayloadError(f"not a valid {payload.kind} payload ({type(error).__name__})") from None


class _TensorHeader(msgspec.Struct, forbid_unknown_fields=True):
    dtype: Literal["F32", "F16"]
    shape: Annotated[tuple[Size, ...], Meta(max_length=MAX_DIMENSIONS)]
    data_offsets: tuple[Size, Size]


_HEADER = msgspec.json.Decoder(Annotated[dict[Name, _TensorHeader], Meta(max_length=MAX_TENSORS)])


def _encode_weights(payload: Weights) -> bytes:
    tensors = save_safetensors({name: np.asarray(array, order="C") for name, array in payload.tensors.items()})
    _check_header(memoryview(tensors))
    return payload.examples.to_bytes(8, "little") + tensors


def _decode_weights(body: memoryview) -> Weights:
    try:
        _check_header(body[8:])
        arrays = load_safetensors(bytes(body[8:]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, SafetensorError, ValueError) as error:
        raise PayloadError(f"not valid weights ({type(error).__name__})") from None
    return Weights(arrays, int.from_bytes(body[:8], "little"))


def _check_header(tensors: memoryview) -> None:
    if len(tensors) < 8:
        raise PayloadError("weights are cut short")
    size = int.from_bytes(tensors[:8], "little")
    if size > min(MAX_HEADER_BYTES, len(tensors) - 8):
        raise PayloadError(f"a tensor header has at most {MAX_HEADER_BYTES} bytes, this one claims {size}")
    _check_offsets(_HEADER.decode(tensors[8 : 8 + size]), len(tensors) - 8 - size)


def _check_offsets(header: dict[str, _TensorHeader], size: int) -> None:
    """Every tensor has the bytes that its shape needs, and together they fill the buffer."""
    total = 0
    for name, tensor in header.items():
        start, end = tensor.data_offsets
        needed = math.prod(tensor.shape) * np.dtype(_DTYPES[tensor.dtype]).itemsize
        if end - start != needed:
            raise PayloadError(f"tensor {name[:80]!r} has {end - start} bytes, its shape needs {needed}")
        total += needed
    if total != size:
        raise PayloadError(f"tensors take {total} bytes, the payload has {size}")


def _finite(kind: str, values: Iterable[float], limit: float) -> None:
    for value in values:
        if not abs(value) <= limit:  # also false for NaN
            raise PayloadError(f"{kind}: {value!r:.40} is not a number within +-{limit:g}")
