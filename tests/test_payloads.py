"""Payloads: exact wire bytes, round trips, bounds, and 20 000 hostile inputs that must all end in `PayloadError`."""

import json
import random
import struct
import tracemalloc
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from peertune.align import Vocabulary
from peertune.align.positions import BEFORE
from peertune.assessment import Assessment
from peertune.codecs import Codec
from peertune.errors import PayloadError
from peertune.knowledge import pack
from peertune.payloads import (
    PAYLOADS,
    PROFILE_SIZE,
    Activations,
    Alignment,
    Arrays,
    Assessed,
    Change,
    Claims,
    Distillation,
    Factors,
    Gain,
    Gradient,
    Labelled,
    Lexicon,
    Logits,
    Number,
    Payload,
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
    Weights,
    decode,
    encode,
    kind_of,
)
from peertune.payloads.activations import Coded
from peertune.payloads.arrays import MAX_HEADER_BYTES, MAX_TENSORS
from peertune.payloads.packing import packed, unpacked

STRUCTURED_CASES, MUTATED_CASES = 2_000, 18_000

numbers = st.floats(min_value=-1e18, max_value=1e18) | st.integers(-(10**18), 10**18)
losses = st.floats(min_value=0, max_value=1e9)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: name != "__metadata__"
)
arrays = st.sampled_from([np.float32, np.float16]).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements=st.floats(-6e4, 6e4, width=16),
    )
)
changes = st.builds(Change, losses, losses, losses)
numerals, bits = st.integers(0, (1 << 16) - 1), st.integers(0, 1)
drafts = st.lists(st.tuples(numerals, bits, bits), max_size=8)  # what one claims of each


@st.composite
def logits(draw: st.DrawFn) -> Payload:
    """Of up to three problems with up to three positions each, dense or sparse, all of a position or some."""
    lengths = np.array(draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)), dtype=np.int32)
    width = draw(st.integers(2, 6))
    values = draw(hnp.arrays(np.float32, (int(lengths.sum()), width), elements=st.floats(-30, 30, width=16)))
    known = pack(values, lengths, draw(st.none() | st.integers(1, 4)))
    if known.ids is not None and draw(st.booleans()):
        known = known.trim(draw(st.floats(0.01, 0.99)))
    return Logits.of(known, draw(st.sampled_from(["fp32", "fp16", "int8"])))


@st.composite
def assessed(draw: st.DrawFn) -> Payload:
    """Of up to three problems with up to three positions each, all of a position or some."""
    lengths = np.array(draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)), dtype=np.int32)
    width, positions = draw(st.integers(2, 6)), int(lengths.sum())
    values = draw(hnp.arrays(np.float32, (positions, width), elements=st.floats(-30, 30, width=16)))
    known = pack(values, lengths, draw(st.integers(1, 4)))
    if draw(st.booleans()):
        known = known.trim(draw(st.floats(0.01, 0.99)))
    further = np.array(draw(st.lists(st.integers(1, 99), min_size=positions, max_size=positions)), dtype=np.int64)
    starts = [
        BEFORE - further[0] + np.cumsum(further) for further in np.split(further, np.cumsum(lengths)) if len(further)
    ]
    nats = draw(hnp.arrays(np.float32, len(lengths), elements=st.floats(0, 2**20, width=32)))
    texts = draw(hnp.arrays(np.int32, len(lengths)))
    flat = np.concatenate([np.zeros(0), *starts]).astype(np.int32)
    found = Assessment(known, flat, nats, texts, draw(st.binary(min_size=32, max_size=32)).hex())
    return Assessed.of(found, draw(st.sampled_from(["fp16", "int8"])))


@st.composite
def lexicons(draw: st.DrawFn) -> Payload:
    tokens = draw(st.lists(st.binary(max_size=5), min_size=1, max_size=9))
    ids = st.integers(0, len(tokens) - 1)
    roles = draw(st.dictionaries(st.sampled_from(["eos", "bos", "pad"]), ids))
    return Lexicon.of(Vocabulary(tuple(tokens), roles, frozenset(draw(st.sets(ids)))))


