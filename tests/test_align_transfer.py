"""Knowledge in another vocabulary: what is mapped, merged, dropped and kept, and what a student then loses."""

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peertune.align import Vocabulary
from peertune.align import transfer as module
from peertune.align.aligner import Aligner
from peertune.align.positions import Positions
from peertune.align.transfer import Merge, transfer
from peertune.errors import PayloadError
from peertune.knowledge import Knowledge, log_softmax, pack
from peertune.losses import Teacher, distillation_loss

LENGTHS, WIDTH = (2, 0, 3), 11
ALL = np.arange(5)
SAME = np.arange(WIDTH, dtype=np.int32)


def logits(seed: int = 0, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2.0, (sum(LENGTHS), width)).astype(np.float32)


def packed(k: int = 4, seed: int = 0) -> Knowledge:
    return pack(logits(seed), np.array(LENGTHS), k)


def row(*entries: tuple[int, float], tail: float = -math.inf, width: int = WIDTH) -> Knowledge:
    """One position, of log-probabilities by id."""
    ids, logp = zip(*entries, strict=True)
    tables = np.array([logp], np.float32), np.array([ids], np.int32), np.array([tail], np.float32)
    return Knowledge(np.array([1], np.int32), width, *tables)


def entries(known: Knowledge, position: int = 0) -> dict[int, float]:
    """log p of each token that is listed."""
    assert known.ids is not None
    listed = known.listed[position]
    return dict(zip(known.ids[position][listed].tolist(), known.logp[position][listed].tolist(), strict=True))


def table(**places: int) -> np.ndarray:
    """A map from and to `WIDTH` tokens that leads nowhere but from `t3=5`: 3 to 5."""
    made = np.full(WIDTH, -1, dtype=np.int32)
    made[[int(name[1:]) for name in places]] = list(places.values())
    return made


def tails(known: Knowledge) -> np.ndarray:
    assert known.tail is not None
    return known.tail


def same(one: Knowledge, other: Knowledge) -> bool:
    names = ("lengths", "width", "logp", "ids", "tail", "counts")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("merge", ["sum", "first"])
@pytest.mark.parametrize("known", [packed(), packed(WIDTH), packed(6).trim(0.8)], ids=["top-k", "all", "ragged"])
def test_the_same_vocabulary_changes_nothing(known: Knowledge, merge: Merge) -> None:
    assert same(transfer(known, ALL, SAME, WIDTH, merge), known)


def test_ids_are_those_of_the_other_vocabulary() -> None:
    turned = SAME[::-1].copy()
    found = transfer(packed(), ALL, turned, WIDTH)
    assert same(replace(found, ids=turned[found.ids]), packed())


def test_rows_are_taken_and_counted_by_problem() -> None:
    found = transfer(packed(), np.array([1, 2, 4]), SAME, WIDTH)
    assert list(found.lengths) == [1, 0, 2]
    np.testing.assert_array_equal(found.ids, packed().ids[[1, 2, 4]])  # pyright: ignore[reportOptionalSubscript]
    nothing = transfer(packed(), np.zeros(0, dtype=np.int64), SAME, WIDTH)
    nothing.check()
    assert list(nothing.lengths) == [0, 0, 0]


def test_one_counterpart_gets_the_sum_or_the_first() -> None:
    logp = log_softmax(np.array([[9.0, 7.0, 5.0]]))[0]
    known = row((0, logp[0]), (1, logp[1]), (2, logp[2]))
    places = table(t0=4, t1=8, t2=4)
    summed, first = (transfer(known, ALL[:1], places, WIDTH, merge) for merge in ("sum", "first"))
    assert entries(summed) == pytest.approx({4: math.log(math.exp(logp[0]) + math.exp(logp[2])), 8: logp[1]})
    assert np.isneginf(tails(summed)).all()
    assert entries(first) == pytest.approx({4: logp[0], 8: logp[1]})
    assert tails(first) == pytest.approx(logp[2])


def test_a_sum_can_overtake() -> None:
    known = row((0, math.log(0.4)), (1, math.log(0.35)), (2, math.log(0.25)))
    found = transfer(known, ALL[:1], table(t0=7, t1=5, t2=5), WIDTH)
    assert list(entries(found)) == [5, 7] and entries(found) == pytest.approx({5: math.log(0.6), 7: math.log(0.4)})


def test_what_has_no_counterpart_joins_the_tail() -> None:
    known = row((0, math.log(0.5)), (1, math.log(0.25)), tail=math.log(0.25))
    found = transfer(known, ALL[:1], table(t0=3), WIDTH)
    assert entries(found) == pytest.approx({3: math.log(0.5)}) and tails(found) == pytest.approx(math.log(0.5))
    nothing = transfer(known, ALL[:1], table(), WIDTH)
    nothing.check()
    assert entries(nothing) == {} and tails(nothing) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("merge", ["sum", "first"])
def test_what_said_nothing_says_nothing(merge: Merge) -> None:
    wide = packed().spread(np.array([0, 2, 4, 5, 7]), np.array([3, 0, 5]))
    found = transfer(wide, np.arange(8), SAME, WIDTH, merge)
    assert found.rows()[0].tolist() == [4, 0, 4, 0, 4, 4, 0, 4] and same(found, wide)


