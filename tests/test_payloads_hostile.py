"""Bytes that are no payload: malformed ones, bombs, and 20 000 inputs of a fuzzer must all end in `PayloadError`."""

import random
import struct
import tracemalloc
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import zstandard
from frames import EXAMPLE, GOLDEN, frame, refused, tensor, weights_frame
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peertune.align import Vocabulary
from peertune.codecs import Codec
from peertune.errors import PayloadError
from peertune.payloads import (
    PAYLOADS,
    Activations,
    Alignment,
    Assessed,
    Gradient,
    Labelled,
    Lexicon,
    Shares,
    SplitPlan,
    Tally,
    Teaching,
    Weights,
    decode,
    encode,
    kind_of,
)
from peertune.payloads.arrays import MAX_HEADER_BYTES

STRUCTURED_CASES, MUTATED_CASES = 2_000, 18_000


# Malformed


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "not a peertune payload"),
        (b"PT", "not a peertune payload"),
        (b"PK\x03\x04", "not a peertune payload"),
        (b"\x80\x04\x95", "not a peertune payload"),
        (b"PT\x02\x06number\x81\xa5value\x03", "version 2"),
        (b"PT\x01\x05numbe", "unknown payload kind 'numbe'"),
        (b"PT\x01\x00", "unknown payload kind ''"),
        (b"PT\x01\xffnumber", "unknown payload kind"),
        (b"PT\x01\x04\xff\xfe\xfd\xfc", "unknown payload kind"),
    ],
)
def test_wrong_frames(raw: bytes, expected: str) -> None:
    with pytest.raises(PayloadError, match=expected):
        kind_of(raw)
    with pytest.raises(PayloadError, match=expected):
        decode(raw)


def test_body_of_another_kind_trailing_and_missing_bytes() -> None:
    for payload, wire in GOLDEN:
        raw = bytes.fromhex(wire)
        body = raw[4 + len(payload.kind) :]
        assert refused(raw + b"\0")
        assert refused(raw[:-1])
        for kind in PAYLOADS:
            if kind != payload.kind:
                assert refused(frame(kind, body)), (payload.kind, kind)


@pytest.mark.parametrize(
    "body",
    [
        b"\x81\xa5items\x91\xa2\xff\xfe",  # invalid UTF-8 in a text
        b"\x81\xa2\xff\xfe\x90",  # and in a key
        b"\x82\xa5items\x90\xa5extra\x01",
        b"\x80",
        b"\x90",
        b"\xc0",
        b"\x81\xa5items\xc0",
        b"\x81\xa5items\x91\xc0",
        b"\x81\xa5items\x91\xc4\x01a",  # bytes are not text
        b"\x81\xa5items\x91\xd4\x05\x00",  # an extension type
        b"\x81\x01\x90",
    ],
)
def test_malformed_texts(body: bytes) -> None:
    with pytest.raises(PayloadError, match="not a valid texts payload"):
        decode(frame("texts", body))