@st.composite
def coded(draw: st.DrawFn, kind: type[Coded], **beside: np.ndarray) -> Payload:
    """A few tokens of three channels; of what stands beside them all or nothing."""
    values = draw(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(-30, 30, width=16))
    )
    codec = draw(st.sampled_from([Codec("fp32"), Codec("fp16"), Codec("int8", outliers=1), Codec("topk", keep=2)]))
    return kind.of(draw(st.integers(0, 99)), values, codec, **(beside if draw(st.booleans()) else {}))


INTEGERS = np.array([1, 2], np.int32)
EXAMPLE = Assessed.of(
    Assessment(
        pack(np.random.default_rng(0).normal(0, 1, (3, 50)), np.array([1, 2]), 4),
        np.array([0, 0, 3], np.int32),
        np.ones(2, np.float32),
        INTEGERS,
        "ab" * 32,
    )
)
COUNTS = st.integers(1, 1 << 16)
payloads: dict[str, st.SearchStrategy[Payload]] = {
    "logits": logits(),
    "activations": coded(Activations, lengths=INTEGERS, reads=INTEGERS),
    "labelled": coded(Labelled, lengths=INTEGERS, reads=INTEGERS, labels=INTEGERS),
    "gradient": coded(Gradient, loss=np.ones(1, np.float32)),
    "split_plan": st.builds(
        SplitPlan,
        st.dictionaries(names, COUNTS, min_size=1, max_size=4),
        st.none() | COUNTS,
        st.booleans(),
        st.booleans(),
        st.sampled_from(["fp32", "fp16", "int8", "topk"]),
        st.integers(0, 99),
        st.integers(0, 99),
    ),
    "shares": st.builds(Shares, st.dictionaries(names, st.integers(1, (1 << 53) - 1), max_size=4)),
    "distillation": st.builds(
        Distillation, st.floats(0, 1), st.integers(1, 99), st.floats(0.01, 1000), st.floats(0, 1e9)
    ),
    "assessed": assessed(),
    "lexicon": lexicons(),
    "alignment": st.builds(
        Alignment,
        st.sampled_from(["mined", "first_piece", "exact"]),
        st.sampled_from(["lex", "id"]),
        st.sampled_from(["sum", "first"]),
    ),
    "teaching": st.builds(
        Teaching,
        st.floats(0, 1),
        st.integers(1, 99),
        st.floats(0.01, 1000),
        st.sampled_from(["hard", "weighted"]),
        st.sampled_from(["skip", "self"]),
        st.sampled_from(["kl", "uld", "gjsd"]),
        st.floats(0.01, 0.99),
    ),
    "tally": st.builds(
        Tally,
        numerals,
        st.dictionaries(numerals, numerals, max_size=4),
        st.dictionaries(numerals, numerals, max_size=4),
    ),
    "number": st.builds(Number, numbers),
    "factors": st.builds(Factors, st.sampled_from(["A", "B", "R", "AB", "AR", "BR", "ABR"])),
    "texts": st.builds(Texts, st.lists(texts, max_size=8).map(tuple)),
    "records": st.builds(Records, st.lists(st.builds(Record, texts, texts), max_size=8).map(tuple)),
    "profile": st.builds(
        Profile, st.lists(st.floats(-1e3, 1e3), min_size=PROFILE_SIZE, max_size=PROFILE_SIZE).map(tuple)
    ),
    "picks": st.builds(Picks, st.lists(numerals, max_size=8).map(tuple)),
    "claims": drafts.map(lambda each: Claims(*(tuple(draft[place] for draft in each) for place in range(3)))),
    "verdicts": st.builds(Verdicts, st.lists(bits, max_size=8).map(tuple)),
    "gain": st.builds(Gain, changes, st.none() | changes, losses, st.booleans()),
    "scores": st.builds(
        Scores,
        st.lists(st.floats(0, 4), max_size=8).map(tuple),
        st.integers(4, 10_000),
        st.dictionaries(names, st.floats(-1e9, 1e9), max_size=4),
    ),
    "receipt": st.builds(Receipt, st.binary(min_size=32, max_size=32).map(bytes.hex)),
    "weights": st.builds(Weights, st.dictionaries(names, arrays, max_size=4), st.integers(0, (1 << 53) - 1)),
}


def frame(kind: str, body: bytes) -> bytes:
    """A payload of `kind` with any body."""
    return b"PT\x01" + bytes([len(kind)]) + kind.encode() + body


