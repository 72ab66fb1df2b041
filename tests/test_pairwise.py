"""The pairwise policy: its posterior in closed form, abstention, precedence, several students, state as a value."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from safetensors.numpy import load, save

from peertune.matchmakers import Pair, Pairwise, RoundRobin
from peertune.matchmakers.base import State
from peertune.matchmakers.candidates import candidate_pairs
from peertune.matchmakers.features import (
    GROUPS,
    NAMES,
    Group,
    history_features,
    kept,
    pair_features,
    prior_mean,
    profile_features,
)
from peertune.matchmakers.synthetic import SkillEnvironment, candidates
from peertune.payloads import Profile
from peertune.profiles import HISTOGRAM, INVERSE_PERPLEXITY, PARAMETERS, SCORE


def profiles(agents: int, seed: int) -> dict[str, Profile]:
    values = np.random.default_rng(seed).uniform(0, 1, (agents, 32))
    return {f"a{index}": Profile(tuple(row)) for index, row in enumerate(values.tolist())}


def names(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    return [(pair.source, pair.receiver) for pair in pairs]


def taught(policy: Pairwise, state: State, rewards: Mapping[tuple[str, str], float], times: int) -> State:
    """The state after each of these pairs has earned its reward so many times; contexts are all alike."""
    for _ in range(times):
        for (source, receiver), reward in rewards.items():
            state = policy.update(state, Pair(source, receiver, np.zeros(64)), reward)
    return state


def alike(agents: str) -> list[Pair]:
    return [Pair(s, r, np.zeros(64)) for s in agents for r in agents if s != r]


# Features


def test_features_of_a_pair_by_hand() -> None:
    source, receiver = np.zeros(32), np.zeros(32)
    source[1] = receiver[1] = 1
    source[PARAMETERS], receiver[PARAMETERS] = 0.9, 0.7
    source[SCORE], receiver[SCORE] = 0.8, 0.3
    source[INVERSE_PERPLEXITY], receiver[INVERSE_PERPLEXITY] = 0.6, 0.5
    source[HISTOGRAM][:2], receiver[HISTOGRAM][:2] = (0.5, 0.5), (1.0, 0.0)
    found = dict(zip(NAMES, profile_features(source[None], receiver[None])[0], strict=False))
    distance = 1 - math.sqrt(0.5)
    expected = {"one": 1, "distance": distance, "root_distance": math.sqrt(distance), "overlap_gap": 0.5 * 0.5}
    expected |= {"complementarity": 0.5 * 0.8, "new_share": 0.5 * 0.7, "score_gap": 0.5, "score_gap_size": 0.5}
    expected |= {"score_gap_square": 0.25, "room": 0.7, "score_lead_room": 0.35, "score_source": 0.8}
    expected |= {"loss_gap": 0.1, "loss_gap_size": 0.1, "loss_lead_room": 0.05, "same_family": 1, "size_gap": 0.2}
    assert found == pytest.approx(expected)
    back = dict(zip(NAMES, profile_features(receiver[None], source[None])[0], strict=False))
    assert back["complementarity"] == pytest.approx(0.5 * 0.3), "the receiver knows little of what it alone has"
    assert back["score_lead_room"] == 0 and back["distance"] == found["distance"]


def test_features_of_the_history_by_hand() -> None:
    since = np.array([0.0, 2.5, np.inf])
    gains, weights = np.array([[3.0, 0.0], [0, 0], [0, 0]]), np.array([[2.0, 0.0], [0, 0], [0, 0]])
    expected = [[1, 1, 1, 1, 1, 1, 1, 1, 0, 1.0, 0], [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0], [*[0] * 8, 1, 0, 0]]
    np.testing.assert_allclose(history_features(since, gains, weights), expected)
    assert len(NAMES) == 21 + 11


def test_features_of_trust_lead_and_protocol() -> None:
    known = np.array([0.0, 0.5, 1.0]), np.array([0.0, 0.25, 1.0])
    found = pair_features(np.zeros((3, 64)), known, np.array([0, 1, 2]))
    np.testing.assert_array_equal(found[:, 17:], [[-1, 0, 0, 0], [0, 0.5, 1, 0], [1, 2, 0, 1]])


# Posterior


@pytest.mark.parametrize("without", [(), *((group,) for group in GROUPS), ("recency", "sides")])
def test_predictions_are_those_of_the_closed_form(without: tuple[Group, ...]) -> None:
    """Of ridge regression on all standardised rewards, old ones faded, around the prior mean. What is left out is 0."""
    policy, random = Pairwise(half_life=5.0, cut=1e9, without=without), np.random.default_rng(3)
    state, rows, rewards, place = policy.init(0), [], [], {}
    for round_ in range(12):
        for pair in policy.match(state, candidate_pairs(profiles(4, round_)), 2):
            rewards.append(float(random.normal(0.5, 0.2)))
            before, state = state, policy.update(state, pair, rewards[-1])
            for name in (pair.source, pair.receiver):
                place.setdefault(name, len(place))
            rows.append(_row(policy, before, state, pair, place))
    used = np.append(kept(without), np.full(8, "sides" not in without))
    x, fade = np.array(rows) * used, _fade(policy, state)
    age = _ages(len(rows), fade)
    np.testing.assert_allclose(state["precision"], ((x * age[:, None]).T @ x)[: len(NAMES), : len(NAMES)], atol=1e-9)
    mean = (age @ rewards) / age.sum()
    spread = math.sqrt((age @ (np.array(rewards) - mean) ** 2) / age.sum())
    prior, expected = np.diag([0.05] * len(NAMES) + [4.0] * 8), np.append(2.0 * prior_mean(), np.zeros(8))
    z = (np.array(rewards) - mean) / (spread + 1e-6)
    theta = np.linalg.solve((x * age[:, None]).T @ x + prior, x.T @ (age * z) + prior @ expected)
    for pair in policy.match(state, candidate_pairs(profiles(4, 99)), 2):
        row = _row(policy, state, policy.update(state, pair, 0.0), pair, place)
        assert pair.predicted == pytest.approx(mean + spread * (row * used) @ theta, abs=1e-6)


def _row(policy: Pairwise, before: State, after: State, pair: Pair, place: Mapping[str, int]) -> np.ndarray:
    """What the model is linear in, read off the state: the first feature is 1, so row 0 of x x' is x."""
    sides = np.zeros((4, 2))
    sides[place[pair.source], 0] = sides[place[pair.receiver], 1] = 1
    return np.append(after["precision"][0] - _fade(policy, after) * before["precision"][0], sides.ravel())