MALFORMED_WEIGHTS = {
    "no header": frame("weights", bytes(8)),
    "header cut short": weights_frame(b"{}", claimed=3),
    "header too large": weights_frame(b"{}", claimed=(1 << 64) - 1),
    "header above its limit": weights_frame(b" " * (MAX_HEADER_BYTES + 1)),
    "not JSON": weights_frame(b"{"),
    "a list": weights_frame([]),
    "invalid UTF-8": weights_frame(b'{"\xff\xfe":{}}'),
    "overlap": weights_frame({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, bytes(8)),
    "partial overlap": weights_frame({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(16)),
    "gap": weights_frame({"a": tensor([1], 0, 4), "b": tensor([1], 8, 12)}, bytes(8)),
    "beyond the end": weights_frame({"a": tensor([2], 0, 8)}, bytes(4)),
    "bytes left over": weights_frame({"a": tensor([1], 0, 4)}, bytes(8)),
    "offsets reversed": weights_frame({"a": tensor([1], 4, 0)}, bytes(4)),
    "offsets negative": weights_frame({"a": tensor([1], -4, 0)}, bytes(4)),
    "three offsets": weights_frame({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, bytes(4)),
    "shape against size": weights_frame({"a": tensor([2], 0, 4)}, bytes(4)),
    "shape negative": weights_frame({"a": tensor([-1], 0, 4)}, bytes(4)),
    "shape huge": weights_frame({"a": tensor([0, 10**15, 10**15], 0, 0)}),
    "shape of many digits": weights_frame(b'{"a":{"dtype":"F32","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,4]}}'),
    "nine dimensions": weights_frame({"a": tensor([1] * 9, 0, 4)}, bytes(4)),
    "F64": weights_frame({"a": tensor([1], 0, 8, "F64")}, bytes(8)),
    "BF16": weights_frame({"a": tensor([1], 0, 2, "BF16")}, bytes(2)),
    "I64": weights_frame({"a": tensor([1], 0, 8, "I64")}, bytes(8)),
    "metadata": weights_frame({"__metadata__": {"format": "pt"}}),
    "extra key": weights_frame({"a": tensor([1], 0, 4) | {"x": 1}}, bytes(4)),
    "NaN": weights_frame({"a": tensor([1], 0, 4)}, np.array([np.nan], np.float32).tobytes()),
    "infinity": weights_frame({"a": tensor([1], 0, 2, "F16")}, np.array([np.inf], np.float16).tobytes()),
    "no name": weights_frame({"": tensor([1], 0, 4)}, bytes(4)),
    "pickle": frame("weights", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
}


@pytest.mark.parametrize("name", MALFORMED_WEIGHTS)
def test_malformed_weights(name: str) -> None:
    with pytest.raises(PayloadError):
        decode(MALFORMED_WEIGHTS[name])


# Bombs: refused before they are believed


def _claim(kind: str, field: str, *, size: int = 1) -> bytes:
    """A list that claims 2**31 - 1 entries and brings almost none."""
    name = bytes([0xA0 + len(field)]) + field.encode()
    return frame(kind, bytes([0x80 + size]) + name + b"\xdd" + struct.pack(">I", 0x7FFFFFFF))


BOMBS: dict[str, Callable[[], bytes]] = {
    "claimed profile": lambda: _claim("profile", "values"),
    "claimed texts": lambda: _claim("texts", "items"),
    "claimed picks": lambda: _claim("picks", "items"),
    "claimed claims": lambda: _claim("claims", "surprise", size=3),
    "claimed verdicts": lambda: _claim("verdicts", "passed"),
    "verdicts of 10 million": lambda: _claim("verdicts", "passed") + b"\x01" * 10_000_000,
    "nested gain": lambda: frame("gain", b"\x81\xa7private" * 500_000),
    "claimed scores": lambda: _claim("scores", "correct", size=3),
    "claimed map": lambda: frame("scores", b"\xdf" + struct.pack(">I", 0x7FFFFFFF)),
    "profile of 10 million": lambda: _claim("profile", "values") + b"\x01" * 10_000_000,
    "number of 10 million keys": lambda: frame("number", b"\xdf\x7f\xff\xff\xff" + b"\xa5value\x01" * 1_000_000),
    "nested lists": lambda: frame("texts", b"\x81\xa5items" + b"\x91" * 5_000_000),
    "nested maps": lambda: frame("scores", b"\x81\xa7metrics" + b"\x81\xa1a" * 1_000_000),
    "long digest": lambda: frame("receipt", b"\x81\xa6digest\xdb" + struct.pack(">I", 10**7) + b"a" * 10**7),
    "long key": lambda: frame("gain", b"\x81\xdb" + struct.pack(">I", 10**7) + b"a" * 10**7),
    "claimed header": lambda: weights_frame(b"{}", bytes(1000), claimed=1 << 62),
    "300 000 tensors": lambda: weights_frame({f"{index:x}": tensor([0], 0, 0) for index in range(300_000)}),
    "9 000 tensors": lambda: weights_frame({f"{index:x}": tensor([0], 0, 0) for index in range(9_000)}),
    "nested header": lambda: weights_frame(b"[" * 1_000_000),
    "nested header maps": lambda: weights_frame(b'{"a":' * 200_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_little_memory(name: str) -> None:
    raw = BOMBS[name]()
    tracemalloc.start()
    try:
        assert refused(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_long_text_costs_no_more_than_itself() -> None:
    raw = frame("texts", b"\x81\xa5items\x91\xdb" + struct.pack(">I", 10**7) + b"a" * 10**7)
    tracemalloc.start()
    try:
        assert refused(raw)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 11 * 10**6


PACKED = {  # of each array that may be packed, how large it claims to be
    "frame beyond its claim": zstandard.ZstdCompressor().compress(bytes(1 << 26)),
    "no size": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100)),
    "not zstd": bytes(40),
    "bytes after the frame": zstandard.ZstdCompressor().compress(bytes(6)) + b"x",
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_bombs_take_little_memory(name: str) -> None:
    """Three positions of 64 MB, or of who knows what."""
    tensors = {key: array for key, array in EXAMPLE.tensors.items() if key != "starts"}
    bent = Assessed(tensors | {"starts.zst": np.frombuffer(PACKED[name], np.uint8)}, 50)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="starts"):
            bent.check()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


# Fuzzing: 20 000 inputs

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(
            st.sampled_from(["value", "items", "values", "correct", "samples", "passed", "private"]) | st.text("ab"),
            inner,
        )
    ),
    max_leaves=12,
)
headers = st.dictionaries(
    st.text("ab_", max_size=3),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "F64", "U8", ""]),
            "shape": st.lists(st.integers(-1, 5), max_size=4),
            "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3),
        }
    )
    | anything.filter(lambda value: not isinstance(value, bytes)),
    max_size=4,
)


