"""Random pairs: the baseline that every learned policy must beat."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from peertune.matchmakers.base import Candidates, Matchmaker, Pair, State, greedy_pairs


@dataclass(frozen=True, slots=True)
class Uniform(Matchmaker):
    """Random directed pairs, drawn anew in every round.

    Directed pairs are taken in a random order, those that no longer fit are skipped. If every pair is a candidate,
    each set of disjoint pairs is equally likely, and so is each assignment once `max_students` does not bind; between
    the two, agents are alike but assignments are not exactly. Among several protocols of a pair one is drawn. The draw
    is a function of the seed and of this round's contexts, which change from round to round: no state is needed.
    `max_students`: receivers of one source; with 1, all pairs are disjoint.
    """

    max_students: Annotated[int, Ge(1)] = 1

    def init(self, seed: int) -> State:
        return {"seed": np.array([seed])}

    def match(self, state: State, candidates: Sequence[Pair], k: int) -> list[Pair]:
        if not candidates:
            return []
        pairs = Candidates.of(candidates)
        random = np.random.default_rng([int(state["seed"][0]), zlib.crc32(pairs.contexts().data)])
        key = pairs.sources * len(pairs.names) + pairs.receivers
        _, first, counts = np.unique(key, return_index=True, return_counts=True)
        in_turn, starts = np.argsort(first), np.cumsum(counts) - counts
        protocols = random.integers(counts[in_turn])
        drawn = np.argsort(key, kind="stable")[starts[in_turn] + protocols]
        scores = np.full(len(pairs), -np.inf)  # another protocol's turn never comes: whoever it is for is taken by then
        scores[drawn] = random.random(len(drawn))
        return greedy_pairs(candidates, scores, k, self.max_students)

    def update(self, state: State, pair: Pair, reward: float) -> State:
        return state