def _fade(policy: Pairwise, state: State) -> float:
    return 0.5 ** (2 / (policy.half_life * len(state["agents"])))


def _ages(count: int, fade: float) -> np.ndarray:
    """Weights of the exchanges; the first update knew two agents only, but then there was nothing to fade."""
    return fade ** np.arange(count - 1, -1, -1)


def test_the_draw_depends_on_seed_state_and_contexts() -> None:
    policy = Pairwise(width=1.0)
    first, second = candidate_pairs(profiles(8, 0)), candidate_pairs(profiles(8, 1))
    assert names(policy.match(policy.init(1), first, 4)) == names(policy.match(policy.init(1), first, 4))
    draws = [names(policy.match(policy.init(seed), first, 4)) for seed in range(10)]
    assert len(set(map(tuple, draws))) >= 8 and names(policy.match(policy.init(1), second, 4)) not in draws
    assert all(math.isnan(pair.predicted) for pair in policy.match(policy.init(1), first, 4))


def test_updates_leave_the_old_state_alone() -> None:
    policy = Pairwise()
    state = taught(policy, policy.init(0), {("a", "b"): 0.3, ("c", "d"): 0.1}, 3)
    before = {key: array.copy() for key, array in state.items()}
    policy.update(state, Pair("a", "e", np.ones(64)), 9.0)
    policy.match(state, alike("abcdef"), 3)
    assert all(np.array_equal(state[key], before[key]) for key in before)


# Who is chosen


def test_learns_each_sides_worth_and_abstains() -> None:
    """a helps and d harms everybody who hears them. d teaches nobody; if only d is there, it is tried with one."""
    policy = Pairwise(width=0.0, patience=1e9, max_students=2)
    rewards = {("a", "b"): 0.5, ("a", "c"): 0.5, ("d", "b"): -0.5, ("d", "c"): -0.5}
    state = taught(policy, policy.init(0), rewards, 5)
    only_d = [pair for pair in alike("bcd") if pair.source == "d"]
    assert len(only_d) == 2 and len(policy.match(state, only_d, 2)) == 1 and policy.match(state, only_d, 0) == []
    (chosen,) = policy.match(state, [pair for pair in alike("abcd") if pair.source in "ad"], 1)
    assert chosen.source == "a" and chosen.predicted == pytest.approx(0.5, abs=0.15)


