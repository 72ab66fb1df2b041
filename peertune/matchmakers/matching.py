"""The best set of pairs, exactly: maximum-weight matching with at most k pairs.

Disjoint pairs are a matching of a general graph (Edmonds' blossom algorithm, here rustworkx's); a source with several
students is a matching of receivers to the places that sources have. "At most k" is the dummy-node trick: each agent
that must stay alone is taken by a dummy, which is worth more than any pair. Pairs of no positive weight are left out.
"""

import numpy as np
import rustworkx

_STEPS = 2**40  # rustworkx wants whole numbers: weights are rounded to 2^-40 of the greatest


def best_disjoint(weights: np.ndarray, k: int) -> list[tuple[int, int]]:
    """At most `k` directed pairs (source, receiver) of the greatest total weight; no agent stands in two of them.

    `weights`: float array [agents, agents], source by row; -inf or not positive where a pair must not or need not be.
    Of two directions the better one counts, of equal ones that of the lower source. Pairs come best first.
    """
    agents = len(weights)
    either = np.maximum(weights, weights.T)
    low, high = np.nonzero(np.triu(either > 0, 1))
    if k < 1 or not len(low):
        return []
    dummies = max(0, agents - 2 * k)
    matched = _match(agents + dummies, low, high, either[low, high], (np.arange(agents), dummies))
    directed = [(i, j) if weights[i, j] >= weights[j, i] else (j, i) for i, j in matched if j < agents]
    return _best_first(weights, directed)


def best_assignment(weights: np.ndarray, k: int, max_students: int) -> list[tuple[int, int]]:
    """At most `k` directed pairs (source, receiver) of the greatest total weight: a receiver has one source, a source
    at most `max_students` receivers, and an agent may be both. `weights` as in `best_disjoint`.
    """
    agents = len(weights)
    sources, receivers = np.nonzero(weights > 0)
    apart = sources != receivers
    sources, receivers = sources[apart], receivers[apart]
    if k < 1 or not len(sources):
        return []
    places = min(max_students, agents)
    low = np.repeat(receivers, places)
    high = agents + (sources[:, None] * places + np.arange(places)).ravel()
    values = np.repeat(weights[sources, receivers], places)
    dummies = max(0, agents - k)
    matched = _match(agents * (1 + places) + dummies, low, high, values, (np.arange(agents), dummies))
    last = agents * (1 + places)
    return _best_first(weights, [((j - agents) // places, i) for i, j in matched if j < last])


def _match(
    nodes: int, low: np.ndarray, high: np.ndarray, values: np.ndarray, alone: tuple[np.ndarray, int]
) -> list[tuple[int, int]]:
    """Maximum-weight matching of the edges `low`-`high` (positive `values`). `alone`: who may be linked to each of the
    last so many nodes, the dummies, by an edge that outweighs every other.
    """
    whole = np.rint(values / values.max() * _STEPS).astype(np.int64) + 1
    who, dummies = alone
    first = np.concatenate([low, np.tile(who, dummies)])
    second = np.concatenate([high, np.repeat(np.arange(nodes - dummies, nodes), len(who))])
    every = np.concatenate([whole, np.full(len(who) * dummies, 2 * _STEPS)])
    graph = rustworkx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(list(zip(first.tolist(), second.tolist(), every.tolist(), strict=True)))
    found = rustworkx.max_weight_matching(graph, weight_fn=int)
    return [(min(pair), max(pair)) for pair in found]


def _best_first(weights: np.ndarray, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(pairs, key=lambda pair: (-weights[pair], pair))
