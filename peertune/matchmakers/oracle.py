"""The policy that knows what each exchange would bring: the upper bound in synthetic federations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from peertune.matchmakers.base import Candidates, Matchmaker, Pair, State, greedy_pairs
from peertune.matchmakers.matching import Edges, disjoint_edges


@dataclass(frozen=True, slots=True, eq=False)
class Oracle(Matchmaker):
    """Takes the pairs of the greatest true gain of this round, and none that would lose. It does not look ahead.

    `gains`: the true gain of each directed pair, float64 [source, receiver], agents in the order of the candidates'
    names. `exact`: the best set of pairs, not the best pair first. It is not a matchmaker of configurations: nobody
    knows these numbers in a real federation.
    """

    gains: np.ndarray
    exact: bool = True

    def init(self, seed: int) -> State:
        return {}

    def match(self, state: State, candidates: Sequence[Pair], k: int) -> list[Pair]:
        pairs = Candidates.of(candidates)
        pairs = pairs[self.gains[pairs.sources, pairs.receivers] > 0]
        gains = self.gains[pairs.sources, pairs.receivers]
        edges = Edges(len(pairs.names), pairs.sources, pairs.receivers, gains)
        chosen = list(pairs[disjoint_edges(edges, k)]) if self.exact else greedy_pairs(pairs, gains, k)
        place = {name: index for index, name in enumerate(pairs.names)}
        return [replace(one, predicted=float(self.gains[place[one.source], place[one.receiver]])) for one in chosen]

    def update(self, state: State, pair: Pair, reward: float) -> State:
        return state