def weights_frame(header: object, data: bytes = b"", claimed: int | None = None) -> bytes:
    """Weights with any header, as JSON or as raw bytes, and any claim about its size."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if claimed is None else claimed
    return frame("weights", bytes(8) + size.to_bytes(8, "little") + raw + data)


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def assert_same(left: Payload, right: Payload) -> None:
    """Equal, arrays bit by bit."""
    if not isinstance(left, Arrays):
        assert left == right
        return
    assert isinstance(right, Arrays)
    assert (left.kind, left.number) == (right.kind, right.number) and left.tensors.keys() == right.tensors.keys()
    for name, array in left.tensors.items():
        other = right.tensors[name]
        assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes())


def refused(raw: bytes) -> bool:
    """Does `raw` raise `PayloadError`? If it decodes, it must be a payload that encodes again to the same value."""
    try:
        payload = decode(raw)
    except PayloadError as error:
        assert len(str(error)) < 300
        return True
    assert payload.kind in PAYLOADS
    assert_same(decode(encode(payload)), payload)
    return False


# What honest parties send


def test_every_kind_has_a_strategy() -> None:
    assert set(payloads) == set(PAYLOADS)


@pytest.mark.parametrize("kind", sorted(payloads))
def test_round_trip(kind: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(payloads[kind])
    def check(payload: Payload) -> None:
        raw = encode(payload)
        assert kind_of(raw) == kind
        assert_same(decode(raw), payload)
        assert encode(payload) == raw

    check()


GOLDEN = [
    (Number(3), "505401066e756d62657281a576616c756503"),
    (Number(0.5), "505401066e756d62657281a576616c7565cb3fe0000000000000"),
    (Texts(("a", "é")), "50540105746578747381a56974656d7392a161a2c3a9"),
    (
        Records((Record("a", "é"),)),
        "505401077265636f72647381a56974656d739182a670726f6d7074a161aa636f6d706c6574696f6ea2c3a9",
    ),
    (Profile((0.0,) * 32), "5054010770726f66696c6581a676616c756573dc0020" + "cb0000000000000000" * 32),
    (
        Gain(Change(2.0, 1.5, 0.25), None, 0.5, kept=False),
        "505401046761696e84a77072697661746583a66265666f7265cb4000000000000000a56166746572cb3ff80000000000"
        "00a56572726f72cb3fd0000000000000a570726f6265c0a96b696c6f6279746573cb3fe0000000000000a46b657074c2",
    ),
    (
        Gain(Change(2.0, 1.5, 0.25), Change(1.0, 0.0, 0.5), 0.5, kept=True),
        "505401046761696e84a77072697661746583a66265666f7265cb4000000000000000a56166746572cb3ff80000000000"
        "00a56572726f72cb3fd0000000000000a570726f626583a66265666f7265cb3ff0000000000000a56166746572cb0000"
        "000000000000a56572726f72cb3fe0000000000000a96b696c6f6279746573cb3fe0000000000000a46b657074c3",
    ),
    (
        Picks((0, 300)),
        "505401057069636b7381a56974656d739200cd012c",
    ),
    (
        Claims((7, 65535), (1, 0), (0, 1)),
        "50540106636c61696d7383a873757270726973659207cdffffa76f666665726564920100a7736574746c6564920001",
    ),
    (Factors("AB"), "50540107666163746f727381a76c657474657273a24142"),
    (
        Verdicts((1, 0)),
        "50540108766572646963747381a6706173736564920100",
    ),
    (
        Scores((1.0, 0.0), 2, {"x": 1.0}),
        "5054010673636f72657383a7636f727265637492cb3ff0000000000000cb0000000000000000a773616d706c657302"
        "a76d65747269637381a178cb3ff0000000000000",
    ),
    (Receipt("ab" * 32), "50540107726563656970" + "7481a6646967657374d940" + "6162" * 32),
    (
        Weights({"w": np.array([1.0, -2.0], np.float32)}, 3),
        "505401077765696768747303000000000000003800000000000000"
        + b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '.hex()
        + "0000803f000000c0",
    ),
]


@pytest.mark.parametrize(("payload", "wire"), GOLDEN, ids=lambda value: getattr(value, "kind", ""))
def test_wire_bytes(payload: Payload, wire: str) -> None:
    """Runs of different machines and versions talk to each other: these bytes are a promise."""
    assert encode(payload).hex() == wire
    assert_same(decode(bytes.fromhex(wire)), payload)


def test_weights_keep_scalars_and_any_memory_layout() -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    back = decode(encode(Weights({"turned": turned, "scalar": np.array(3, np.float16)}, 1)))
    assert isinstance(back, Weights)
    np.testing.assert_array_equal(back.tensors["turned"], turned)
    assert back.tensors["scalar"].shape == ()


# Bounds, at both ends


def gain(before: float, after: float, error: float, kilobytes: float = 0.0, probe: Change | None = None) -> Gain:
    return Gain(Change(before, after, error), probe, kilobytes, kept=True)


ZEROS = (0.0,) * PROFILE_SIZE
F32 = np.zeros(2, np.float32)
OUT_OF_BOUNDS = {
    "number too large": Number(2e18),
    "number huge": Number(10**400),
    "number NaN": Number(float("nan")),
    "number infinite": Number(float("inf")),
    "number bool": Number(True),
    "number text": Number("1"),  # pyright: ignore[reportArgumentType]
    "texts too many": Texts(("",) * ((1 << 16) + 1)),
    "text too long": Texts(("a" * ((1 << 16) + 1),)),
    "record too long": Records((Record("a" * ((1 << 20) + 1), ""),)),
    "record of a number": Records((Record("", 3),)),  # pyright: ignore[reportArgumentType]
    "text surrogate": Texts(("\ud800",)),
    "profile short": Profile((0.0,) * (PROFILE_SIZE - 1)),
    "profile long": Profile((0.0,) * (PROFILE_SIZE + 1)),
    "profile NaN": Profile((*ZEROS[1:], float("nan"))),
    "profile infinite": Profile((*ZEROS[1:], float("-inf"))),
    "profile too large": Profile((*ZEROS[1:], 1000.5)),
    "gain negative": gain(-0.1, 0.0, 0.0),
    "gain NaN": gain(0.0, float("nan"), 0.0),
    "gain infinite": gain(0.0, 0.0, float("inf")),
    "gain kilobytes negative": gain(0.0, 0.0, 0.0, kilobytes=-1.0),
    "gain kilobytes NaN": gain(0.0, 0.0, 0.0, kilobytes=float("nan")),
    "gain probe negative": gain(0.0, 0.0, 0.0, probe=Change(0.0, 0.0, -1e-9)),
    "gain probe huge": gain(0.0, 0.0, 0.0, probe=Change(0.0, 1.1e9, 0.0)),
    "gain probe NaN": gain(0.0, 0.0, 0.0, probe=Change(float("nan"), 0.0, 0.0)),
    "gain kept number": Gain(Change(0.0, 0.0, 0.0), None, 0.0, 1),  # pyright: ignore[reportArgumentType]
    "factors none": Factors(""),
    "factors unknown": Factors("C"),
    "factors in another order": Factors("BA"),
    "factors with newline": Factors("A\n"),
    "picks negative": Picks((-1,)),
    "picks too large": Picks((1 << 16,)),
    "picks too many": Picks((0,) * ((1 << 16) + 1)),
    "picks fraction": Picks((0.5,)),  # pyright: ignore[reportArgumentType]
    "claims of unequal length": Claims((1, 2), (1, 1), (1,)),
    "claims surprise negative": Claims((-1,), (1,), (1,)),
    "claims surprise too large": Claims((1 << 16,), (1,), (1,)),
    "claims offered twice": Claims((1,), (2,), (1,)),
    "claims settled a text": Claims((1,), (1,), ("yes",)),  # pyright: ignore[reportArgumentType]
    "claims too many": Claims(*((0,) * ((1 << 16) + 1),) * 3),
    "verdicts above 1": Verdicts((1, 2)),
    "verdicts negative": Verdicts((-1,)),
    "verdicts NaN": Verdicts((float("nan"),)),  # pyright: ignore[reportArgumentType]
    "verdicts too many": Verdicts((0,) * ((1 << 16) + 1)),
    "scores above samples": Scores((3.0,), 2, {}),
    "scores negative": Scores((-1.0,), 2, {}),
    "scores no samples": Scores((), 0, {}),
    "scores too many": Scores((0.0,) * ((1 << 20) + 1), 1, {}),
    "scores metric NaN": Scores((), 1, {"loss": float("nan")}),
    "scores metric unnamed": Scores((), 1, {"": 0.0}),
    "scores metric name too long": Scores((), 1, {"a" * 201: 0.0}),
    "scores too many metrics": Scores((), 1, {str(index): 0.0 for index in range(65)}),
    "receipt short": Receipt("ab"),
    "receipt upper case": Receipt("AB" * 32),
    "receipt with newline": Receipt("ab" * 32 + "\n"),
    "weights NaN": Weights({"w": np.array([np.nan], np.float32)}, 0),
    "weights infinite": Weights({"w": np.array([np.inf], np.float16)}, 0),
    "weights double": Weights({"w": np.zeros(2)}, 0),
    "weights integer": Weights({"w": np.zeros(2, np.int64)}, 0),
    "weights object": Weights({"w": np.array([object()])}, 0),
    "weights unnamed": Weights({"": F32}, 0),
    "weights name too long": Weights({"a" * 201: F32}, 0),
    "weights dimensions": Weights({"w": np.zeros((1,) * 9, np.float32)}, 0),
    "weights too many": Weights({str(index): F32[:0] for index in range(MAX_TENSORS + 1)}, 0),
    "weights negative examples": Weights({}, -1),
    "activations with labels": Activations({"hidden/values": F32, "labels": INTEGERS}, 0),
    "activations of a gradient": Activations({"gradient/values": F32}, 0),
    "activations NaN": Activations({"hidden/values": np.array([np.nan], np.float32)}, 0),
    "activations before the first step": Activations({"hidden/values": F32}, -1),
    "labelled unknown": Labelled({"hidden/values": F32, "texts": INTEGERS}, 0),
    "gradient of two losses": Gradient({"gradient/values": F32, "loss": F32}, 0),
    "gradient of a whole loss": Gradient({"gradient/values": F32, "loss": INTEGERS[:1]}, 0),
    "gradient infinite loss": Gradient({"gradient/values": F32, "loss": np.array([np.inf], np.float32)}, 0),
    "split_plan for nobody": SplitPlan({}, None, False, True, "fp32", 0, 0),
    "split_plan no block": SplitPlan({"a": 0}, None, False, True, "fp32", 0, 0),
    "split_plan unknown codec": SplitPlan({"a": 1}, None, False, True, "int4", 0, 0),  # pyright: ignore[reportArgumentType]
    "split_plan negative": SplitPlan({"a": 1}, None, False, True, "int8", -1, 0),
    "split_plan too many": SplitPlan({str(each): 1 for each in range(4097)}, None, False, True, "fp32", 0, 0),
    "shares none": Shares({"a": 0}),
    "shares of nobody": Shares({"": 1}),
    "teaching no step": Teaching(0.1, 0),
    "teaching unknown loss": Teaching(0.1, 1, loss="mse"),  # pyright: ignore[reportArgumentType]
    "teaching one-sided": Teaching(0.1, 1, beta=1.0),
    "alignment unknown rule": Alignment("nearest"),  # pyright: ignore[reportArgumentType]
    "tally negative": Tally(1, {0: -1}, {}),
    "tally too many": Tally(1, {each: 1 for each in range(4097)}, {}),
    "assessed cold": Assessed(EXAMPLE.tensors | {"nats": np.array([np.nan, 1], np.float32)}, 50),
    "assessed strange": Assessed(EXAMPLE.tensors | {"strange": F32}, 50),
    "assessed negative loss": Assessed(EXAMPLE.tensors | {"nats": np.array([-1, 1], np.float32)}, 50),
    "assessed losses of others": Assessed(EXAMPLE.tensors | {"nats": np.ones(3, np.float32)}, 50),
    "assessed of nobody": Assessed(EXAMPLE.tensors | {"vocabulary": np.zeros(31, np.uint8)}, 50),
    "assessed ids beyond": Assessed(EXAMPLE.tensors, 3),
    "assessed k of 0": Assessed(EXAMPLE.tensors | {"k": np.zeros(1, np.int32)}, 50),
    "assessed k of 5": Assessed(EXAMPLE.tensors | {"k": np.full(1, 5, np.int32)}, 50),
    "assessed too long": Assessed(EXAMPLE.tensors | {"lengths": np.array([2**31 - 1] * 2, np.int32)}, 50),
    "assessed not going forward": Assessed(EXAMPLE.tensors | {"starts": np.array([1, 0, 0], np.uint16)}, 50),
    "assessed twice": Assessed(EXAMPLE.tensors | {"logp.zst": np.zeros(9, np.uint8)}, 50),
    "assessed infinite": Assessed(EXAMPLE.tensors | {"logp": np.full(12, -np.inf, np.float16)}, 50),
    "assessed improbable": Assessed(EXAMPLE.tensors | {"logp": np.zeros(12, np.float16)}, 50),
    "lexicon of nothing": Lexicon.of(Vocabulary((), {})),
    "lexicon role beyond": Lexicon.of(Vocabulary((b"a",), {"eos": 1})),
    "lexicon spare beyond": Lexicon.of(Vocabulary((b"a",), {}, frozenset({7}))),
    "lexicon without bytes": Lexicon({"roles": np.zeros(7, np.int32), "spare": INTEGERS[:0]}, 1),
    "weights too many examples": Weights({}, 1 << 53),
}


@pytest.mark.parametrize("name", OUT_OF_BOUNDS)
def test_encode_refuses_what_a_receiver_would_refuse(name: str) -> None:
    with pytest.raises(PayloadError):
        encode(OUT_OF_BOUNDS[name])


NO_MSGPACK_FORM = ("number huge", "text surrogate")
STRUCTS = [
    name for name, payload in OUT_OF_BOUNDS.items() if not isinstance(payload, Arrays) and name not in NO_MSGPACK_FORM
]


@pytest.mark.parametrize("name", STRUCTS)
def test_decode_refuses_out_of_bounds(name: str) -> None:
    payload = OUT_OF_BOUNDS[name]
    with pytest.raises(PayloadError):
        decode(frame(payload.kind, msgspec.msgpack.encode(payload)))


def test_largest_allowed_values_pass() -> None:
    for payload in (
        Number(1e18),
        Profile((1e3, -1e3) * 16),
        Texts(("a" * (1 << 16),)),
        Picks(((1 << 16) - 1,) * (1 << 16)),
        Claims(((1 << 16) - 1,) * (1 << 16), (1,) * (1 << 16), (0,) * (1 << 16)),
        Verdicts((1,) * (1 << 16)),
        gain(1e9, 1e9, 1e9, 1e9, Change(1e9, 1e9, 1e9)),
        Scores((4.0,), 4, {str(index): 1e9 for index in range(64)}),
        Weights({str(index): F32 for index in range(64)}, (1 << 53) - 1),
        SplitPlan({str(each): 1 << 16 for each in range(4096)}, 1 << 16, True, True, "topk", 1 << 20, 1 << 20),
        Shares({str(each): (1 << 53) - 1 for each in range(4096)}),
    ):
        assert_same(decode(encode(payload)), payload)


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


def test_too_many_bytes_for_the_kind() -> None:
    with pytest.raises(PayloadError, match="a number payload has at most 4096 bytes, this one has 5010"):
        decode(frame("number", bytes(5000)))
    with pytest.raises(PayloadError, match="a texts payload has at most"):
        encode(Texts(("a" * (1 << 16),) * 1025))


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


def test_what_shrinks_too_well_travels_as_it_is() -> None:
    plain = np.zeros(100_000, np.float32)
    assert packed("x", plain)["x"] is plain
    assert unpacked(packed("x", plain), "x", np.float32, len(plain)) is plain
    uneven = np.tile(np.arange(7, dtype=np.int32), 60)
    (small,) = packed("x", uneven).items()
    assert small[0] == "x.zst" and small[1].size < uneven.nbytes
    np.testing.assert_array_equal(unpacked(dict([small]), "x", np.int32, len(uneven)), uneven)


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


@settings(max_examples=STRUCTURED_CASES // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(PAYLOADS)), anything)
def test_fuzz_structs(kind: str, value: object) -> None:
    refused(frame(kind, msgspec.msgpack.encode(value)))


@settings(max_examples=STRUCTURED_CASES // 2, deadline=None, suppress_health_check=list(HealthCheck))
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
