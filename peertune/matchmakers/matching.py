"""The best set of pairs, at most k: exact where that takes a moment, the best pair first in larger federations.

Disjoint pairs are a matching of a general graph (Edmonds' blossom algorithm, here rustworkx's); a source with several
students is an assignment of receivers to the places that sources have (scipy's). "At most k" is a price of each pair in
the first, in the second a dummy for each receiver that must learn nothing, worth more than any pair. Pairs of no
positive weight are left out. Above the bounds below, the best pair is taken first, then the best that still fits: at
least half of the greatest total (Avis 1983), and 0.93 to 0.98 of it where both were measured (docs/methods.md).
"""

from dataclasses import dataclass

import numpy as np
import rustworkx

_STEPS = 2**40  # rustworkx wants whole numbers: weights are rounded to 2^-40 of the greatest
_BLOSSOM = 10**7  # nodes x edges up to which the exact matching is made: about 0.1 s
_CELLS = 4 * 10**6  # receivers x places up to which the dense assignment is made: about 0.5 s


@dataclass(frozen=True, eq=False)
class Edges:
    """Directed pairs that may be formed, none twice: agents from 0 to `agents` - 1, and what each pair is worth."""

    agents: int
    sources: np.ndarray
    receivers: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, weights: np.ndarray) -> "Edges":
        """All entries of a table [agents, agents], source by row, that are positive and off the diagonal."""
        sources, receivers = np.nonzero((weights > 0) & ~np.eye(len(weights), dtype=bool))
        return cls(len(weights), sources, receivers, weights[sources, receivers])

    def those(self, index: np.ndarray) -> "Edges":
        return Edges(self.agents, self.sources[index], self.receivers[index], self.weights[index])


def best_disjoint(weights: np.ndarray, k: int) -> list[tuple[int, int]]:
    """At most `k` directed pairs (source, receiver) of the greatest total weight; no agent stands in two of them.

    `weights`: float array [agents, agents], source by row; -inf or not positive where a pair must not or need not be.
    Of two directions the better one counts, of equal ones that of the lower source. Pairs come best first.
    """
    edges = Edges.of(weights)
    chosen = disjoint_edges(edges, k)
    return list(zip(edges.sources[chosen].tolist(), edges.receivers[chosen].tolist(), strict=True))


def disjoint_edges(edges: Edges, k: int) -> np.ndarray:
    """`best_disjoint` of listed edges: which of them, best first, int64."""
    useful = _better_direction(edges)
    if k < 1 or not len(useful):
        return useful[:0]
    some = edges.those(useful)
    taken = _greedy(some, 1, apart=True)
    if edges.agents * len(useful) > _BLOSSOM:
        return useful[taken[:k]]
    if len(taken) > 2 * k - 2:  # k - 1 pairs meet 2 k - 2 of these at most: one is free for any that is worth less
        useful = useful[some.weights >= some.weights[taken[2 * k - 2]]]
        some = edges.those(useful)
    return useful[_best_first(some, _blossom(some, k))]


def assigned_edges(edges: Edges, k: int, max_students: int) -> np.ndarray:
    """Which edges are at most `k` of the greatest total weight, best first, int64: a receiver has one source, a source
    at most `max_students` receivers, and an agent may be both. Edges of no positive weight are left out.
    """
    useful = np.flatnonzero(edges.weights > 0)
    some, places = edges.those(useful), min(max_students, edges.agents)
    if k < 1 or not len(useful):
        return useful[:0]
    if edges.agents * (edges.agents * places + max(0, edges.agents - k)) <= _CELLS:
        return useful[_best_first(some, _assignment(some, k, places))]
    return useful[_greedy(some, places, apart=False)[:k]]


def _better_direction(edges: Edges) -> np.ndarray:
    """Which edges are positive and the better of their two directions, if both are there, by (lower, higher) agent."""
    positive = np.flatnonzero(edges.weights > 0)
    some = edges.those(positive)
    low, high = np.minimum(some.sources, some.receivers), np.maximum(some.sources, some.receivers)
    key = low * edges.agents + high
    order = np.lexsort((some.sources, -some.weights, key))
    first = np.append(True, np.diff(key[order]) > 0)[: len(order)]
    return positive[order[first]]


