"""Bounds of payloads: what a receiver would refuse, its sender refuses, and the largest allowed values pass."""

import msgspec
import numpy as np
import pytest
from frames import EXAMPLE, INTEGERS, assert_same, frame

from peertune.align import Vocabulary
from peertune.errors import PayloadError
from peertune.payloads import (
    PROFILE_SIZE,
    Activations,
    Alignment,
    Arrays,
    Assessed,
    Change,
    Claims,
    Factors,
    Gain,
    Gradient,
    Labelled,
    Lexicon,
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
    Weights,
    decode,
    encode,
)
from peertune.payloads.arrays import MAX_TENSORS
from peertune.payloads.packing import packed, unpacked


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


def test_too_many_bytes_for_the_kind() -> None:
    with pytest.raises(PayloadError, match="a number payload has at most 4096 bytes, this one has 5010"):
        decode(frame("number", bytes(5000)))
    with pytest.raises(PayloadError, match="a texts payload has at most"):
        encode(Texts(("a" * (1 << 16),) * 1025))


def test_what_shrinks_too_well_travels_as_it_is() -> None:
    plain = np.zeros(100_000, np.float32)
    assert packed("x", plain)["x"] is plain
    assert unpacked(packed("x", plain), "x", np.float32, len(plain)) is plain
    uneven = np.tile(np.arange(7, dtype=np.int32), 60)
    (small,) = packed("x", uneven).items()
    assert small[0] == "x.zst" and small[1].size < uneven.nbytes
    np.testing.assert_array_equal(unpacked(dict([small]), "x", np.int32, len(uneven)), uneven)
