"""Random pairs: the baseline that every learned policy must beat."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from peertune.matchmakers.base import Matchmaker, Pair, State, greedy_disjoint


@dataclass(frozen=True, slots=True)
class Uniform(Matchmaker):
    """Disjoint directed pairs, drawn uniformly anew in every round.

    The draw is a function of the seed and of this round's contexts, which change from round to round: no state is
    needed.
    """

    def init(self, seed: int) -> State:
        return {"seed": np.array([seed])}

    def match(self, state: State, candidates: Sequence[Pair], k: int) -> list[Pair]:
        digest = 0
        for pair in candidates:
            digest = zlib.crc32(pair.context.tobytes(), digest)
        random = np.random.default_rng([int(state["seed"][0]), digest])
        return greedy_disjoint(candidates, random.random(len(candidates)).tolist(), k)

    def update(self, state: State, pair: Pair, reward: float) -> State:
        return state
