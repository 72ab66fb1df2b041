"""Knowledge of public problems: what is kept of logits, what a receiver refuses, and 8-bit codes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peertune import knowledge as module
from peertune.errors import PayloadError
from peertune.knowledge import FLOOR, Knowledge, dequantise, join, log_softmax, log_sum, pack, quantise

LENGTHS, WIDTH = (2, 0, 3), 11


def logits(seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (sum(LENGTHS), WIDTH)).astype(np.float32)


def packed(k: int | None = 4, seed: int = 0) -> Knowledge:
    return pack(logits(seed), np.array(LENGTHS), k)


def dense(known: Knowledge) -> np.ndarray:
    """log p [N, width]; -inf of what is not listed."""
    assert known.ids is not None
    table = np.full((len(known.logp), known.width), -np.inf)
    counts, ids, logp, _ = known.rows()
    table[np.repeat(np.arange(len(counts)), counts), ids] = logp
    return table


def same(one: Knowledge, other: Knowledge) -> bool:
    names = ("lengths", "width", "logp", "ids", "tail", "counts")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("block", [1, 2 * WIDTH, 1 << 22])
def test_the_most_probable_are_kept_and_the_rest_is_the_tail(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    known, logp = packed(), log_softmax(logits())
    known.check()
    order = np.argsort(-logp, axis=1)
    np.testing.assert_array_equal(known.ids, order[:, :4])
    np.testing.assert_allclose(known.logp, np.take_along_axis(logp, order[:, :4], 1), rtol=1e-6)
    np.testing.assert_allclose(known.tail, log_sum(np.take_along_axis(logp, order[:, 4:], 1)), rtol=1e-6)
    np.testing.assert_array_equal(known.problems, [0, 0, 2, 2, 2])


def test_log_probabilities_pack_as_their_logits_do() -> None:
    known, again = packed(), pack(log_softmax(logits()), np.array(LENGTHS), 4)
    np.testing.assert_array_equal(again.ids, known.ids)
    np.testing.assert_allclose(again.logp, known.logp, atol=1e-6)
    np.testing.assert_allclose(again.tail, known.tail, atol=1e-6)


def test_of_equals_the_lower_id_comes_first() -> None:
    row = np.arange(200) % 7.0
    expected = [token for value in (6.0, 5.0, 4.0, 3.0) for token in np.flatnonzero(row == value)]
    np.testing.assert_array_equal(pack(row[None], np.array([1]), len(expected)).ids, [expected])


def test_all_tokens_leave_no_tail_and_a_billionth_leaves_one() -> None:
    everything = packed(WIDTH + 5)
    everything.check()
    assert np.isneginf(everything.tail).all() and everything.logp.shape[1] == WIDTH
    np.testing.assert_allclose(dense(everything), log_softmax(logits()), rtol=1e-6)
    np.testing.assert_allclose(packed(None).logp, log_softmax(logits()), rtol=1e-6)
    sure = pack(np.array([[50.0, 0.0, 0.0]], dtype=np.float32), np.array([1]), 1)
    assert sure.tail is not None and sure.tail[0] == pytest.approx(np.log(2) - 50)


@given(seed=st.integers(0, 1 << 30), mass=st.floats(0.01, 1.0), k=st.integers(1, WIDTH))
@settings(max_examples=50)
def test_trimmed_rows_have_the_mass_and_no_entry_too_many(seed: int, mass: float, k: int) -> None:
    whole = packed(k, seed)
    known = whole.trim(mass)
    known.check()
    counts, *_, tail = known.rows()
    listed, full = np.exp(dense(known)).sum(axis=1), np.exp(whole.logp).sum(axis=1)
    np.testing.assert_allclose(listed + np.exp(tail), 1, atol=1e-6)
    assert ((listed >= mass - 1e-6) | (np.abs(listed - full) < 1e-6)).all()
    smallest = np.array([known.logp[row, count - 1] for row, count in enumerate(counts)])
    assert ((listed - np.exp(smallest) < mass + 1e-6) & (counts >= 1)).all()


def test_rows_and_ragged_are_inverse() -> None:
    known = packed(6).trim(0.8)
    assert known.counts is not None and len(set(known.counts)) > 1
    assert same(Knowledge.ragged(known.lengths, WIDTH, *known.rows()), known)
    assert same(Knowledge.ragged(packed().lengths, WIDTH, *packed().rows()), packed())


def test_a_table_is_bounded_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENTRIES", 19)
    with pytest.raises(PayloadError, match="at most 19 entries; found 20, and 5 rows of up to 4"):
        Knowledge.ragged(packed().lengths, WIDTH, *packed().rows())


@pytest.mark.parametrize("counts", [[4, 4, 4, 4, 3], [5, 4, 4, 4, 4], [24, -1, -1, -1, -1]])
def test_counts_that_do_not_fit_are_refused(counts: list[int]) -> None:
    _, *rows = packed().rows()
    with pytest.raises(PayloadError, match="expected counts that sum to 20"):
        Knowledge.ragged(packed().lengths, WIDTH, np.array(counts), *rows)
    _, ids, logp, tail = packed().rows()
    with pytest.raises(PayloadError, match="found 19"):
        Knowledge.ragged(packed().lengths, WIDTH, np.full(5, 4), ids, logp[1:], tail)


@pytest.mark.parametrize("known", [packed(), packed(None), packed(6).trim(0.8)], ids=["top-k", "dense", "ragged"])
def test_problems_can_be_taken_out_left_out_and_joined(known: Knowledge) -> None:
    first, none, last = (known.select([index]) for index in range(3))
    for part in (first, none, last, known.select([]), known.only(np.array([False, True, True]))):
        part.check()
    assert [len(part.logp) for part in (first, none, last)] == list(LENGTHS)
    assert same(join([first, none, last]), known)
    assert same(known.select([2, 0]), join([last, first]).select([0, 1]))
    left = known.only(np.array([False, True, True]))
    assert list(left.lengths) == [0, 0, 3]
    np.testing.assert_array_equal(left.logp, last.logp)


@pytest.mark.parametrize("known", [packed(), packed(6).trim(0.8)], ids=["top-k", "ragged"])
def test_spread_knowledge_says_nothing_of_the_other_positions(known: Knowledge) -> None:
    wide = known.spread(np.array([1, 2, 8, 9, 10]), np.array([4, 3, 4]))
    wide.check()
    assert list(wide.lengths) == [4, 0, 4]
    counts, ids, logp, tail = known.rows()
    for found, expected in zip(wide.rows()[1:3], (ids, logp), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(wide.rows()[0], [0, counts[0], counts[1], 0, 0, *counts[2:]])
    np.testing.assert_array_equal(wide.tail, [0, tail[0], tail[1], 0, 0, *tail[2:]])


def test_nothing_is_knowledge() -> None:
    for k in (None, 3):
        pack(np.zeros((0, WIDTH)), np.zeros(2), k).check()


def test_a_diverged_model_knows_nothing() -> None:
    for bad in (np.nan, np.inf):
        broken = logits()
        broken[2, 3] = bad
        with pytest.raises(PayloadError, match="diverged"):
            pack(broken, np.array(LENGTHS), 4)


def changed(table: np.ndarray | None, place: tuple[int, ...], value: float) -> np.ndarray:
    assert table is not None
    copy = table.copy()
    copy[place] = value
    return copy


ragged = packed(6).trim(0.8)
BAD = {
    "float64": (replace(packed(), logp=packed().logp.astype(np.float64)), "logp to be float32"),
    "no tail": (replace(packed(), tail=None), "tail to be float32"),
    "a lone tail": (replace(packed(None), tail=packed().tail), "ids beside the tail"),
    "a column missing": (
        replace(packed(None), width=WIDTH + 1),
        r"logp to be float32 \(5, 12\), found float32 \(5, 11\)",
    ),
    "one dimension": (replace(packed(), logp=packed().logp[0]), "logp to be float32"),
    "more entries than tokens": (replace(packed(), width=3), "1 to 3 entries"),
    "no entries": (Knowledge(np.zeros(0, np.int32), 0, np.zeros((0, 0), np.float32)), "entries a position, found 0"),
    "lengths": (replace(packed(), lengths=np.array([2, 0, 4], np.int32)), "sum to 5 positions"),
    "negative length": (replace(packed(), lengths=np.array([3, -1, 3], np.int32)), "sum to 5 positions"),
    "NaN": (replace(packed(), logp=changed(packed().logp, (1, 1), np.nan)), "finite log-probabilities"),
    "infinity": (replace(packed(), logp=changed(packed().logp, (1, 1), -np.inf)), "finite log-probabilities"),
    "positive": (replace(packed(), logp=changed(packed().logp, (1, 1), 0.1)), "at most 0"),
    "NaN tail": (replace(packed(), tail=changed(packed().tail, (1,), np.nan)), "finite log-probabilities"),
    "too much mass": (replace(packed(), tail=changed(packed().tail, (1,), 0.0)), "sum to 1"),
    "too little mass": (replace(packed(), logp=changed(packed().logp, (1, 0), -9.0)), "sum to 1"),
    "too little mass, dense": (replace(packed(None), logp=packed(None).logp - np.float32(1)), "sum to 1"),
    "id too large": (replace(packed(), ids=changed(packed().ids, (0, 1), WIDTH)), "ids of 0 to 10"),
    "negative id": (replace(packed(), ids=changed(packed().ids, (0, 1), -1)), "ids of 0 to 10"),
    "id twice": (replace(packed(), ids=changed(packed().ids, (0, 1), packed().ids[0, 3])), "once in a row"),
    "count of 0": (replace(ragged, counts=changed(ragged.counts, (0,), 0)), "padding"),
    "negative count": (replace(ragged, counts=changed(ragged.counts, (0,), -1)), "counts of 0 to"),
    "count too large": (replace(ragged, counts=changed(ragged.counts, (0,), 9)), "counts of 0 to"),
    "padding": (replace(packed(), counts=np.array([4, 4, 3, 4, 4], np.int32)), "padding"),
    "a tail of nothing": (replace(packed(WIDTH), tail=np.full(5, -9.0, np.float32)), "all tokens are listed"),
}


@pytest.mark.parametrize(("known", "message"), BAD.values(), ids=BAD)
def test_a_receiver_refuses(known: Knowledge, message: str) -> None:
    with pytest.raises(PayloadError, match=message):
        known.check()


@given(seed=st.integers(0, 1 << 30), scale=st.floats(0.0, 30.0), k=st.integers(1, WIDTH))
@settings(max_examples=60)
def test_codes_are_off_by_half_a_step(seed: int, scale: float, k: int) -> None:
    known = pack(logits(seed, scale), np.array(LENGTHS), k)
    codes, top, step = quantise(known.logp)
    found = dequantise(codes, top, step)
    assert codes.dtype == np.uint8 and {top.dtype, step.dtype, found.dtype} == {np.dtype(np.float32)}
    assert (step <= FLOOR / 255 + 1e-6).all() and (found <= 0).all()
    reached = np.maximum(known.logp, top[:, None] - FLOOR)
    assert (np.abs(found - reached) <= step[:, None] / 2 + 1e-5).all()
    np.testing.assert_array_equal(found.max(axis=1), known.logp.max(axis=1))
    replace(known, logp=found).check()


def test_codes_of_padding_take_nothing_from_the_others() -> None:
    _, _, step = quantise(ragged.logp)
    spans = [row[mask].max() - row[mask].min() for row, mask in zip(ragged.logp, ragged.listed, strict=True)]
    np.testing.assert_allclose(step, np.array(spans) / 255, rtol=1e-5)