def test_rows_of_a_head_without_a_token_have_no_counterpart() -> None:
    known = row((2, math.log(0.75)), (WIDTH + 3, math.log(0.25)), width=WIDTH + 5)
    found = transfer(known, ALL[:1], SAME, WIDTH)
    assert entries(found) == pytest.approx({2: math.log(0.75)}) and tails(found) == pytest.approx(math.log(0.25))


def test_where_all_tokens_are_listed_the_least_probable_is_the_tail() -> None:
    known = row((0, math.log(0.4)), (1, math.log(0.3)), (2, math.log(0.2)), tail=math.log(0.1))
    found = transfer(known, ALL[:1], table(t0=1, t1=0, t2=2), 3)
    found.check()
    assert entries(found) == pytest.approx({1: math.log(0.4), 0: math.log(0.3)})
    assert tails(found) == pytest.approx(math.log(0.3))


@pytest.mark.parametrize("bad", [WIDTH, -1, 1 << 30])
def test_an_id_out_of_range_is_refused(bad: int) -> None:
    with pytest.raises(PayloadError, match=f"expected ids of 0 to {WIDTH - 1}"):
        transfer(row((0, -1.0), (bad, -1.0)), ALL[:1], SAME, WIDTH)


def test_all_tokens_in_a_dense_table_are_refused() -> None:
    with pytest.raises(PayloadError, match="send the top k"):
        transfer(pack(logits(), np.array(LENGTHS)), ALL, SAME, WIDTH)


def expected(known: Knowledge, position: int, places: np.ndarray, merge: Merge) -> tuple[dict[int, float], float]:
    """Probabilities by id, and of the tail, one entry at a time."""
    found, tail = {}, math.exp(tails(known)[position])
    for token, logp in sorted(entries(known, position).items(), key=lambda entry: -entry[1]):
        place = int(places[token])
        if place < 0 or (place in found and merge == "first"):
            tail += math.exp(logp)
        else:
            found[place] = found.get(place, 0.0) + math.exp(logp)
    return found, tail


@given(data=st.data(), merge=st.sampled_from(["sum", "first"]), k=st.integers(1, WIDTH), mass=st.floats(0.3, 1.0))
@settings(max_examples=150)
def test_it_is_what_one_entry_at_a_time_gives(data: st.DataObject, merge: Merge, k: int, mass: float) -> None:
    width = data.draw(st.integers(1, 14), "width")
    places = np.array(data.draw(st.lists(st.integers(-1, width - 1), min_size=WIDTH, max_size=WIDTH)), dtype=np.int32)
    known = packed(k, data.draw(st.integers(0, 1 << 20))).trim(mass)
    found = transfer(known, ALL, places, width, merge)
    found.check()
    logp = np.where(found.listed, found.logp, -np.inf)
    assert (logp[:, :-1] >= logp[:, 1:]).all()
    for position in range(5):
        probabilities, tail = expected(known, position, places, merge)
        if len(probabilities) == width and tail > 0:
            least = min(entries(found, position).keys() ^ probabilities.keys())
            assert probabilities[least] == pytest.approx(min(probabilities.values()))
            tail += probabilities.pop(least)
        given = {token: math.exp(logp) for token, logp in entries(found, position).items()}
        assert given == pytest.approx(probabilities, rel=1e-5)
        assert math.exp(tails(found)[position]) == pytest.approx(tail, rel=1e-5, abs=1e-30)
        assert sum(given.values()) + math.exp(tails(found)[position]) == pytest.approx(1, abs=1e-5)


def test_a_tail_too_small_for_exp_is_kept() -> None:
    known = row((0, -1e-6), (1, -900.0), (2, -901.0), tail=-2000.0)
    for places, listed in ((SAME, [0, 1, 2]), (table(t0=0, t1=1, t2=1), [0, 1])):
        found = transfer(known, ALL[:1], places, WIDTH)
        assert list(entries(found)) == listed and list(tails(found)) == [-2000]
        assert np.isfinite(found.logp).all()


def test_blocks_are_one_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    places = np.array([0, 1, 2, 0, 1, 2, -1, 3, 3, 3, 0], dtype=np.int32)
    whole = transfer(packed(7), ALL, places, WIDTH)
    monkeypatch.setattr(module, "_BLOCK", 7)
    assert same(transfer(packed(7), ALL, places, WIDTH), whole)


def test_nothing_is_as_wide_as_a_vocabulary() -> None:
    n, k, width = 2000, 16, 1 << 30
    ids = np.random.default_rng(0).permuted(np.tile(np.arange(5 * k, dtype=np.int32), (n, 1)), axis=1)[:, :k]
    flat = np.full((n, k), -math.log(k), np.float32)
    known = Knowledge(np.array([n], np.int32), width, flat, np.ascontiguousarray(ids), np.full(n, -np.inf, np.float32))
    places = np.random.default_rng(1).integers(0, width, 5 * k).astype(np.int32)
    tracemalloc.start()
    found = transfer(known, np.arange(n), places, width)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.logp) == n and peak < 120 * n * k


