"""Payloads: exact wire bytes, and round trips of every kind."""

import numpy as np
import pytest
from frames import GOLDEN, INTEGERS, assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from peertune.align import Vocabulary
from peertune.align.positions import BEFORE
from peertune.assessment import Assessment
from peertune.codecs import Codec
from peertune.knowledge import pack
from peertune.payloads import (
    PAYLOADS,
    PROFILE_SIZE,
    Activations,
    Alignment,
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


def test_every_kind_has_a_strategy() -> None:
    assert set(payloads) == set(PAYLOADS)


@pytest.mark.parametrize("kind", sorted(payloads))
def test_round_trip(kind: str) -> None:
    @settings(max_examples=60)
    @given(payloads[kind])
    def check(payload: Payload) -> None:
        raw = encode(payload)
        assert kind_of(raw) == kind
        assert_same(decode(raw), payload)
        assert encode(payload) == raw

    check()


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
