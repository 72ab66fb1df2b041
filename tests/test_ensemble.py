"""Clients' knowledge as one teacher: exact numbers, what holds whatever the clients say, and why logits sharpen."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peertune import ensemble as module
from peertune.ensemble import Rule, Use, combine, confidence, entropy, sharpen
from peertune.errors import MethodError
from peertune.knowledge import Knowledge, log_softmax, log_sum, pack

LENGTHS, WIDTH = (2, 1, 3), 9
FORMS = pytest.mark.parametrize("k", [None, 4, WIDTH], ids=["dense", "top-k", "all"])


def client(seed: int, k: int | None = 4, lengths: tuple[int, ...] = LENGTHS, scale: float = 2.0) -> Knowledge:
    logits = np.random.default_rng(seed).normal(0, scale, (sum(lengths), WIDTH))
    return pack(logits, np.array(lengths), k)


def one_row(probabilities: dict[int, float], width: int = WIDTH) -> Knowledge:
    """One problem of one position; what is left is the tail."""
    ids, values = np.array([list(probabilities)], dtype=np.int32), np.array([list(probabilities.values())])
    tail = np.log1p(-values.sum(axis=1)).astype(np.float32)
    return Knowledge(np.array([1], dtype=np.int32), width, np.log(values).astype(np.float32), ids, tail)


def dense(known: Knowledge) -> np.ndarray:
    """log p [N, width], -inf of what is not listed."""
    if known.ids is None:
        return known.logp
    counts, ids, logp, _ = known.rows()
    table = np.full((len(known.logp), known.width), -np.inf)
    table[np.repeat(np.arange(len(counts)), counts), ids] = logp
    return table


def assert_same(one: Knowledge, other: Knowledge) -> None:
    np.testing.assert_array_equal(one.lengths, other.lengths)
    np.testing.assert_allclose(dense(one), dense(other), atol=1e-5)
    if one.tail is not None and other.tail is not None:
        np.testing.assert_allclose(one.tail, other.tail, atol=1e-5)


def test_a_token_is_averaged_over_the_clients_that_sent_it() -> None:
    """Both list 0, one 1, one 2. Before normalising: p_0 = sqrt(.8 x .2), p_1 = .1, p_2 = .4, tail sqrt(.1 x .4)."""
    found = combine([one_row({0: 0.8, 1: 0.1}), one_row({2: 0.4, 0: 0.2})]).knowledge
    found.check()
    expected = np.array([0.4, 0.4, 0.2, 0.1])
    expected /= expected.sum()
    assert found.tail is not None
    np.testing.assert_array_equal(found.ids, [[0, 2, 1]])
    np.testing.assert_allclose(np.exp(found.logp[0]), expected[[0, 1, 3]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found.tail), expected[2], rtol=1e-6)


def test_weights_are_those_of_the_rule() -> None:
    """Confidence .8 and .4: log p_0 = (.8 log .8 + .4 log .2) / 1.2."""
    clients = [one_row({0: 0.8, 1: 0.1}), one_row({2: 0.4, 0: 0.2})]
    entropies = [float(entropy(each)[0]) for each in clients]
    spread = 0.1 * np.log(0.1 / 7), 0.4 * np.log(0.4 / 7)
    assert entropies[0] == pytest.approx(-(0.8 * np.log(0.8) + 0.1 * np.log(0.1) + spread[0]))
    assert entropies[1] == pytest.approx(-(0.4 * np.log(0.4) + 0.2 * np.log(0.2) + spread[1]))
    weights = {"mean": (1.0, 1.0), "confidence": (0.8, 0.4), "entropy": tuple(np.exp(-np.array(entropies)))}
    for weighting, (first, second) in weights.items():
        found = combine(clients, Rule(weighting)).knowledge  # type: ignore[arg-type]
        assert found.tail is not None and found.ids is not None
        p_0, p_1 = (found.logp[0, found.ids[0] == token].item() for token in (0, 1))
        mean = (first * np.log(0.8) + second * np.log(0.2)) / (first + second)
        assert p_0 - p_1 == pytest.approx(mean - np.log(0.1), abs=1e-5)
        tail = (first * np.log(0.1) + second * np.log(0.4)) / (first + second)
        assert p_0 - found.tail.item() == pytest.approx(mean - tail, abs=1e-5)


@pytest.mark.parametrize("weighting", ["mean", "confidence", "entropy"])
def test_all_tokens_listed_is_the_dense_average(weighting: str) -> None:
    rule = Rule(weighting)  # type: ignore[arg-type]
    listed, table = (combine([client(seed, k) for seed in range(3)], rule).knowledge for k in (WIDTH, None))
    assert listed.tail is not None and np.isneginf(listed.tail).all()
    np.testing.assert_allclose(dense(listed), table.logp, atol=1e-5)
    if weighting == "mean":
        expected = log_softmax(np.mean([client(seed, None).logp for seed in range(3)], axis=0))
        np.testing.assert_allclose(table.logp, expected, atol=1e-6)


@FORMS
def test_clients_that_agree_are_one(k: int | None) -> None:
    for rule in (Rule(), Rule("confidence"), Rule("entropy")):
        assert_same(combine([client(0, k)] * 3, rule).knowledge, client(0, k))


@FORMS
def test_the_order_of_clients_does_not_matter(k: int | None) -> None:
    results = [combine([client(seed, k) for seed in order], Rule("entropy")) for order in permutations(range(3))]
    for each in results[1:]:
        assert_same(each.knowledge, results[0].knowledge)


@FORMS
@pytest.mark.parametrize("block", [1, 30, 1 << 22])
def test_blocks_change_nothing(k: int | None, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [client(0, k), None, client(1, k, (2, 0, 3)), client(2, k, (0, 1, 3))]
    expected = combine(clients).knowledge
    monkeypatch.setattr(module, "_BLOCK", block)
    assert_same(combine(clients).knowledge, expected)


@given(seed=st.integers(0, 1 << 30), k=st.integers(1, WIDTH), clients=st.integers(1, 5), limit=st.integers(1, WIDTH))
@settings(max_examples=60)
def test_an_ensemble_is_sound_and_its_limit_moves_the_rest_to_the_tail(
    seed: int, k: int, clients: int, limit: int
) -> None:
    sent = [client(seed + index, k).trim(0.9) for index in range(clients)]
    whole, cut = combine(sent).knowledge, combine(sent, Rule(limit=limit)).knowledge
    for each in (whole, cut):
        each.check()
    assert cut.logp.shape[1] <= limit and whole.tail is not None and cut.tail is not None and whole.ids is not None
    shared = min(limit, whole.logp.shape[1])
    np.testing.assert_allclose(cut.logp, whole.logp[:, :shared], atol=1e-6)
    rest = log_sum(np.column_stack([whole.logp[:, shared:], whole.tail]))
    np.testing.assert_allclose(np.exp(cut.tail), np.exp(rest), atol=1e-6)
    assert (np.diff(np.where(whole.listed, whole.logp, -1e9), axis=1) <= 0).all()
    union = [set().union(*(set(each.ids[row, :count]) for each, count in listed(sent, row))) for row in range(6)]
    assert [set(whole.ids[row]) for row in range(6)] == union


def listed(sent: list[Knowledge], row: int) -> list[tuple[Knowledge, int]]:
    return [(each, int(each.listed[row].sum())) for each in sent]


@FORMS
def test_absent_broken_and_unsure_clients_lose_their_say_and_are_named(k: int | None) -> None:
    good, other, broken, unsure = (client(seed, k) for seed in range(4))
    logp = broken.logp.copy()
    logp[0, 1] = np.nan  # of problem 0; of problem 2 a length that most do not have
    broken = replace(broken, logp=logp, lengths=np.array([2, 2, 2], dtype=np.int32))
    unsure = replace(pack(np.zeros((6, WIDTH)), np.array(LENGTHS), k))
    found = combine([good, None, broken, unsure, other.only(np.array([True, True, False]))], Rule(least_confidence=0.2))
    assert found.uses.tolist() == [
        [Use.USED] * 3,
        [Use.ABSENT] * 3,
        [Use.BROKEN] * 3,
        [Use.UNSURE] * 3,
        [Use.USED, Use.USED, Use.ABSENT],
    ]
    assert_same(found.knowledge.select([2]), good.select([2]))
    assert_same(found.knowledge.select([0, 1]), combine([good, other]).knowledge.select([0, 1]))


@FORMS
def test_a_broken_client_is_used_where_it_is_whole(k: int | None) -> None:
    broken = client(1, k)
    broken.logp[-1, 0] = np.inf
    found = combine([client(0, k), broken])
    assert found.uses.tolist() == [[Use.USED] * 3, [Use.USED, Use.USED, Use.BROKEN]]
    assert_same(found.knowledge.select([2]), client(0, k).select([2]))
    assert_same(found.knowledge.select([0, 1]), combine([client(0, k), client(1, k)]).knowledge.select([0, 1]))


def test_absence_beside_padding_is_no_vote() -> None:
    sure, unsure = (
        pack(np.outer(scale, np.arange(WIDTH)), np.array([1, 1]), 4).trim(0.9) for scale in ([9, 9], [1, 9])
    )
    assert list(unsure.listed.sum(axis=1)) == [3, 1]
    found = combine([sure, unsure.only(np.array([True, False])), unsure.only(np.array([False, True]))])
    assert_same(found.knowledge, combine([sure, unsure]).knowledge)


def test_of_equal_tokens_the_lower_id_comes_first() -> None:
    row = np.arange(200) % 7.0
    expected = [token for value in range(6, -1, -1) for token in np.flatnonzero(row == value)]
    found = combine([pack(row[None], np.array([1]), 200)] * 2).knowledge
    np.testing.assert_array_equal(found.ids, [expected])


@FORMS
def test_a_problem_that_nobody_knows_has_length_0(k: int | None) -> None:
    found = combine([client(0, k, (2, 0, 3)), None, *(client(seed, k, (0, 0, 3)) for seed in (1, 2))])
    assert list(found.knowledge.lengths) == [2, 0, 3]
    assert list(np.isnan(found.entropy)) == [False, True, False] and not found.ambiguous.any()
    found.knowledge.check()
    assert_same(found.knowledge.select([0]), client(0, k, (2, 0, 3)).select([0]))
    nothing = combine([client(0, k, (0, 0, 0)), None])
    assert list(nothing.knowledge.lengths) == [0, 0, 0] and (nothing.uses == Use.ABSENT).all()
    nothing.knowledge.check()


@FORMS
def test_ambiguous_problems_are_left_out(k: int | None) -> None:
    logits = np.random.default_rng(0).normal(0, 5, (6, WIDTH))
    logits[2] = 0.0  # all of problem 1
    known = pack(logits, np.array(LENGTHS), k)
    found = combine([known, known], Rule(greatest_entropy=2.1))
    assert list(found.ambiguous) == [False, True, False] and list(found.knowledge.lengths) == [2, 0, 3]
    assert found.entropy[1] == pytest.approx(np.log(WIDTH), rel=1e-5)
    assert (found.uses == Use.USED).all()
    assert_same(found.knowledge, known.only(np.array([True, False, True])))


@pytest.mark.parametrize(
    "clients",
    [
        [],
        [None, None],
        [client(0), client(0, None)],
        [client(0), client(0, 4, (2, 1))],
        [client(0), replace(client(0), width=WIDTH + 1)],
    ],
)
def test_what_cannot_be_combined_is_refused(clients: list[Knowledge | None]) -> None:
    with pytest.raises(MethodError, match="expected knowledge of the same problems"):
        combine(clients)


def test_a_client_that_puts_its_probability_in_the_tail_is_not_sure() -> None:
    """As k+1 classes 0.9 in the tail would have 0.33 nats; spread over the 99 other tokens it has 4.46."""
    unsure, sure = one_row({3: 0.1}, width=100), one_row({3: 0.9}, width=100)
    assert entropy(unsure).item() == pytest.approx(0.1 * np.log(10) + 0.9 * np.log(99 / 0.9))
    assert entropy(sure).item() == pytest.approx(0.9 * np.log(1 / 0.9) + 0.1 * np.log(99 / 0.1))
    np.testing.assert_allclose(confidence(unsure), 0.1, rtol=1e-6)


@given(
    seed=st.integers(0, 1 << 30),
    scale=st.floats(0.05, 20.0),
    temperature=st.floats(0.05, 0.95),
    k=st.sampled_from([None, 1, 4, WIDTH]),
)
@settings(max_examples=100)
def test_sharpening_lowers_the_entropy(seed: int, scale: float, temperature: float, k: int | None) -> None:
    known = client(seed, k, scale=scale)
    sharp = sharpen(known, temperature)
    sharp.check()
    before, after = entropy(known), entropy(sharp)
    assert (after <= before + 1e-6).all()
    unsure = (before > 1e-3) & (before < np.log(WIDTH) - 1e-3)
    assert (after < before)[unsure & (np.ptp(np.sort(known.logp, axis=1)[:, -2:], axis=1) > 0.01)].all()  # but for ties
    back = sharpen(sharp, 1 / temperature)
    within = known.logp > -30 * temperature  # deeper, float32 has forgotten
    np.testing.assert_allclose(back.logp[within], known.logp[within], atol=1e-3)


def test_sharpening_is_the_softmax_of_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(4, WIDTH))
    found = sharpen(pack(logits, np.array([4])), 0.5)
    np.testing.assert_allclose(found.logp, log_softmax(logits / 0.5), atol=1e-5)


def test_the_softmax_of_probabilities_destroys_a_teacher() -> None:
    """The usual "entropy reduction": at T = 0.1 it takes 77 classes of 2.17 nats to 4.03, of at most 4.34."""
    geometric = np.exp(-0.3116222335 * np.arange(77))[None]  # p_i falls by 27 % a class
    for probabilities, temperature, before, usual in ((geometric, 0.1, 2.17, 4.026), ([[6, 3, 1]], 0.5, 0.898, 1.014)):
        p = np.asarray(probabilities) / np.sum(probabilities)
        known = pack(np.log(p), np.array([1]))
        trap = pack(p / temperature, np.array([1]))
        assert entropy(known).item() == pytest.approx(before, abs=1e-3)
        assert entropy(trap).item() == pytest.approx(usual, abs=1e-3)
        assert entropy(sharpen(known, temperature)).item() < before / 1.4