def test_everybody_plays_before_anything_is_known() -> None:
    policy = Pairwise()
    state = taught(policy, policy.init(0), {("a", "b"): -1.0}, 2)
    assert len(policy.match(state, alike("abcd"), 2)) == 2


def test_who_has_waited_too_long_goes_first() -> None:
    """Two agents have learnt all the time; after `patience` exchanges per agent, the third has its turn."""
    rewards = {("a", "b"): 0.9, ("b", "a"): 0.9, ("a", "c"): -0.9}
    eager = Pairwise(width=0.0, patience=1e9)
    state = taught(eager, eager.init(0), rewards, 3)
    state = taught(eager, state, {("a", "b"): 0.9, ("b", "a"): 0.9}, 4)
    assert all(pair.receiver != "c" for pair in eager.match(state, alike("abc"), 1))
    (chosen,) = Pairwise(width=0.0, patience=2.0).match(state, alike("abc"), 1)
    assert chosen.receiver == "c", "8 exchanges of others are more than 2 for each of 3 agents"
    (chosen,) = Pairwise(width=0.0, patience=3.0).match(state, alike("abc"), 1)
    assert chosen.receiver != "c"


def test_nobody_starves() -> None:
    """Ten agents, one pair a round: everybody has learnt from somebody within patience + 1 exchanges per agent."""
    policy, environment = Pairwise(patience=1.5), SkillEnvironment(10, "high", 5)
    state, last, longest = policy.init(0), dict.fromkeys(environment.names, 0), 0
    for turn in range(1, 101):
        for pair in policy.match(state, candidates(environment), 1):
            longest = max(longest, turn - last[pair.receiver])
            last[pair.receiver] = turn
            state = policy.update(state, pair, float(pair.receiver == "a1"))
        longest = max(longest, *(turn - since for since in last.values()))
    assert longest <= 25


def test_a_source_may_teach_several() -> None:
    rewards = {("a", each): 1.0 for each in "bcd"} | {("b", "c"): 0.1, ("c", "d"): 0.1, ("d", "b"): 0.1}
    policy = Pairwise(width=0.0, patience=1e9, max_students=3)
    state = taught(policy, policy.init(0), rewards, 4)
    chosen = policy.match(state, alike("abcd"), 3)
    assert sorted(names(chosen)) == [("a", "b"), ("a", "c"), ("a", "d")]
    assert len(Pairwise(width=0.0, patience=1e9).match(state, alike("abcd"), 3)) == 2


def test_an_agent_that_joins_late_is_paired() -> None:
    policy = Pairwise()
    state = taught(policy, policy.init(0), {("a", "b"): 0.2, ("b", "a"): 0.2}, 9)
    (chosen,) = policy.match(state, alike("abz"), 1)
    assert chosen.receiver == "z"


# Round robin


@pytest.mark.parametrize(("agents", "k"), [(2, 1), (5, 2), (6, 3), (8, 4), (8, 3)])
def test_round_robin_covers_every_directed_pair_first(agents: int, k: int) -> None:
    policy = RoundRobin()
    state, met = policy.init(0), list[tuple[str, str]]()
    pairs = candidate_pairs(profiles(agents, 0))
    while len(met) < len(pairs):
        chosen = policy.match(state, pairs, k)
        met += names(chosen)
        for pair in chosen:
            state = policy.update(state, pair, 0.0)
    if k == agents // 2:
        assert len(set(met)) == len(met), "no pair comes again before all have met"
        learnt = [receiver for _, receiver in met[: len(met) // 2]]
        assert max(map(learnt.count, learnt)) - min(map(learnt.count, set(learnt))) <= 2
    else:
        assert len(set(met)) >= 0.9 * len(pairs)


@pytest.mark.parametrize("policy", [Pairwise(), RoundRobin()], ids=["pairwise", "round_robin"])
def test_the_state_goes_through_a_checkpoint(policy: Pairwise | RoundRobin) -> None:
    """Before the first round and after some: what comes back decides as the original does."""
    state = policy.init(4)
    for seed in range(3):
        restored = load(save({name: np.asarray(array) for name, array in state.items()}))
        pairs = candidate_pairs(profiles(6, seed))
        chosen = policy.match(state, pairs, 3)
        assert names(policy.match(restored, pairs, 3)) == names(chosen)
        for pair in chosen:
            state, restored = policy.update(state, pair, 0.2 * seed), policy.update(restored, pair, 0.2 * seed)
        assert all(np.array_equal(state[key], restored[key]) for key in state)
