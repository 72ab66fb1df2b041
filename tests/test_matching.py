"""Exact matching against brute force, on every small graph that hypothesis can think of."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import rustworkx
from hypothesis import given, settings
from hypothesis import strategies as st

from peertune.matchmakers import matching
from peertune.matchmakers.matching import Edges, assigned_edges, best_disjoint

Pairs = list[tuple[int, int]]


def best_assignment(matrix: np.ndarray, k: int, most: int) -> Pairs:
    edges = Edges.of(matrix)
    chosen = assigned_edges(edges, k, most)
    return list(zip(edges.sources[chosen].tolist(), edges.receivers[chosen].tolist(), strict=True))


@st.composite
def weights(draw: st.DrawFn, most: int) -> np.ndarray:
    """Directed weights, some of them forbidden, some negative, many equal."""
    agents = draw(st.integers(0, most))
    values = st.one_of(st.just(-np.inf), st.integers(-3, 5).map(float), st.floats(-1, 10))
    matrix = np.array(draw(st.lists(values, min_size=agents**2, max_size=agents**2)), dtype=np.float64)
    return matrix.reshape(agents, agents)


def total(matrix: np.ndarray, pairs: Pairs) -> float:
    return float(sum(matrix[pair] for pair in pairs))


def all_disjoint(agents: list[int], k: int) -> Iterator[Pairs]:
    """Every set of at most k disjoint directed pairs."""
    yield []
    if k and len(agents) > 1:
        for i, j in itertools.combinations(agents, 2):
            rest = [one for one in agents if one > i and one != j]  # pairs in the order of their lower agents
            for others in all_disjoint(rest, k - 1):
                yield [(i, j), *others]
                yield [(j, i), *others]


def all_assignments(agents: int, k: int, most: int) -> Iterator[Pairs]:
    """Every choice of a source, or none, for each receiver."""
    for choice in itertools.product(range(-1, agents), repeat=agents):
        pairs = [(source, receiver) for receiver, source in enumerate(choice) if source >= 0]
        load = [choice.count(source) for source in range(agents)]
        if len(pairs) <= k and max(load, default=0) <= most and all(i != j for i, j in pairs):
            yield pairs


@settings(max_examples=150)
@given(weights(7), st.integers(0, 4))
def test_disjoint_equals_brute_force(matrix: np.ndarray, k: int) -> None:
    chosen = best_disjoint(matrix, k)
    taken = [one for pair in chosen for one in pair]
    assert len(chosen) <= k and len(set(taken)) == len(taken)
    assert all(matrix[pair] > 0 and matrix[pair] >= matrix[pair[::-1]] for pair in chosen)
    best = max(total(matrix, pairs) for pairs in all_disjoint(list(range(len(matrix))), k))
    assert total(matrix, chosen) == pytest.approx(best, abs=1e-8)
    values = [matrix[pair] for pair in chosen]
    assert values == sorted(values, reverse=True), "the best first"


@settings(max_examples=100)
@given(weights(4), st.integers(0, 5), st.integers(1, 3))
def test_assignment_equals_brute_force(matrix: np.ndarray, k: int, most: int) -> None:
    chosen = best_assignment(matrix, k, most)
    sources, receivers = [pair[0] for pair in chosen], [pair[1] for pair in chosen]
    assert len(chosen) <= k and len(set(receivers)) == len(receivers)
    assert all(sources.count(source) <= most for source in sources)
    assert all(i != j and matrix[i, j] > 0 for i, j in chosen)
    best = max(total(matrix, pairs) for pairs in all_assignments(len(matrix), k, most))
    assert total(matrix, chosen) == pytest.approx(best, abs=1e-8)


def by_dummies(matrix: np.ndarray, k: int) -> float:
    """The greatest total another way: each agent that must stay alone is taken by a dummy, worth more than any pair."""
    agents, graph = len(matrix), rustworkx.PyGraph(multigraph=False)
    best = np.maximum(matrix, matrix.T).astype(int)
    graph.add_nodes_from(range(2 * agents - 2 * k))
    graph.add_edges_from([(i, j, int(best[i, j])) for i, j in itertools.combinations(range(agents), 2)])
    graph.add_edges_from([(i, dummy, 10**4) for i in range(agents) for dummy in range(agents, 2 * agents - 2 * k)])
    mates = rustworkx.max_weight_matching(graph, weight_fn=int)
    return float(sum(best[pair] for pair in mates if max(pair) < agents))


@pytest.mark.parametrize("most", [1, 3, 1000])
@pytest.mark.parametrize("agents", [9, 24])
def test_disjoint_among_many_of_equal_weight(agents: int, most: int) -> None:
    """Whole weights up to `most`: often no price of a pair leaves just k."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        matrix = random.integers(1, most + 1, (agents, agents)).astype(np.float64)
        k = int(random.integers(1, agents // 2))
        chosen = best_disjoint(matrix, k)
        assert len({one for pair in chosen for one in pair}) == 2 * len(chosen) == 2 * k
        assert total(matrix, chosen) == by_dummies(matrix, k)


def test_greedy_is_not_enough() -> None:
    """a-b is the best pair, but a-c and b-d together are better."""
    matrix = np.full((4, 4), -np.inf)
    matrix[0, 1], matrix[2, 0], matrix[1, 3] = 3.0, 2.0, 2.5
    assert best_disjoint(matrix, 2) == [(1, 3), (2, 0)]
    assert best_disjoint(matrix, 1) == [(0, 1)]


def test_a_good_source_may_have_several_students() -> None:
    matrix = np.full((4, 4), 0.1)
    matrix[0] = 5.0
    assert best_assignment(matrix, 3, 3) == [(0, 1), (0, 2), (0, 3)]
    assert len([pair for pair in best_assignment(matrix, 3, 2) if pair[0] == 0]) == 2


def test_nobody_is_paired_for_nothing() -> None:
    assert best_disjoint(np.zeros((4, 4)), 2) == [] and best_assignment(-np.ones((4, 4)), 2, 2) == []


@settings(max_examples=100)
@given(weights(7), st.integers(0, 4), st.integers(1, 3))
def test_one_by_one_reaches_half_at_least(matrix: np.ndarray, k: int, most: int) -> None:
    """What large federations get: valid, best first, and half of the best total or more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_BLOSSOM", -1)
        patch.setattr(matching, "_CELLS", -1)
        disjoint, assigned = best_disjoint(matrix, k), best_assignment(matrix, k, most)
    taken = [one for pair in disjoint for one in pair]
    assert len(disjoint) <= k and len(set(taken)) == len(taken)
    assert total(matrix, disjoint) >= 0.5 * total(matrix, best_disjoint(matrix, k)) - 1e-9
    sources, receivers = [pair[0] for pair in assigned], [pair[1] for pair in assigned]
    assert len(assigned) <= k and len(set(receivers)) == len(receivers)
    assert all(sources.count(source) <= most for source in sources)
    assert total(matrix, assigned) >= 0.5 * total(matrix, best_assignment(matrix, k, most)) - 1e-9
    for pairs in (disjoint, assigned):
        values = [matrix[pair] for pair in pairs]
        assert values == sorted(values, reverse=True) and all(value > 0 for value in values)
