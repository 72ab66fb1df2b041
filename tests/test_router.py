"""Credit for each source, category and confidence: the posterior by hand, and who is asked because of it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertune.matchmakers.base import State
from peertune.matchmakers.router import TESTED, Claimed, Router, category_numbers, confidence_bin

MEAN = Router(explore=False, floor=0.0)
PRIOR = [0.05, 0.2, 0.5, 0.8, 0.9]


def claims(surprise: Any, bins: Any, offered: Any = None, settled: Any = None) -> Claimed:
    surprise = np.array(surprise)
    return Claimed(
        surprise,
        np.array(bins),
        np.ones(surprise.shape, bool) if offered is None else np.array(offered, bool),
        np.zeros(surprise.shape, bool) if settled is None else np.array(settled, bool),
    )


def observed(router: Router, state: State, source: int, category: int, bin: int, passed: list[float]) -> State:
    cells = (np.full(len(passed), category), np.full(len(passed), bin))
    return router.observe(state, source, cells, np.array(passed))


# The posterior


def test_before_anything_is_known_everybody_has_the_prior_of_its_bin() -> None:
    credit = MEAN.credit(MEAN.init(2, 3, 0))
    assert credit.shape == (2, 3, 5)
    assert np.allclose(credit, PRIOR)


def test_the_posterior_by_hand() -> None:
    """Source 0 was right 3 times of 4 in category 0, bin 1; then every level is shrunk to the one above by 4 tries."""
    state = observed(MEAN, MEAN.init(2, 2, 0), 0, 0, 1, [1, 1, 1, 0])
    everybody = (3 + 4 * 0.2) / (4 + 4)
    first = (3 + 4 * everybody) / (4 + 4)
    credit = MEAN.credit(state)
    assert credit[0, 0, 1] == pytest.approx((3 + 4 * first) / (4 + 4))
    assert credit[0, 1, 1] == pytest.approx(first)  # of another category: what the source does elsewhere
    assert credit[1, 0, 1] == credit[1, 1, 1] == pytest.approx(everybody)  # of another source: what all do
    assert np.allclose(np.delete(credit, 1, axis=2), np.delete(PRIOR, 1))  # other bins are not touched


def test_evidence_fades_round_by_round() -> None:
    router = Router(memory=0.5)
    state = observed(router, router.init(1, 1, 7), 0, 0, 0, [1.0] * 8)
    later = router.next_round(router.next_round(state))
    assert later["right"][0, 0, 0] == later["tried"][0, 0, 0] == 2.0
    assert later["round"][0] == 2 and state["round"][0] == 0
    assert later["seed"][0] == 7


def test_bins_of_confidence() -> None:
    surprise = np.array([0, 10, 11, 50, 51, 200, 201, 65535])
    assert confidence_bin(surprise, np.zeros(8, bool)).tolist() == [3, 3, 2, 2, 1, 1, 0, 0]
    assert confidence_bin(surprise, np.ones(8, bool)).tolist() == [TESTED] * 8


def test_categories_are_numbered_as_they_appear() -> None:
    assert category_numbers(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
    assert category_numbers([]).shape == (0,)


# Ranking


def ranked(router: Router, state: State, claimed: Claimed, receiver: int = 0) -> list[list[int]]:
    categories = np.zeros(claimed.bins.shape[1], np.int64)
    return router.rank(state, claimed, categories, receiver).tolist()


def test_the_surest_source_comes_first_and_the_receiver_never() -> None:
    claimed = claims([[900], [5], [100], [30]], [[0], [3], [1], [2]])
    assert ranked(MEAN, MEAN.init(4, 1, 0), claimed) == [[1, 3, 2, -1]]
    assert ranked(MEAN, MEAN.init(4, 1, 0), claimed, receiver=3) == [[1, -1, -1, -1]]  # others are less sure than it
    assert ranked(MEAN, MEAN.init(4, 1, 0), claimed, receiver=1) == [[-1, -1, -1, -1]]


def test_of_equal_bins_the_less_surprised_comes_first() -> None:
    claimed = claims([[0], [30], [20], [40]], [[0], [2], [2], [2]])
    assert ranked(MEAN, MEAN.init(4, 1, 0), claimed) == [[2, 1, 3, -1]]


def test_experience_outweighs_a_claim() -> None:
    claimed = claims([[900], [5], [100]], [[0], [3], [1]])
    state = observed(MEAN, MEAN.init(3, 1, 0), 1, 0, 3, [0.0] * 8)
    assert ranked(MEAN, state, claimed) == [[2, 1, -1]]


def test_nobody_is_asked_below_the_floor() -> None:
    claimed = claims([[900], [100], [900]], [[0], [1], [0]])
    router = Router(explore=False, floor=0.2)
    assert ranked(router, router.init(3, 1, 0), claims([[900]] * 3, [[0]] * 3)) == [[-1, -1, -1]]
    assert ranked(router, router.init(3, 1, 0), claimed) == [[1, -1, -1]]  # its prior is just the floor


def test_a_receiver_with_nothing_to_offer_takes_what_there_is() -> None:
    claimed = claims([[0], [900]], [[3], [0]], offered=[[0], [1]])
    assert ranked(MEAN, MEAN.init(2, 1, 0), claimed) == [[1, -1]]


def random_claims(seed: int, agents: int, prompts: int) -> Claimed:
    random = np.random.default_rng(seed)
    surprise = random.integers(0, 1000, (agents, prompts))
    bins = confidence_bin(surprise, random.random((agents, prompts)) < 0.3)
    return Claimed(surprise, bins, random.random((agents, prompts)) < 0.6, random.random((agents, prompts)) < 0.3)


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 8), st.booleans(), st.floats(0, 1))
def test_what_a_ranking_always_is(seed: int, agents: int, prompts: int, explore: bool, floor: float) -> None:
    claimed, router = random_claims(seed, agents, prompts), Router(explore=explore, floor=floor)
    state = router.init(agents, 3, seed)
    random = np.random.default_rng(seed)
    for source in range(agents):
        state = observed(router, state, source, int(random.integers(3)), int(random.integers(5)), [1.0, 0.0, 1.0])
    kept = {key: array.copy() for key, array in state.items()}
    categories = random.integers(0, 3, prompts)
    for receiver in range(agents):
        first = router.rank(state, claimed, categories, receiver)
        assert np.array_equal(first, router.rank(state, claimed, categories, receiver))
        assert first.shape == (prompts, agents)
        for prompt, row in enumerate(first):
            sources = row[row >= 0]
            assert np.array_equal(row[: len(sources)], sources)  # -1 stands behind the last alone
            assert len(set(sources.tolist())) == len(sources) and receiver not in sources
            assert claimed.offered[sources, prompt].all()
            assert len(sources) == 0 or not claimed.settled[receiver, prompt]
    assert all(np.array_equal(state[key], array) for key, array in kept.items())


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 4), st.booleans()), max_size=20))
def test_credit_is_a_share_and_the_order_of_evidence_does_not_matter(found: list[tuple[int, int, int, bool]]) -> None:
    there, back = MEAN.init(3, 2, 0), MEAN.init(3, 2, 0)
    first = {key: array.copy() for key, array in there.items()}
    for forward, backward in zip(found, reversed(found), strict=True):
        there = observed(MEAN, there, *forward[:3], [float(forward[3])])
        back = observed(MEAN, back, *backward[:3], [float(backward[3])])
    credit = MEAN.credit(there)
    assert ((credit > 0) & (credit < 1)).all()
    assert np.allclose(credit, MEAN.credit(back))
    assert (there["right"] <= there["tried"]).all()
    assert all(np.array_equal(MEAN.init(3, 2, 0)[key], array) for key, array in first.items())


def test_a_new_round_and_another_seed_draw_anew() -> None:
    router, claimed = Router(floor=0.0), claims([[900] * 40] + [[300] * 40] * 5, [[0] * 40] * 6)
    categories = np.arange(40)  # a draw for each
    state = router.init(6, 40, 0)
    one = router.rank(state, claimed, categories, 0)
    assert not np.array_equal(one, router.rank(router.next_round(state), claimed, categories, 0))
    assert not np.array_equal(one, router.rank(router.init(6, 40, 1), claimed, categories, 0))
    assert len(set(one[:, 0].tolist())) > 3  # equal sources share the students


# A liar


def pulls_of_a_liar(router: Router, rounds: int) -> list[float]:
    """Share of first pulls that go to source 3, which claims to be sure of everything and is never right."""
    prompts = 12
    surprise = np.full((4, prompts), 100)
    surprise[3] = 0
    bins = confidence_bin(surprise, np.zeros(surprise.shape, bool))
    offered = np.ones(surprise.shape, bool)
    offered[0] = False  # the receiver has nothing of its own
    claimed, categories = Claimed(surprise, bins, offered, np.zeros(surprise.shape, bool)), np.arange(prompts) % 3
    state, shares = router.init(4, 3, 0), []
    for _ in range(rounds):
        state = router.next_round(state)
        first = router.rank(state, claimed, categories, 0)[:, 0]
        shares.append(float((first == 3).mean()))
        for prompt, source in enumerate(first.tolist()):
            cell = (np.array([categories[prompt]]), np.array([bins[source, prompt]]))
            state = router.observe(state, source, cell, np.array([float(source != 3)]))
    return shares


@pytest.mark.parametrize("explore", [True, False])
def test_a_confident_liar_loses_its_pulls(explore: bool) -> None:
    shares = pulls_of_a_liar(Router(explore=explore), 8)
    assert shares[0] > 0.5  # the prior believes it
    assert max(shares[2:]) <= 0.25 and np.mean(shares[2:]) < 0.1


def test_an_audit_finds_a_liar_out_before_the_first_pull() -> None:
    router = Router(explore=False)
    state = router.init(4, 3, 0)
    for category in range(3):
        state = observed(router, state, 3, category, 3, [0.0] * 8)
    claimed = claims([[900] * 3, [100] * 3, [100] * 3, [0] * 3], [[0] * 3, [1] * 3, [1] * 3, [3] * 3])
    assert 3 not in router.rank(state, claimed, np.arange(3), 0)[:, 0]
