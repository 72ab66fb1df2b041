"""Pairing policies: their formulas to the last digit, what they promise of any input, and that the bandit learns."""

import itertools
import math
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peertune.matchmakers import (
    MATCHMAKERS,
    HeteroGreedy,
    LinUCB,
    Matchmaker,
    Pair,
    Pairwise,
    RoundRobin,
    Uniform,
)
from peertune.matchmakers.base import State, greedy_pairs
from peertune.matchmakers.candidates import candidate_pairs
from peertune.matchmakers.hetero_greedy import jensen_shannon
from peertune.payloads import Profile
from peertune.profiles import HISTOGRAM, LOSS, SCORE

POLICIES = [LinUCB(), LinUCB(beta=0.0, ridge=0.1), Uniform(), HeteroGreedy(), RoundRobin()]
ABSTAINING = [Pairwise(), Pairwise(width=1.0, patience=0.5)]  # may form fewer pairs than they could


def random_profiles(agents: int, seed: int) -> dict[str, Profile]:
    values = np.random.default_rng(seed).uniform(0, 1, size=(agents, 32))
    return {f"a{index}": Profile(tuple(row)) for index, row in enumerate(values.tolist())}


def pair(source: str, receiver: str, context: Sequence[float] | None = None) -> Pair:
    return Pair(source, receiver, np.zeros(64) if context is None else np.array(context, dtype=np.float64))


def unit(index: int, value: float = 1.0) -> np.ndarray:
    x = np.zeros(64)
    x[index] = value
    return x


def names(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    return [(each.source, each.receiver) for each in pairs]


def same_state(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key]) for key in left)


# What every policy promises


def test_policies_by_name() -> None:
    learning = {"linucb": LinUCB, "pairwise": Pairwise}
    fixed = {"uniform": Uniform, "round_robin": RoundRobin, "hetero_greedy": HeteroGreedy}
    assert {**learning, **fixed} == MATCHMAKERS