@settings(max_examples=STRUCTURED_CASES // 2, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(PAYLOADS)), anything)
def test_fuzz_structs(kind: str, value: object) -> None:
    refused(frame(kind, msgspec.msgpack.encode(value)))


@settings(max_examples=STRUCTURED_CASES // 2, suppress_health_check=list(HealthCheck))
@given(headers, st.binary(max_size=48))
def test_fuzz_headers(header: dict[str, object], data: bytes) -> None:
    refused(weights_frame(msgspec.json.encode(header), data))


def _mutated(raw: bytes, corpus: list[bytes], dice: random.Random) -> bytes:
    """One to four flips, overwrites, truncations, insertions, deletions, repetitions or splices."""
    data = bytearray(raw)
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        place, length = dice.randrange(len(data) + 1), dice.randint(1, 8)
        match dice.randrange(7):
            case 0 if data:
                data[place % len(data)] ^= 1 << dice.randrange(8)
            case 1:
                data[place : place + length] = dice.choice([b"\xff", b"\x00", b"\x7f", b"\xdd", b"\x91"]) * length
            case 2:
                del data[place:]
            case 3:
                data[place:place] = dice.randbytes(length)
            case 4:
                del data[place : place + length]
            case 5:
                data[place:place] = data[place : place + length] * dice.randint(1, 20)
            case _:
                other = dice.choice(corpus)
                cut = dice.randrange(len(other) + 1)
                data[place:] = other[cut:]
    return bytes(data)


def test_fuzz_mutations() -> None:
    """Valid payloads of every kind, bent."""
    dice = random.Random("peertune|payloads")
    corpus = [bytes.fromhex(wire) for _, wire in GOLDEN]
    corpus.append(encode(Weights({"a.b": np.ones((2, 3), np.float16), "c": np.ones((4,), np.float32)}, 7)))
    corpus += [
        encode(kind.of(1, np.ones((2, 3), np.float32), Codec("int8"))) for kind in (Activations, Labelled, Gradient)
    ]
    corpus += [encode(Teaching(0.1, 4)), encode(Tally(3, {0: 2}, {1: 1})), encode(Alignment())]
    corpus += [encode(EXAMPLE), encode(Lexicon.of(Vocabulary((b"", b"a", b"ab" * 9), {"eos": 0})))]
    corpus += [encode(SplitPlan({"a": 1}, 2, False, True, "int8", 1, 0)), encode(Shares({"a": 1}))]
    outcomes = [refused(_mutated(dice.choice(corpus), corpus, dice)) for _ in range(MUTATED_CASES)]
    assert 500 < outcomes.count(False) < MUTATED_CASES // 2  # some stay valid: the bending is not blunt
