"""The policy that knows what each exchange would bring: the upper bound in synthetic federations and replays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peertune.matchmakers.base import Matchmaker, Pair, State, greedy_pairs, with_predictions
from peertune.matchmakers.matching import best_disjoint


@dataclass(frozen=True, slots=True)
class Oracle(Matchmaker):
    """Takes the pairs of the greatest true gain of this round, and none that would lose. It does not look ahead.

    `gains`: the true gain of each directed pair, (source, receiver) by name. `exact`: the best set of pairs, not the
    best pair first. It is not a matchmaker of configurations: nobody knows these numbers in a real federation.
    """

    gains: Mapping[tuple[str, str], float]
    exact: bool = True

    def init(self, seed: int) -> State:
        return {}

    def match(self, state: State, candidates: Sequence[Pair], k: int) -> list[Pair]:
        useful = [pair for pair in candidates if self.gains[pair.source, pair.receiver] > 0]
        gains = {pair: self.gains[pair.source, pair.receiver] for pair in useful}
        if not self.exact:
            return with_predictions(greedy_pairs(useful, list(gains.values()), k), gains)
        names = list({name: None for pair in useful for name in (pair.source, pair.receiver)})
        place = {name: index for index, name in enumerate(names)}
        weights = np.full((len(names), len(names)), -np.inf)
        for pair, gain in gains.items():
            weights[place[pair.source], place[pair.receiver]] = gain
        by_name = {(pair.source, pair.receiver): pair for pair in useful}
        return with_predictions(
            [by_name[names[source], names[receiver]] for source, receiver in best_disjoint(weights, k)], gains
        )

    def update(self, state: State, pair: Pair, reward: float) -> State:
        return state
