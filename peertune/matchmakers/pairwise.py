"""Linear Thompson sampling on features of the pair, and exact matching (Agrawal and Goyal 2013, arXiv 1209.3352).

The expected gain of source s for receiver r is theta.phi(s, r) + u_s + v_r: features of both at once (`features.py`)
and what each side has shown so far. One draw from the posterior scores all pairs of a round; the matching of the
greatest total (`matching.py`) is taken. Rewards are standardised, past ones again whenever the moments move; the noise
is estimated from the residual. Old evidence fades, because gains are used up. docs/methods.md has the details.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from peertune.matchmakers.base import Matchmaker, Pair, State
from peertune.matchmakers.features import NAMES, history_features, profile_features
from peertune.matchmakers.matching import best_assignment, best_disjoint

_FEATURES = len(NAMES)
_FADE = 0.7  # what an earlier gain of a pair weighs after each later one


@dataclass(frozen=True, slots=True)
class Pairwise(Matchmaker):
    """Learns who fits whom, pairs exactly, and leaves out pairs that are not expected to gain.

    `ridge`, `side_ridge`: prior precision of the features and of each side's own effect. `width`: of the posterior that
    is drawn from, in standard deviations. `half_life`: exchanges of an agent after which evidence counts half.
    `patience`: an agent that has learnt from nobody for so many exchanges per agent goes first, with its best source,
    even if that is expected to bring nothing. `max_students`: receivers of one source; with 1, all pairs are disjoint.
    """

    ridge: Annotated[float, Gt(0)] = 0.05
    side_ridge: Annotated[float, Gt(0)] = 2.0
    width: Annotated[float, Ge(0)] = 0.25
    half_life: Annotated[float, Gt(0)] = 30.0
    patience: Annotated[float, Gt(0)] = 1.5
    max_students: Annotated[int, Ge(1)] = 1

    def init(self, seed: int) -> State:
        return {
            "seed": np.array([seed]),
            "squares": np.zeros(1),  # sum of reward^2; these three sums fade
            "moment": np.zeros(_FEATURES),  # sum of reward * x
            "precision": np.zeros((_FEATURES, _FEATURES)),  # sum of x x'; x starts with 1, so row 0 is the sum of x
            "clock": np.zeros(1, dtype=np.int64),  # exchanges in all
            "agents": np.zeros(0, dtype=np.int64),  # CRC-32 of the names, in order of appearance
            "count": np.zeros(0),  # exchanges of each agent
            "received": np.zeros(0),  # the clock when it last learnt
            "met": np.zeros((0, 0)),  # the two agents' counts, added up, when they last met; 0 if never
            "gains": np.zeros((0, 0)),  # faded sum of standardised rewards, source by row
            "weights": np.zeros((0, 0)),  # and of ones
        }

    def match(self, state: State, candidates: Sequence[Pair], k: int) -> list[Pair]:
        if not candidates:
            return []
        names = {name: None for pair in candidates for name in (pair.source, pair.receiver)}
        state = _knowing(state, [_identity(name) for name in names])
        rows = dict(zip(names, _rows(state, [_identity(name) for name in names]), strict=True))
        sources = np.array([rows[pair.source] for pair in candidates])
        receivers = np.array([rows[pair.receiver] for pair in candidates])
        contexts = np.array([pair.context for pair in candidates])
        features = _features(state, contexts, sources, receivers)
        mean, draw = self._posterior(state, contexts)
        level, spread = _moments(state)
        scores = level + spread * _scores(draw, features, sources, receivers)
        if state["clock"][0] < len(names):  # too little is known to leave anybody out
            scores = scores - scores.min() + 1.0
        weights = np.full((len(state["agents"]),) * 2, -np.inf)
        np.maximum.at(weights, (sources, receivers), scores)
        chosen = self._best(self._with_precedence(state, weights, k, len(names)), k)
        order = np.argsort(scores, kind="stable").tolist()  # of a pair's protocols the best comes last and stays
        index = {(int(sources[place]), int(receivers[place])): place for place in order}
        predicted = level + spread * _scores(mean, features, sources, receivers)
        known = state["clock"][0] > 0
        return [
            replace(candidates[index[pair]], predicted=float(predicted[index[pair]]) if known else math.nan)
            for pair in chosen
        ]

    def update(self, state: State, pair: Pair, reward: float) -> State:
        identities = [_identity(pair.source), _identity(pair.receiver)]
        state = _knowing(state, identities)
        source, receiver = _rows(state, identities)
        fade = 0.5 ** (2 / (self.half_life * len(state["agents"])))
        x = np.zeros(len(state["moment"]))
        x[:_FEATURES] = _features(state, pair.context[None], np.array([source]), np.array([receiver]))[0]
        x[[_FEATURES + 2 * source, _FEATURES + 2 * receiver + 1]] = 1.0
        new = {key: array.copy() for key, array in state.items()}
        new["squares"] = fade * state["squares"] + reward**2
        new["moment"] = fade * state["moment"] + reward * x
        new["precision"] = fade * state["precision"] + np.outer(x, x)
        new["clock"][0] += 1
        new["count"][[source, receiver]] += 1
        new["received"][receiver] = new["clock"][0]
        new["met"][[source, receiver], [receiver, source]] = new["count"][source] + new["count"][receiver]
        level, spread = _moments(new)
        new["gains"][source, receiver] = _FADE * state["gains"][source, receiver] + (reward - level) / (spread + 1e-6)
        new["weights"][source, receiver] = _FADE * state["weights"][source, receiver] + 1
        return new

    def _posterior(self, state: State, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and one draw of the coefficients, both of shape [d]; the draw depends on state and contexts alone."""
        level, spread = _moments(state)
        moment = (state["moment"] - level * state["precision"][0]) / (spread + 1e-6)  # of all standardised rewards
        prior = np.full(len(moment), self.side_ridge)
        prior[:_FEATURES] = self.ridge
        precision = state["precision"] + np.diag(prior)
        mean = np.linalg.solve(precision, moment)
        count = state["precision"][0, 0]
        noise = math.sqrt((max(0.0, count - mean @ moment) + 1) / (count + 1))
        digest = zlib.crc32(contexts.tobytes())
        random = np.random.default_rng([int(state["seed"][0]), int(state["clock"][0]), digest])
        turned = np.linalg.solve(np.linalg.cholesky(precision).T, random.standard_normal(len(moment)))
        return mean, mean + self.width * noise * turned

    def _with_precedence(self, state: State, weights: np.ndarray, k: int, agents: int) -> np.ndarray:
        """Weights by which one more agent that has waited too long outweighs everything else, also what is expected."""
        waited = state["clock"][0] - state["received"]
        first = waited >= self.patience * agents
        most = float(np.abs(weights[np.isfinite(weights)]).max())
        return weights + np.where(first, 1 + 2 * k * most, 0.0)

    def _best(self, weights: np.ndarray, k: int) -> list[tuple[int, int]]:
        if self.max_students == 1:
            return best_disjoint(weights, k)
        return best_assignment(weights, k, self.max_students)