def _best_first(edges: Edges, index: np.ndarray) -> np.ndarray:
    some = edges.those(index)
    return index[np.lexsort((some.receivers, some.sources, -some.weights))]


def _blossom(edges: Edges, k: int) -> np.ndarray:
    """Which edges are in the maximum-weight matching of at most `k`.

    Without that bound it may have more. The greatest total is concave in the number of pairs, so some price of a pair
    leaves `k` of them; it is found from chords, of which each shows a number of pairs between those of its ends.
    """
    whole = np.rint(edges.weights / edges.weights.max() * _STEPS).astype(np.int64) + 1
    few, many = np.zeros(0, dtype=np.int64), _matching(edges, whole)
    while len(many) > k:
        left = (len(many) - len(few)) * whole - (whole[many].sum() - whole[few].sum())  # whole numbers again
        between = _matching(edges, left)
        if left[between].sum() == left[many].sum():
            return _between(edges, few, many, k)
        few, many = (between, many) if len(between) < k else (few, between)
    return many


def _matching(edges: Edges, whole: np.ndarray) -> np.ndarray:
    """Which edges are in the matching of the greatest total of these whole numbers, of any number of pairs."""
    useful = np.flatnonzero(whole > 0)
    ends = (array[useful].tolist() for array in (edges.sources, edges.receivers, whole))
    graph = rustworkx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(edges.agents))
    graph.add_edges_from(list(zip(*ends, strict=True)))
    mate = np.full(edges.agents, -1)
    for one, other in rustworkx.max_weight_matching(graph, weight_fn=int):
        mate[[one, other]] = other, one
    return useful[mate[edges.sources[useful]] == edges.receivers[useful]]


def _between(edges: Edges, few: np.ndarray, many: np.ndarray, k: int) -> np.ndarray:
    """A matching of `k` edges made of two that are the best at one price: where they differ, each of the paths that
    alternate between them is worth the same on both sides, so that any may be exchanged.
    """
    differ = np.setxor1d(few, many)
    graph = rustworkx.PyGraph()
    graph.add_nodes_from(range(edges.agents))
    graph.add_edges_from_no_data(
        list(zip(edges.sources[differ].tolist(), edges.receivers[differ].tolist(), strict=True))
    )
    path = np.empty(edges.agents, dtype=np.int64)
    for number, agents in enumerate(rustworkx.connected_components(graph)):
        path[list(agents)] = number
    path = path[edges.sources[differ]]
    longer = np.bincount(path, np.where(np.isin(differ, many), 1, -1)) > 0  # by one edge each
    exchanged = np.flatnonzero(longer)[: k - len(few)]
    return np.setxor1d(few, differ[np.isin(path, exchanged)])


def _assignment(edges: Edges, k: int, places: int) -> np.ndarray:
    """Which edges are in the best assignment, by a table [receivers, places of sources and dummies]."""
    from scipy.optimize import linear_sum_assignment  # takes a quarter of a second to import

    agents = edges.agents
    values, which = np.zeros((agents, agents, places)), np.full((agents, agents), -1)
    values[edges.receivers, edges.sources] = edges.weights[:, None]
    which[edges.receivers, edges.sources] = np.arange(len(edges.weights))
    dummies = np.full((agents, max(0, agents - k)), 2 * edges.weights.max())
    _, column = linear_sum_assignment(np.hstack([values.reshape(agents, -1), dummies]), maximize=True)
    at_source = np.flatnonzero(column < agents * places)
    found = which[at_source, column[at_source] // places]
    return found[found >= 0]


def _greedy(edges: Edges, places: int, apart: bool) -> np.ndarray:
    """Which edges are taken, the best first, then the best that still fits. `apart`: who teaches does not learn."""
    free, untaught, found = [places] * edges.agents, [True] * edges.agents, []
    order = np.lexsort((edges.receivers, edges.sources, -edges.weights))
    some = edges.those(order)
    for index, source, receiver in zip(order.tolist(), some.sources.tolist(), some.receivers.tolist(), strict=True):
        if untaught[receiver] and free[source]:
            free[source] -= 1
            untaught[receiver] = False
            if apart:
                untaught[source], free[receiver] = False, 0
            found.append(index)
    return np.array(found, dtype=np.int64)
