"""Candidates: every pair of a small federation; in a large one few for each agent, and those that promise something."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from peertune.matchmakers import Pairwise
from peertune.matchmakers.base import Candidates, Pair, identity
from peertune.matchmakers.candidates import candidate_pairs
from peertune.payloads import Profile
from peertune.profiles import HISTOGRAM, INVERSE_PERPLEXITY, SCORE

AGENTS, LIMIT = 600, 16


def profiles(agents: int, seed: int = 0) -> dict[str, Profile]:
    random = np.random.default_rng(seed)
    values = random.uniform(0, 1, (agents, 32))
    values[:, HISTOGRAM] = random.dirichlet([0.3] * 12, agents)
    return {f"a{index}": Profile(tuple(row)) for index, row in enumerate(values.tolist())}


def fields(pair: Pair) -> tuple[str, str, float, str, bytes]:
    return pair.source, pair.receiver, pair.trust, pair.protocol, pair.context.tobytes()


@pytest.mark.parametrize("agents", [0, 1, 2, 6, 64])
def test_a_small_federation_has_all_pairs(agents: int) -> None:
    """Both profiles, the source's first; without protocols text alone, with them what is said and nothing else."""
    known, trust = profiles(agents), {"a0": 0.9, "a1": 0.0}
    some = {(f"a{i}", f"a{j}"): ("text", "logits")[: 1 + i % 2] for i in range(agents) for j in range(agents)}
    for believed, protocols in ((None, None), (trust, None), (trust, some), (None, {("a0", "a1"): ("adapter",)})):
        expected = [
            (one, other, (believed or {}).get(one, 0.5), protocol, np.append(p.values, q.values).tobytes())
            for (one, p), (other, q) in itertools.permutations(known.items(), 2)
            for protocol in (("text",) if protocols is None else protocols.get((one, other), ()))
        ]
        assert [fields(pair) for pair in candidate_pairs(known, believed, protocols)] == expected


def test_a_large_federation_has_few_for_each_agent() -> None:
    found = candidate_pairs(profiles(AGENTS), seed=3)
    keys = found.sources * AGENTS + found.receivers
    assert len(found) <= LIMIT * AGENTS and (found.sources != found.receivers).all() and (np.diff(keys) > 0).all()
    assert np.bincount(found.receivers, minlength=AGENTS).min() >= LIMIT // 2
    assert np.bincount(found.sources, minlength=AGENTS).min() >= LIMIT // 4, "everybody may teach somebody"
    again, other = candidate_pairs(profiles(AGENTS), seed=3), candidate_pairs(profiles(AGENTS), seed=4)
    later = candidate_pairs(profiles(AGENTS, 1), seed=3)
    assert np.array_equal(again.sources, found.sources) and np.array_equal(again.receivers, found.receivers)
    assert all(not np.array_equal(one.sources, found.sources) for one in (other, later))


def test_sources_do_better_in_what_both_have() -> None:
    """Four kinds of data, of each able and unable agents: near candidates share the data, and the able teach."""
    values = np.zeros((AGENTS, 32))
    values[np.arange(AGENTS), HISTOGRAM.start + np.arange(AGENTS) % 4] = 1.0
    values[:, [SCORE, INVERSE_PERPLEXITY]] = (np.arange(AGENTS) % 3 > 0)[:, None]
    found = candidate_pairs({f"a{index}": Profile(tuple(row)) for index, row in enumerate(values.tolist())})
    alike = found.sources % 4 == found.receivers % 4
    lead = (found.sources % 3 > 0) & (found.receivers % 3 == 0)
    assert (alike & lead).mean() > 0.2, "by chance 0.06"


def test_pairs_that_gained_stay_candidates() -> None:
    gained = np.array([[identity("a5"), identity("a9")], [identity("gone"), identity("a1")]])
    found = candidate_pairs(profiles(AGENTS), gained=gained)
    assert (5, 9) in set(zip(found.sources.tolist(), found.receivers.tolist(), strict=True))
    assert len(found) <= LIMIT * AGENTS + 1


def test_protocols_may_be_worked_out() -> None:
    class ByParity(dict[tuple[str, str], tuple[str, ...]]):
        def get(self, key: tuple[str, str], default: object = None) -> tuple[str, ...]:
            return ("text", "logits") if int(key[0][1:]) % 2 else ()

    found = candidate_pairs(profiles(AGENTS), protocols=ByParity())
    assert set((found.sources % 2).tolist()) == {1} and found.protocols.tolist()[:4] == [0, 1, 0, 1]


def test_arrays_and_pairs_are_the_same() -> None:
    pairs = list(candidate_pairs(profiles(5), {"a2": 0.1}))
    table = Candidates.of(pairs)
    assert [fields(pair) for pair in table] == [fields(pair) for pair in pairs] and len(table) == 20
    assert fields(table[2:7][1]) == fields(table[np.array([0, 3])][1]) == fields(pairs[3])
    assert Candidates.of(table) is table
    np.testing.assert_array_equal(table.contexts(), [pair.context for pair in pairs])
    assert len(Candidates.of([])) == 0


def test_names_are_told_apart() -> None:
    assert len({identity(f"agent-{index}") for index in range(100_000)}) == 100_000
    assert identity("a") == identity("a") and 0 <= identity("a") < 2**63


def test_a_large_federation_plays_a_few_rounds() -> None:
    """300 agents: above the exact posterior and the exact matching, disjoint and with several students."""
    for policy in (Pairwise(), Pairwise(max_students=2)):
        state, random = policy.init(0), np.random.default_rng(0)
        for turn in range(4):
            found = candidate_pairs(profiles(300, turn), seed=turn, gained=policy.gained(state))
            chosen = policy.match(state, found, 150)
            receivers, taken = [pair.receiver for pair in chosen], [pair.source for pair in chosen]
            assert len(set(receivers)) == len(chosen) > 100
            assert max(map(taken.count, taken)) <= policy.max_students
            assert policy.max_students > 1 or not set(receivers) & set(taken)
            state = policy.update_all(state, [(pair, float(random.normal())) for pair in chosen])
        assert 0 < len(policy.gained(state)) <= 4 * 300
        assert len(state["pairs"]) <= 4 * 150 and state["sides"].shape == (300, 2, 32), "nothing grows with agents^2"


def test_leads_come_back_as_they_are() -> None:
    pairs = replace(candidate_pairs(profiles(3)), leads=np.arange(6) / 8)
    np.testing.assert_array_equal(Candidates.of(list(pairs)).leads, pairs.leads)
    assert pairs[1:3][0].lead == pairs[1].lead == 0.125
