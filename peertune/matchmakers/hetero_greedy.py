"""Heuristic-P2P (KNEXA-FL, Suppl. Alg. 3): the most different agents meet, the better performer teaches.

Alg. 3 and the main text contradict each other about who teaches; the main text (the higher performer) is followed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from peertune.matchmakers.base import Candidates, Matchmaker, Pair, State, greedy_pairs
from peertune.profiles import HISTOGRAM, LOSS, SCORE


@dataclass(frozen=True, slots=True)
class HeteroGreedy(Matchmaker):
    """Greedy maximum Jensen-Shannon distance between category histograms; learns nothing.

    `max_students`: receivers of one source; with 1, all pairs are disjoint. Above, who finds no better performer to
    learn from learns from a worse one, after everybody else: all policies train as many students.
    """

    max_students: Annotated[int, Ge(1)] = 1

    def init(self, seed: int) -> State:
        return {}

    def match(self, state: State, candidates: Sequence[Pair], k: int) -> list[Pair]:
        if not candidates:
            return []
        pairs = Candidates.of(candidates)
        histograms = pairs.profiles[:, HISTOGRAM]
        distances = jensen_shannon(histograms[pairs.sources], histograms[pairs.receivers])  # 0..1
        rank = _ranks(pairs.profiles)
        better = rank[pairs.sources] >= rank[pairs.receivers]
        return greedy_pairs(candidates, distances + 2 * better, k, self.max_students)

    def update(self, state: State, pair: Pair, reward: float) -> State:
        return state


def _ranks(profiles: np.ndarray) -> np.ndarray:
    """The better performer has the higher validation score or, equal scores being common, the lower loss: [agents]."""
    _, rank = np.unique(profiles[:, [SCORE, LOSS]] * (1, -1), axis=0, return_inverse=True)
    return rank


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distances (the root of the divergence, base 2, so 0 to 1) of distributions of shape [..., n]."""
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return np.sqrt(np.maximum(0.0, divergence))


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    ratio = np.divide(p, q, out=np.ones_like(p), where=(p > 0) & (q > 0))
    return np.sum(p * np.log2(ratio), axis=-1)
