"""Who should teach whom, which claims can be true, and how few bytes they take."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from peertune.align import Vocabulary
from peertune.align.positions import BEFORE
from peertune.assessment import Assessment, believable, least_loss, right_tokens, shares
from peertune.errors import PayloadError
from peertune.knowledge import Knowledge, pack
from peertune.payloads import Assessed, decode, encode

NAN, INF = math.nan, math.inf
WORDS = Vocabulary((b"", b"a", b"b", b"ab", b" a", b"c"), {"eos": 0})
IDS = {token: id for id, token in enumerate(WORDS.tokens)}
ANSWERS = [b"ab", b"aab"]
TEXTS = np.array([7, 8], np.int32)
TOKENS = [3, 0, 4, 3, 0]  # ab. and, with a space before it, a-ab.
STARTS = np.array([0, 2, BEFORE, 1, 3], np.int32)

losses = st.one_of(st.floats(0, 10, width=32), st.sampled_from([NAN, INF, 1.0]))


# DualMinCE


@pytest.mark.parametrize(
    ("own", "others", "wanted"),
    [
        (1.0, [0.9, 0.8, 0.8], 1),  # of equals the first
        (0.8, [0.8, 0.9], -1),  # only if it is better
        (1.0, [NAN, INF, 0.5], 2),
        (1.0, [NAN, -INF + INF, INF], -1),
        (NAN, [NAN, 3.0], 1),  # whoever has diverged learns from anybody
        (NAN, [NAN, INF], -1),
        (1.0, [np.float32(1.0) - np.float32(1e-6)], 0),  # bf16 would not tell them apart
    ],
)
def test_the_teacher_loses_least_and_less_than_the_learner(own: float, others: list[float], wanted: int) -> None:
    assert least_loss(np.array([own]), np.array(others)[:, None]).tolist() == [wanted]


def test_nobody_was_heard() -> None:
    assert least_loss(np.ones(3), np.zeros((0, 3))).tolist() == [-1] * 3
    assert shares(np.ones(3), np.zeros((0, 3))).shape == (0, 3)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_what_is_no_number_never_teaches(sources: int, problems: int, data: st.DataObject) -> None:
    own = data.draw(hnp.arrays(np.float32, problems, elements=losses))
    others = data.draw(hnp.arrays(np.float32, (sources, problems), elements=losses))
    best, weights = least_loss(own, others), shares(own, others)
    assert np.isfinite(weights).all()
    for problem, chosen in enumerate(best.tolist()):
        column = others[:, problem]
        if chosen < 0:
            assert not weights[:, problem].any()
            continue
        assert column[chosen] == np.nanmin(column) and not (own[problem] <= column[chosen])
        assert weights[:, problem].sum() == pytest.approx(1)
        assert weights[chosen, problem] == weights[:, problem].max()  # losses nearly the same weigh the same
        assert not weights[~np.isfinite(column), problem].any()


def test_shares_are_exponential_in_the_loss() -> None:
    found = shares(np.array([2.0]), np.array([[1.0], [0.5], [2.0]]))
    np.testing.assert_allclose(found[:, 0], [1 / (1 + math.e**0.5), 1 / (1 + math.e**-0.5), 0])


# Losses and claims


def claim(logits: np.ndarray | None = None, k: int = 3, bits: str = "fp16") -> Assessment:
    """Of both answers; the loss is the truth, and all has been on the wire."""
    logits = np.random.default_rng(0).normal(0, 3, (5, 6)) if logits is None else logits
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    nats = -logp[range(5), TOKENS]
    sums = np.array([nats[:2].sum(), nats[2:].sum()], np.float32)
    found = Assessment(pack(logits, np.array([2, 3]), k), STARTS, sums, TEXTS, WORDS.digest)
    sent = decode(encode(Assessed.of(found, bits)))  # pyright: ignore[reportArgumentType]
    assert isinstance(sent, Assessed)
    return sent.assessment()


def checked(one: Assessment) -> list[bool]:
    right = right_tokens(one, ANSWERS, IDS, 0)
    return believable(one, TEXTS, np.array([2, 3]), right).tolist()


def test_right_tokens_are_read_off_the_answer() -> None:
    assert right_tokens(claim(), ANSWERS, IDS, 0).tolist() == TOKENS


def test_losses_are_by_byte_of_the_answer() -> None:
    found = claim()
    np.testing.assert_allclose(found.loss, found.nats / [2, 3])
    assert found.only(np.array([True, False])).loss[1] == INF
    assert replace(found, nats=np.array([NAN, 1], np.float32)).loss.tolist() == [INF, np.float32(1 / 3)]
    empty = Assessment(
        pack(np.zeros((1, 6)), np.array([1]), 2), np.zeros(1, np.int32), np.zeros(1, np.float32), TEXTS[:1], ""
    )
    assert empty.loss.tolist() == [INF]  # an empty answer: only its end


@given(
    hnp.arrays(np.float64, (5, 6), elements=st.floats(-15, 15)),
    st.integers(1, 6),
    st.sampled_from(["fp16", "int8"]),
)
def test_the_truth_is_believed(logits: np.ndarray, k: int, bits: str) -> None:
    assert checked(claim(logits, k, bits)) == [True, True]


@pytest.mark.parametrize("k", [1, 3, 6])
def test_a_loss_below_what_the_log_probabilities_say_is_not(k: int) -> None:
    """Where the right token is not listed, it has no more than the tail, and no more than any that is."""
    logits = np.tile(np.array([0.0, 0, 5, 0, 0, 0]), (5, 1))  # "b", of which there is none
    honest = claim(logits, k)
    assert checked(honest) == [True, True]
    assert checked(replace(honest, nats=np.array([0.5, honest.nats[1]], np.float32))) == [False, True]


def test_another_text_other_cuts_and_other_sizes_are_not() -> None:
    found = claim()
    assert checked(replace(found, texts=TEXTS + np.array([0, 1], np.int32))) == [True, False]
    assert checked(replace(found, starts=np.array([0, 2, BEFORE, 2, 3], np.int32))) == [
        True,
        False,
    ]  # " aa" is no token
    assert checked(replace(found, starts=np.array([0, 1, BEFORE, 1, 3], np.int32))) == [False, True]  # "a", and no more
    nothing = found.only(np.array([False, True]))
    assert checked(nothing) == [True, True] and nothing.sizes.tolist() == [0, 3]


def test_positions_that_have_no_place_are_refused() -> None:
    with pytest.raises(PayloadError, match="a place for every position"):
        replace(claim(), starts=np.array([0, 2, -2, 1, 3], np.int32)).check()


# Bytes


def synthetic(width: int, positions: int = 192) -> np.ndarray:
    """Zipf over ids, as in the vocabularies of byte-pair encodings, topics, and noise; the 64 most probable have half
    of the probability, where language models give them 0.9.
    """
    draw = np.random.default_rng(0)
    topics = np.zeros((64, width), np.float32)
    for topic in topics:
        chosen = draw.choice(width, width // 50, replace=False)
        topic[chosen] = draw.gamma(2, 1.0, len(chosen))
    logits = -np.log(np.arange(1, width + 1) + 2.7) + topics[draw.integers(64, size=positions)]
    return (logits + draw.normal(0, 1.3, (positions, width))).astype(np.float32)


@pytest.mark.parametrize("width", [32_000, 128_256])
def test_bytes_a_position(width: int) -> None:
    """With all that travels beside the entries, framing included."""
    known = pack(synthetic(width), np.array([96, 96]), 64)
    assert 0.4 < np.exp(known.logp).sum(axis=1).mean() < 0.6
    starts = np.tile(np.arange(96, dtype=np.int32) * 4, 2)
    found = Assessment(known, starts, np.ones(2, np.float32), TEXTS, WORDS.digest)
    for bits, most, error in (("fp16", 180, 0.005), ("int8", 155, 0.02)):
        raw = encode(Assessed.of(found, bits))  # pyright: ignore[reportArgumentType]
        assert len(raw) / len(known.logp) <= most
        sent = decode(raw)
        assert isinstance(sent, Assessed)
        other = sent.assessment()
        np.testing.assert_array_equal(other.starts, starts)
        for mine, its in zip(by_id(known), by_id(other.known), strict=True):
            assert np.abs(mine - its).max() <= (0 if mine.dtype == np.int32 else error)


def by_id(known: Knowledge) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log p; rounding makes equals of neighbours, so their order may be another."""
    assert known.ids is not None
    order = np.argsort(known.ids, axis=1)
    return np.take_along_axis(known.ids, order, 1), np.take_along_axis(known.logp, order, 1)