# What a student loses


def learnt(known: Knowledge) -> tuple[float, torch.Tensor]:
    """The loss of a fixed student of `known.width` tokens, and its gradient by the hidden states [N, 8]."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(known.width, 8, generator=generator)
    hidden = torch.randn(len(known.logp), 8, generator=generator, requires_grad=True)
    parts: Any = (None if each is None else torch.from_numpy(each) for each in (known.logp, known.ids, known.tail))
    loss = distillation_loss(hidden, head, None, Teacher(*parts))
    loss.backward()
    assert hidden.grad is not None
    return loss.item(), hidden.grad


def test_all_tokens_without_a_map_teach_what_the_plain_ones_do() -> None:
    plain, gradient = learnt(pack(logits(), np.array(LENGTHS)))
    loss, other = learnt(transfer(packed(WIDTH), ALL, SAME, WIDTH))
    assert loss == pytest.approx(plain, rel=1e-5) and torch.allclose(gradient, other, atol=1e-6)


def test_a_position_of_which_nothing_is_known_costs_nothing() -> None:
    places = np.array([-1, 1, 2, 0, 1, 2, -1, 3, -1, 3, 0], dtype=np.int32)
    some = transfer(packed(3), np.array([0, 3]), places, WIDTH)
    wide = some.spread(np.array([1, 3]), np.array([2, 0, 3]))
    loss, gradient = learnt(wide)
    assert list(wide.lengths) == [2, 0, 3] and math.isfinite(loss)
    assert (gradient[[0, 2, 4]] == 0).all() and (gradient[[1, 3]] != 0).any(dim=1).all()


# The aligner


ONE = Vocabulary((b"", b"we", b" utilize", b" the", b" util", b" of"), {"eos": 0})
OTHER = Vocabulary((b" the", b"ize", b" util", b"we", b" a", b""), {"eos": 5})
MAP = np.array([5, 3, 2, 0, 2, -1], dtype=np.int32)
TEXT = "we utilize the"


def sides() -> tuple[Positions, Positions]:
    return (
        Positions.of(ONE, [([1, 2, 3, 0], TEXT), ([1, 0], "we")]),
        Positions.of(OTHER, [([3, 2, 1, 0, 5], TEXT), ([3, 5], "we")]),
    )


def of_one(k: int = 6) -> Knowledge:
    return pack(np.random.default_rng(3).normal(0, 2, (6, 6)).astype(np.float32), np.array([4, 2]), k)


def test_an_aligner_moves_rows_to_the_positions_they_belong_to() -> None:
    known = of_one()
    found, rows, positions = Aligner(ONE, OTHER, MAP).translate(known, *sides())
    found.check()
    assert positions.tolist() == [0, 1, 3, 4, 5, 6] and found.lengths.tolist() == [4, 2] and found.width == 6
    assert rows.tolist() == list(range(6))
    for position in range(6):
        source, target = entries(known, position), entries(found, position)
        assert target[2] == pytest.approx(math.log(math.exp(source[2]) + math.exp(source[4])), rel=1e-5)
        assert {token: target[token] for token in (5, 3, 0)} == {5: source[0], 3: source[1], 0: source[3]}
        assert tails(found)[position] == pytest.approx(source[5], rel=1e-5)
    first, *_ = Aligner(ONE, OTHER, MAP, "first").translate(known, *sides())
    assert entries(first)[2] == max(entries(known)[2], entries(known)[4])


def test_a_vocabulary_is_aligned_to_itself_as_it_is() -> None:
    side = sides()[0]
    found, _, positions = Aligner(ONE, ONE, np.arange(6, dtype=np.int32)).translate(of_one(), side, side)
    assert same(found, of_one()) and positions.tolist() == list(range(6))
    assert same(found.spread(positions, side.lengths), replace(of_one(), counts=np.full(6, 6, np.int32)))


def test_forth_and_back_is_where_it_was_as_far_as_the_map_is_one_to_one() -> None:
    forth = np.array([5, 3, 2, 0, 4, 1], dtype=np.int32)
    back = np.argsort(forth).astype(np.int32)
    one, other = sides()
    there, _, positions = Aligner(ONE, OTHER, forth).translate(of_one(), one, other)
    wide = there.spread(positions, other.lengths)
    again, _, rows = Aligner(OTHER, ONE, back).translate(wide, other, one)
    assert same(again, of_one()) and rows.tolist() == list(range(6))


def test_knowledge_that_does_not_fit_is_refused() -> None:
    aligner, (one, other) = Aligner(ONE, OTHER, MAP), sides()
    with pytest.raises(PayloadError, match="a row for each of the positions"):
        aligner.translate(of_one().only(np.array([True, False])), one, other)
    with pytest.raises(PayloadError, match="a vocabulary of 6 tokens, found 5"):
        aligner.translate(replace(of_one(3), width=5), one, other)
    with pytest.raises(PayloadError, match="same problems"):
        aligner.translate(of_one(), one, Positions.of(OTHER, []))