@settings(max_examples=60)
@given(st.sampled_from(POLICIES + ABSTAINING), st.integers(0, 9), st.integers(1, 6), st.integers(0, 10_000))
def test_contract(policy: Matchmaker, agents: int, k: int, seed: int) -> None:
    """At most k candidates, themselves and not copies of their contexts, disjoint, the same again; inputs untouched."""
    state = policy.init(seed)
    random = np.random.default_rng(seed)
    for round_seed in range(3):
        table = candidate_pairs(random_profiles(agents, seed + round_seed))
        candidates = list(table)
        contexts = [each.context.copy() for each in candidates]
        before = {key: array.copy() for key, array in state.items()}
        chosen = policy.match(state, candidates, k)
        assert names(policy.match(state, candidates, k)) == names(policy.match(state, table, k)) == names(chosen)
        taken = [name for each in chosen for name in (each.source, each.receiver)]
        assert len(chosen) <= min(k, agents // 2) and len(set(taken)) == len(taken)
        assert policy in ABSTAINING and round_seed > 0 or len(chosen) == min(k, agents // 2)
        by_name = {(each.source, each.receiver): each for each in candidates}
        assert all(each.context is by_name[each.source, each.receiver].context for each in chosen)
        new = state
        for each in chosen:
            new = policy.update(new, each, float(random.normal()))
        assert same_state(state, before)
        assert all(np.array_equal(left, each.context) for left, each in zip(contexts, candidates, strict=True))
        state = new
    assert all(isinstance(array, np.ndarray) and np.isfinite(array).all() for array in state.values())


@pytest.mark.parametrize("policy", POLICIES + ABSTAINING, ids=repr)
def test_no_candidates(policy: Matchmaker) -> None:
    assert policy.match(policy.init(0), [], 3) == []


def test_policies_need_no_torch() -> None:
    """A matchmaker runs with a coordinator that has no model and no GPU."""
    code = "import sys, peertune.matchmakers; print(sorted({'torch', 'transformers', 'peft'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_greedy_pairs() -> None:
    candidates = [pair(*each) for each in ("ab", "cd", "ac", "bd", "ba")]
    assert names(greedy_pairs(candidates, [1, 2, 9, 3, 8], 9)) == [("a", "c"), ("b", "d")]
    assert names(greedy_pairs(candidates, [1, 2, 9, 3, 8], 1)) == [("a", "c")]
    assert names(greedy_pairs(candidates, [0, 0, 0, 0, 0], 9)) == [("a", "b"), ("c", "d")], "ties: as given"
    assert greedy_pairs(candidates, [1, 2, 9, 3, 8], 0) == []


# LinUCB


def learnt(policy: LinUCB, exchanges: Sequence[tuple[np.ndarray, float]]) -> State:
    state = policy.init(0)
    for context, reward in exchanges:
        state = policy.update(state, Pair("a", "b", context), reward)
    return state


@settings(max_examples=25)
@given(st.integers(0, 40), st.integers(0, 10_000), st.sampled_from([0.01, 1.0, 7.0]))
def test_state_is_the_closed_form(updates: int, seed: int, ridge: float) -> None:
    """A = ridge I + sum x x', b = sum z x, z by the moments of all rewards so far: exactly ridge regression."""
    random = np.random.default_rng(seed)
    contexts, rewards = random.uniform(-1, 1, (updates, 64)), random.normal(0.3, 2.0, updates)
    state = learnt(LinUCB(ridge=ridge), list(zip(contexts, rewards.tolist(), strict=True)))
    z = np.array([(rewards[n] - rewards[: n + 1].mean()) / (rewards[: n + 1].std() + 1e-6) for n in range(updates)])
    matrix = ridge * np.eye(64) + contexts.T @ contexts
    np.testing.assert_allclose(state["inverse"], np.linalg.inv(matrix), atol=1e-9)
    np.testing.assert_allclose(state["moment"], contexts.T @ z, atol=1e-9)
    theta = np.linalg.solve(matrix, contexts.T @ z)
    np.testing.assert_allclose(state["inverse"] @ state["moment"], theta, atol=1e-9)
    expected = [updates, rewards.mean(), rewards.var() * updates] if updates else [0, 0, 0]
    np.testing.assert_allclose(state["rewards"], expected, atol=1e-9)


def test_z_scores_of_three_rewards() -> None:
    """1 alone is 0; 3 of (1, 3) is (3 - 2) / 1; 2 of (1, 3, 2) is 0."""
    state = learnt(LinUCB(), [(unit(0), 1.0), (unit(1), 3.0), (unit(2), 2.0)])
    np.testing.assert_allclose(state["moment"][:3], [0.0, 1 / (1 + 1e-6), 0.0], atol=1e-12)
    np.testing.assert_allclose(state["rewards"], [3, 2, 2])


def test_equal_rewards_teach_nothing() -> None:
    state = learnt(LinUCB(), [(unit(index), 0.1) for index in range(10)])
    np.testing.assert_array_equal(state["moment"], np.zeros(64))


def test_scores_follow_the_formula() -> None:
    """score = theta.x + beta sqrt(x' A^-1 x), checked through the choice it leads to, pair by pair."""
    policy = LinUCB(beta=0.7, ridge=0.5)
    random = np.random.default_rng(5)
    state = learnt(policy, [(random.uniform(0, 1, 64), float(random.normal())) for _ in range(30)])
    matrix = np.linalg.inv(state["inverse"])
    theta = np.linalg.solve(matrix, state["moment"])
    for seed in range(20):
        candidates = candidate_pairs(random_profiles(5, seed))
        scores = [
            float(theta @ each.context + 0.7 * np.sqrt(each.context @ np.linalg.solve(matrix, each.context)))
            for each in candidates
        ]
        chosen = policy.match(state, candidates, 2)
        assert names(chosen) == names(greedy_pairs(candidates, scores, 2))
        count, mean, squares = state["rewards"]
        expected = [mean + np.sqrt(squares / count) * theta @ each.context for each in chosen]
        np.testing.assert_allclose([each.predicted for each in chosen], expected, atol=1e-9)


def test_beta_decides_between_known_and_unknown() -> None:
    """Context 0 paid well often, context 1 was never tried: a greedy policy repeats, a curious one tries."""
    state = learnt(LinUCB(), [(unit(0), 1.0), (unit(2), 0.0)] * 10)
    known, unknown = Pair("a", "b", unit(0)), Pair("b", "a", unit(1))
    assert names(LinUCB(beta=0.0).match(state, [unknown, known], 1)) == [("a", "b")]
    assert names(LinUCB(beta=5.0).match(state, [known, unknown], 1)) == [("b", "a")]


def test_direction_matters() -> None:
    """The first half of the context is the source: who is worth hearing is not who is worth teaching."""
    profiles = {"good": Profile((1.0, *[0.0] * 31)), "other": Profile((0.0, 1.0, *[0.0] * 30))}
    forth, back = candidate_pairs(profiles)
    state = learnt(LinUCB(), [(forth.context, 1.0), (back.context, 0.0)] * 5)
    (chosen,) = LinUCB(beta=0.0).match(state, [back, forth], 1)
    assert names([chosen]) == [("good", "other")]
    assert 0.4 < chosen.predicted <= 1.0


def test_a_single_reward_is_predicted_as_it_is() -> None:
    state = learnt(LinUCB(), [(unit(0), 0.25)])
    (chosen,) = LinUCB().match(state, [Pair("a", "b", unit(1))], 1)
    assert chosen.predicted == 0.25


def mean_reward(policy: Matchmaker, seed: int, rounds: int = 30) -> float:
    """Eight agents; pairs earn the source's hidden quality, which stands in its profile, less the receiver's, noisy."""
    random = np.random.default_rng([seed, 1])
    quality, style = random.uniform(0, 1, 8), random.uniform(0, 1, (8, 31))
    state, rewards = policy.init(seed), []
    for _ in range(rounds):
        drift = random.normal(0, 0.02, (8, 31))
        profiles = {
            f"a{index}": Profile((float(quality[index]), *(style[index] + drift[index]).tolist())) for index in range(8)
        }
        for each in policy.match(state, candidate_pairs(profiles), 2):
            reward = quality[int(each.source[1])] - quality[int(each.receiver[1])] + random.normal(0, 0.1)
            rewards.append(float(reward))
            state = policy.update(state, each, rewards[-1])
    return float(np.mean(rewards))


def test_linucb_finds_good_sources() -> None:
    """Measured over 24 seeds: 0.55 a pair against 0.01 of uniform pairs, and better with each of the seeds."""
    learned = [mean_reward(LinUCB(beta=0.5), seed) for seed in range(24)]
    uniform = [mean_reward(Uniform(), seed) for seed in range(24)]
    assert abs(float(np.mean(uniform))) < 0.05
    assert float(np.mean(learned)) > 0.4
    assert sum(left > right for left, right in zip(learned, uniform, strict=True)) >= 22


# Uniform


def test_uniform_is_uniform() -> None:
    """Over 3000 rounds of 4 agents, each of the 12 directed pairs is as likely, and so is each of the 3 matchings."""
    policy, counts = Uniform(), dict.fromkeys(itertools.permutations(("a0", "a1", "a2", "a3"), 2), 0)
    state = policy.init(7)
    partners: dict[frozenset[frozenset[str]], int] = {}
    for seed in range(3000):
        chosen = policy.match(state, candidate_pairs(random_profiles(4, seed)), 2)
        for each in names(chosen):
            counts[each] += 1
        matching = frozenset(frozenset(each) for each in names(chosen))
        partners[matching] = partners.get(matching, 0) + 1
    chi_square = sum((count - 500) ** 2 / 500 for count in counts.values())
    assert chi_square < 31.3  # 11 degrees of freedom, p = 0.001
    assert len(partners) == 3 and all(abs(count - 1000) < 100 for count in partners.values())


def test_uniform_depends_on_seed_and_contexts_only() -> None:
    candidates, others = candidate_pairs(random_profiles(8, 0)), candidate_pairs(random_profiles(8, 1))
    policy = Uniform()
    draws = {tuple(names(policy.match(policy.init(seed), candidates, 4))) for seed in range(20)}
    assert len(draws) == 20
    state = policy.init(3)
    assert names(policy.match(state, candidates, 4)) != names(policy.match(state, others, 4))
    assert policy.update(state, candidates[0], 9.0) is state
    assert all(math.isnan(each.predicted) for each in policy.match(state, candidates, 4))


# Hetero-greedy


def test_jensen_shannon_exact() -> None:
    def js(p: Sequence[float], q: Sequence[float]) -> float:
        return jensen_shannon(np.array(p, dtype=np.float64), np.array(q, dtype=np.float64))

    assert js([1, 0], [1, 0]) == 0.0
    assert js([1, 0], [0, 1]) == 1.0
    # divergence of (1/2, 1/2) and (1, 0): H(3/4, 1/4) - (1 + 0) / 2 bits
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert js([0.5, 0.5], [1, 0]) == pytest.approx(math.sqrt(entropy - 0.5), abs=1e-12)
    assert js([0, 0], [0, 0]) == 0.0


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_jensen_shannon_is_a_bounded_symmetric_distance(columns: list[tuple[float, float]]) -> None:
    p, q = np.array(columns).T
    p, q = p / (p.sum() or 1.0), q / (q.sum() or 1.0)
    assert jensen_shannon(p, q) == pytest.approx(jensen_shannon(q, p), abs=1e-9)
    assert 0.0 <= jensen_shannon(p, q) <= 1.0 + 1e-9


def profile(score: float, histogram: Sequence[float]) -> Profile:
    values = np.zeros(32)
    values[SCORE], values[HISTOGRAM] = score, [*histogram, *[0.0] * (12 - len(histogram))]
    return Profile(tuple(values.tolist()))


def test_the_most_different_meet_and_the_better_teaches() -> None:
    profiles = {
        "weak": profile(0.1, [1, 0, 0]),
        "strong": profile(0.9, [0, 1, 0]),
        "middle": profile(0.5, [0.5, 0.5, 0]),
        "poor": profile(0.0, [0.4, 0.6, 0]),
    }
    policy = HeteroGreedy()
    chosen = policy.match(policy.init(0), candidate_pairs(profiles), 2)
    assert names(chosen) == [("strong", "weak"), ("middle", "poor")]
    assert all(math.isnan(each.predicted) for each in chosen)


def test_equally_good_agents_still_meet() -> None:
    profiles = {"a": profile(0.5, [1, 0]), "b": profile(0.5, [0, 1])}
    assert len(HeteroGreedy().match({}, candidate_pairs(profiles), 1)) == 1


def test_hetero_greedy_breaks_equal_scores_by_the_loss() -> None:
    contexts = {name: np.zeros(32) for name in "ab"}
    contexts["a"][LOSS], contexts["b"][LOSS] = 0.9, 0.2
    candidates = [Pair(s, r, np.concatenate([contexts[s], contexts[r]])) for s, r in (("a", "b"), ("b", "a"))]
    chosen = HeteroGreedy().match({}, candidates, 1)
    assert [(pair.source, pair.receiver) for pair in chosen] == [("b", "a")]


# Several students, protocols, trust


SEVERAL = [
    each(max_students=most) for each in (Uniform, LinUCB, RoundRobin, HeteroGreedy, Pairwise) for most in (2, 3, 99)
]


@pytest.mark.parametrize("policy", SEVERAL, ids=repr)
@pytest.mark.parametrize("agents", [2, 3, 7])
def test_with_several_students_everybody_learns_in_every_round(policy: Matchmaker, agents: int) -> None:
    """As many student updates for every policy; the first round for `pairwise`, which may abstain later."""
    state = policy.init(1)
    for seed in range(1 if isinstance(policy, Pairwise) else 4):
        chosen = policy.match(state, candidate_pairs(random_profiles(agents, seed)), agents)
        assert sorted(each.receiver for each in chosen) == sorted(random_profiles(agents, 0))
        load = [each.source for each in chosen]
        assert max(map(load.count, load)) <= policy.max_students  # pyright: ignore[reportAttributeAccessIssue]
        for each in chosen:
            state = policy.update(state, each, 0.1)


def test_uniform_assignments_are_independent_if_nothing_binds() -> None:
    policy, counts = Uniform(max_students=2), dict[tuple[tuple[str, str], ...], int]()
    for seed in range(2000):
        chosen = tuple(sorted(names(policy.match(policy.init(3), candidate_pairs(random_profiles(3, seed)), 3))))
        counts[chosen] = counts.get(chosen, 0) + 1
    assert len(counts) == 8 and all(abs(count - 250) < 60 for count in counts.values())


def test_round_robin_with_several_students_rotates() -> None:
    policy, met = RoundRobin(max_students=4), list[tuple[str, str]]()
    state, pairs = policy.init(0), candidate_pairs(random_profiles(5, 0))
    for _ in range(4):
        for each in policy.match(state, pairs, 5):
            met.append((each.source, each.receiver))
            state = policy.update(state, each, 0.0)
    assert sorted(met) == sorted(names(pairs))


@pytest.mark.parametrize("policy", [*POLICIES, *ABSTAINING, *SEVERAL], ids=repr)
def test_no_pair_appears_with_two_protocols(policy: Matchmaker) -> None:
    every = dict.fromkeys(itertools.permutations(("a0", "a1", "a2", "a3"), 2), ("text", "logits", "adapter"))
    state = policy.init(0)
    for seed in range(3):
        candidates = list(candidate_pairs(random_profiles(4, seed), protocols=every))
        chosen = policy.match(state, candidates, 4)
        assert len(set(names(chosen))) == len(chosen) and chosen
        assert all(any(each.context is one.context for one in candidates) for each in chosen)
        for each in chosen:
            state = policy.update(state, each, 0.1)


def test_uniform_draws_the_protocol_too() -> None:
    both = {("a0", "a1"): ("text", "logits"), ("a1", "a0"): ("text",)}
    policy, counts = Uniform(), dict[tuple[str, str], int]()
    for seed in range(1000):
        (chosen,) = policy.match(policy.init(0), candidate_pairs(random_profiles(2, seed), protocols=both), 1)
        counts[chosen.source, chosen.protocol] = counts.get((chosen.source, chosen.protocol), 0) + 1
    assert abs(counts["a1", "text"] - 500) < 60 and abs(counts["a0", "text"] - 250) < 60
