"""The wire form of payloads: `b"PT" | version | kind length | kind | body`.

Decoding foreign bytes gives a valid payload or raises `PayloadError`, quickly and in little memory: sizes, counts,
names, shapes, dtypes and finiteness are checked before anything is believed. Nothing is ever unpickled.
"""

import msgspec
from safetensors import SafetensorError

from peertune.errors import PayloadError
from peertune.payloads.activations import Activations, Gradient, Labelled
from peertune.payloads.arrays import Arrays, Weights, decode_arrays, encode_arrays
from peertune.payloads.assessed import Assessed, Lexicon
from peertune.payloads.base import Payload
from peertune.payloads.logits import Logits
from peertune.payloads.values import (
    Alignment,
    Claims,
    Distillation,
    Factors,
    Gain,
    Number,
    Picks,
    Profile,
    Receipt,
    Records,
    Scores,
    Shares,
    SplitPlan,
    Tally,
    Teaching,
    Texts,
    Verdicts,
)

VERSION = 1
_KINDS = (
    Number,
    Factors,
    Texts,
    Records,
    Picks,
    Claims,
    Verdicts,
    Profile,
    Gain,
    Scores,
    Receipt,
    Weights,
    Distillation,
    Logits,
    SplitPlan,
    Shares,
    Activations,
    Labelled,
    Gradient,
    Assessed,
    Lexicon,
    Teaching,
    Alignment,
    Tally,
)
PAYLOADS: dict[str, type[Payload]] = {payload.kind: payload for payload in _KINDS}


def encode(payload: Payload) -> bytes:
    """The wire form of `payload`. Raises `PayloadError` if a receiver would refuse it."""
    try:
        payload.check()
        body = encode_arrays(payload) if isinstance(payload, Arrays) else _encode_struct(payload)
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
    of = PAYLOADS[kind]
    payload = decode_arrays(body, of) if issubclass(of, Arrays) else _decode_struct(body, of)
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
