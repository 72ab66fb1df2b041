"""LinUCB on concatenated profiles, as in KNEXA-FL Alg. 1 (the bandit: Li et al. 2010, arXiv 1003.0146, Alg. 1).

The score of a directed pair with context x is theta.x + beta * sqrt(x' A^-1 x), with A = ridge * I + sum x x' and
theta = A^-1 sum z x, where z is the reward standardised by its running mean and deviation. A^-1 is kept up to date by
Sherman-Morrison, O(d^2) an exchange. A score linear in [source, receiver] is additive in the two: it can learn who is a
good source and who gains most, not who fits whom.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from peertune.matchmakers.base import Matchmaker, Pair, State, contexts_of, finite, greedy_pairs

CONTEXT_SIZE = 64


@dataclass(frozen=True, slots=True)
class LinUCB(Matchmaker):
    """The contextual bandit of the paper. `beta`: width of the bound. `ridge`: lambda, the weight of the prior.

    `max_students`: receivers of one source; with 1, all pairs are disjoint. Of several protocols of a pair, which it
    cannot tell apart, it takes the first.
    """

    beta: Annotated[float, Ge(0)] = 1.0
    ridge: Annotated[float, Gt(0)] = 1.0
    max_students: Annotated[int, Ge(1)] = 1

    def init(self, seed: int) -> State:
        return {
            "inverse": np.eye(CONTEXT_SIZE) / self.ridge,
            "moment": np.zeros(CONTEXT_SIZE),  # sum of standardised reward * context
            "rewards": np.zeros(3),  # count, mean, sum of squared deviations (Welford)
        }

    def match(self, state: State, candidates: Sequence[Pair], k: int) -> list[Pair]:
        if not candidates:
            return []
        contexts, theta = contexts_of(candidates), state["inverse"] @ state["moment"]
        variance = np.einsum("pd,pd->p", contexts @ state["inverse"], contexts)
        scores = contexts @ theta + self.beta * np.sqrt(np.maximum(variance, 0.0))
        chosen = greedy_pairs(candidates, scores, k, self.max_students)
        rewards = self._destandardise(state, np.array([pair.context @ theta for pair in chosen]))
        return [replace(pair, predicted=reward) for pair, reward in zip(chosen, rewards, strict=True)]

    def update(self, state: State, pair: Pair, reward: float) -> State:
        rewards = _welford(state["rewards"], finite(reward))
        x, inverse = pair.context, state["inverse"]
        projected = inverse @ x
        return {
            "inverse": inverse - np.outer(projected, projected) / (1.0 + x @ projected),
            "moment": state["moment"] + standardise(rewards, reward) * x,
            "rewards": rewards,
        }

    def _destandardise(self, state: State, predicted: np.ndarray) -> list[float]:
        count, mean, squares = state["rewards"]
        if count == 0:
            return [math.nan] * len(predicted)  # nothing is known yet
        return (mean + np.sqrt(squares / count) * predicted).tolist()


def standardise(rewards: np.ndarray, reward: float) -> float:
    """(r - mu) / (sigma + 1e-6) with the running moments that already include `reward`; 0 for the first one."""
    count, mean, squares = rewards
    return float((reward - mean) / (np.sqrt(squares / count) + 1e-6))


def _welford(rewards: np.ndarray, reward: float) -> np.ndarray:
    count, mean, squares = rewards
    count += 1
    delta = reward - mean
    mean += delta / count
    return np.array([count, mean, squares + delta * (reward - mean)])