def _identity(name: str) -> int:
    return zlib.crc32(name.encode())


def _rows(state: State, identities: Sequence[int]) -> list[int]:
    rows = {identity: row for row, identity in enumerate(state["agents"].tolist())}
    return [rows[identity] for identity in identities]


def _knowing(state: State, identities: Sequence[int]) -> State:
    """The state with room for these agents: nothing is known of the new ones."""
    known = set(state["agents"].tolist())
    new = [identity for identity in dict.fromkeys(identities) if identity not in known]
    if not new:
        return state
    more, ids = len(new), np.array(new, dtype=np.int64)
    grown = {key: np.pad(state[key], (0, more)) for key in ("count", "received")}
    grown |= {key: np.pad(state[key], (0, more)) for key in ("met", "gains", "weights")}
    grown |= {key: np.pad(state[key], (0, 2 * more)) for key in ("moment", "precision")}
    return {**state, **grown, "agents": np.concatenate([state["agents"], ids])}


def _moments(state: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Mean and standard deviation of the rewards so far, old ones faded."""
    count = state["precision"][0, 0]
    if count == 0:
        return 0.0, 1.0
    mean = state["moment"][0] / count
    return float(mean), math.sqrt(max(0.0, float(state["squares"][0] / count - mean**2)))


def _features(state: State, contexts: np.ndarray, sources: np.ndarray, receivers: np.ndarray) -> np.ndarray:
    """Features [pairs, 22] of contexts [pairs, 64] of the agents in these rows of the state."""
    half = contexts.shape[1] // 2
    met = state["met"][sources, receivers]
    since = np.where(met > 0, (state["count"][sources] + state["count"][receivers] - met) / 2, np.inf)
    there_and_back = (np.stack([sources, receivers], 1), np.stack([receivers, sources], 1))
    history = history_features(since, state["gains"][there_and_back], state["weights"][there_and_back])
    return np.concatenate([profile_features(contexts[:, :half], contexts[:, half:]), history], axis=1)


def _scores(theta: np.ndarray, features: np.ndarray, sources: np.ndarray, receivers: np.ndarray) -> np.ndarray:
    sides = theta[_FEATURES:].reshape(-1, 2)
    return features @ theta[:_FEATURES] + sides[sources, 0] + sides[receivers, 1]
