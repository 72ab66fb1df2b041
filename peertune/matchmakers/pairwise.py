"""Linear Thompson sampling on features of the pair, and exact matching (Agrawal and Goyal 2013, arXiv 1209.3352).

The expected gain of source s for receiver r is theta.phi(s, r) + u_s + v_r: features of both at once (`features.py`)
and what each side has shown so far (`evidence.py`). One draw from the posterior (`posterior.py`) scores all candidates
of a round; the pairs of the greatest total (`matching.py`) are taken. Rewards are standardised, past ones again
whenever the moments move; old evidence fades, because gains are used up. docs/methods.md has the details.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt

from peertune.matchmakers.base import PROTOCOLS, Candidates, Matchmaker, Pair, State, finite, identity
from peertune.matchmakers.evidence import (
    GAIN,
    MET,
    SHOWN,
    Exchanges,
    knowing,
    met_pairs,
    moments,
    no_evidence,
    rows,
    together,
    with_exchanges,
)
from peertune.matchmakers.features import NAMES, Group, history_features, kept, pair_features, prior_mean
from peertune.matchmakers.matching import Edges, assigned_edges, disjoint_edges
from peertune.matchmakers.posterior import Coefficients, Prior, posterior

_CHUNK = 2**15  # pairs whose features are held in memory at once
_UNMOVED = 1e9  # a prior precision that no evidence moves: what has it stays 0
_AGAIN = 4  # pairs that gained before, of each receiver, that stay candidates


@dataclass(frozen=True, slots=True)
class Pairwise(Matchmaker):
    """Learns who fits whom, pairs exactly, and leaves out pairs that are not expected to gain.

    `ridge`, `side_ridge`: prior precision of the features and of each side's own effect. `prior`: how strongly to
    expect beforehand what `features.prior_mean` says; 0 expects nothing. `width`: of the posterior that is drawn from,
    in standard deviations. `half_life`: exchanges of an agent after which evidence counts half. `patience`: an agent
    that has learnt from nobody for so many exchanges per agent goes first, with its best source, even if that is
    expected to bring nothing. `cut`: rewards farther from the median than so many robust standard deviations count as
    that far. `max_students`: receivers of one source; with 1, all pairs are disjoint. If no pair is expected to gain,
    the best one is tried all the same: without any exchange nobody would notice that it pays again. `without`: groups
    of features (`features.GROUPS`) to leave out, to see what each is worth.
    """

    ridge: Annotated[float, Gt(0)] = 0.05
    side_ridge: Annotated[float, Gt(0)] = 4.0
    prior: Annotated[float, Ge(0)] = 2.0
    width: Annotated[float, Ge(0)] = 0.12
    half_life: Annotated[float, Gt(0)] = 20.0
    patience: Annotated[float, Gt(0)] = 1.5
    cut: Annotated[float, Gt(0)] = 3.0
    max_students: Annotated[int, Ge(1)] = 1
    without: tuple[Group, ...] = ()
    reads_leads: ClassVar[bool] = True

    def init(self, seed: int) -> State:
        return {"seed": np.array([seed]), **no_evidence(len(NAMES))}

    def match(self, state: State, candidates: Sequence[Pair], k: int) -> list[Pair]:
        if not len(candidates) or k < 1:
            return []
        pairs = Candidates.of(candidates)
        state = knowing(state, pairs.identities)
        random = np.random.default_rng(
            [int(state["seed"][0]), int(state["clock"][0]), zlib.crc32(pairs.profiles.tobytes())]
        )
        mean, draw = posterior(state, self._prior(), self.width, random)
        drawn, expected = _scores(state, pairs, kept(self.without), (draw, mean))
        level, spread = moments(state)
        scores = self._with_precedence(state, pairs, level + spread * drawn, k)
        chosen = self._best(pairs, scores, k).tolist()
        known = state["clock"][0] > 0
        return [
            replace(candidates[each], predicted=float(level + spread * expected[each]) if known else math.nan)
            for each in chosen
        ]

    def update(self, state: State, pair: Pair, reward: float) -> State:
        return self.update_all(state, [(pair, reward)])

    def update_all(self, state: State, exchanges: Iterable[tuple[Pair, float]]) -> State:
        """As `update` one by one, but features are those before the first, and the unusual is told among all."""
        listed = [(pair, finite(reward)) for pair, reward in exchanges]
        if not listed:
            return state
        pairs, rewards = zip(*listed, strict=True)
        sources = np.array([identity(pair.source) for pair in pairs])
        receivers = np.array([identity(pair.receiver) for pair in pairs])
        state = knowing(state, np.stack([sources, receivers], axis=1).ravel())
        ends = rows(state, sources), rows(state, receivers)
        known = np.array([pair.trust for pair in pairs]), np.array([pair.lead for pair in pairs])
        protocols = np.array([PROTOCOLS.index(pair.protocol) for pair in pairs])
        own = pair_features(np.array([pair.context for pair in pairs]), known, protocols)
        x = np.hstack([own, _history(state, *ends)]) * kept(self.without)
        fade = 0.5 ** (2 / (self.half_life * len(state["agents"])))
        return with_exchanges(state, Exchanges(*ends, x, np.array(rewards)), fade, self.cut)

    def gained(self, state: State) -> np.ndarray:
        """The pairs of the greatest earlier gains, a few for each receiver."""
        sources, receivers = met_pairs(state)
        gains = state["history"][:, GAIN] / (state["history"][:, SHOWN] + 1)
        order = np.lexsort((-gains, receivers))
        first = np.searchsorted(receivers[order], receivers[order])  # of the same receiver
        best = order[(np.arange(len(order)) - first < _AGAIN) & (gains[order] > 0)]
        return state["agents"][np.stack([sources[best], receivers[best]], axis=1)]

    def _prior(self) -> Prior:
        sides = _UNMOVED if "sides" in self.without else self.side_ridge
        return Prior(self.prior * prior_mean(), self.ridge, sides)

    def _with_precedence(self, state: State, pairs: Candidates, scores: np.ndarray, k: int) -> np.ndarray:
        """Scores by which one more agent that has waited too long outweighs everything else, also what is expected."""
        agents = len(pairs.names)
        if state["clock"][0] < agents:  # too little is known to leave anybody out
            scores = scores - scores.min() + 1.0
        waited = state["clock"][0] - state["received"][rows(state, pairs.identities)]
        first = waited >= self.patience * agents
        return scores + np.where(first[pairs.receivers], 1 + 2 * k * float(np.abs(scores).max()), 0.0)

    def _best(self, pairs: Candidates, scores: np.ndarray, k: int) -> np.ndarray:
        """Which candidates to take, best first; of several protocols of a pair the best counts."""
        agents = len(pairs.names)
        key = pairs.sources * agents + pairs.receivers
        order = np.lexsort((-scores, key)) if pairs.protocols.any() else np.argsort(key, kind="stable")
        each = order[np.append(True, np.diff(key[order]) > 0)]
        edges = Edges(agents, pairs.sources[each], pairs.receivers[each], scores[each])
        if scores.max() <= 0:
            return each[[scores[each].argmax()]]
        return each[disjoint_edges(edges, k) if self.max_students == 1 else assigned_edges(edges, k, self.max_students)]


def _scores(state: State, pairs: Candidates, used: np.ndarray, thetas: Sequence[Coefficients]) -> np.ndarray:
    """What each of the `thetas` expects of each pair, standardised: [thetas, pairs]. `used`: 1 or 0 by feature."""
    place, scores = rows(state, pairs.identities), np.empty((len(thetas), len(pairs)))
    weights = np.stack([used * theta.features for theta in thetas], axis=1)
    for start in range(0, len(pairs), _CHUNK):
        some = pairs[start : start + _CHUNK]
        sources, receivers = place[some.sources], place[some.receivers]
        own = pair_features(some.contexts(), (some.trust[some.sources], some.leads), some.protocols)
        scored = np.hstack([own, _history(state, sources, receivers)]) @ weights
        for each, theta in enumerate(thetas):
            sides = theta.sides[sources, 0] + theta.sides[receivers, 1]
            scores[each, start : start + _CHUNK] = scored[:, each] + sides
    return scores


def _history(state: State, sources: np.ndarray, receivers: np.ndarray) -> np.ndarray:
    """The features [pairs, 11] of what has passed between these rows of the state."""
    forth, back = together(state, sources, receivers), together(state, receivers, sources)
    met = np.maximum(forth[:, MET], back[:, MET])  # both counts, added up, when they last met
    since = np.where(met > 0, (state["count"][sources] + state["count"][receivers] - met) / 2, np.inf)
    both = np.stack([forth, back], axis=1)
    return history_features(since, both[..., GAIN], both[..., SHOWN])
