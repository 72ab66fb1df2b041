"""The posterior of `pairwise`: a linear model with an effect of each agent as a source and as a receiver.

Exact up to 256 agents (Cholesky). Above, the same mean by conjugate gradients on the sparse system; there the draw of
the agents' effects is exact given that of the features, whose spread is taken a little too small, since the evidence
that two effects share is counted for both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from peertune.matchmakers.evidence import TOGETHER, State, met_pairs, moments

_DENSE = 256  # agents
_PRECISE, _STEPS = 1e-5, 200  # of conjugate gradients: relative residual, most steps


@dataclass(frozen=True, eq=False)
class Prior:
    """Mean of the features' coefficients [features]; precisions of them and of the agents' effects, whose mean is 0."""

    mean: np.ndarray
    ridge: float
    side_ridge: float


@dataclass(frozen=True, eq=False)
class Coefficients:
    """In deviations of the reward: of each feature [features]; of each agent as source and as receiver [agents, 2]."""

    features: np.ndarray
    sides: np.ndarray


def posterior(
    state: State, prior: Prior, width: float, random: np.random.Generator
) -> tuple[Coefficients, Coefficients]:
    """Mean, and one draw of `width` times the posterior's spread; the noise is estimated from the residual."""
    level, spread = moments(state)
    count, scale = state["precision"][0, 0], spread + 1e-6
    standardised = (state["moment"] - level * state["precision"][0]) / scale  # of all rewards, by the latest moments
    by_side = (state["side_moment"] - level * state["sides"][..., 0]) / scale
    known = state["precision"] @ prior.mean
    moment, side_moment = standardised - known, by_side - state["sides"] @ prior.mean
    system = (_Dense if len(state["agents"]) <= _DENSE else _Sparse)(state, prior)
    found = system.solve(moment, side_moment)
    before = count - 2 * standardised @ prior.mean + prior.mean @ known  # residual of the prior mean
    explained = found.features @ moment + float((found.sides * side_moment).sum())
    noise = np.sqrt((max(0.0, before - explained) + 1) / (count + 1))
    error = system.spread(random)
    mean = Coefficients(prior.mean + found.features, found.sides)
    reach = width * noise
    return mean, Coefficients(mean.features + reach * error.features, mean.sides + reach * error.sides)


def _diagonal(state: State, prior: Prior) -> np.ndarray:
    """The precision of each agent's effect as a source and as a receiver, [agents * 2]. What a forgotten pair has shown
    is missing between its two effects, and so counts once more here: without it the whole might not be definite.
    """
    evidence, agents = state["sides"][..., 0], len(state["agents"])
    known = [np.bincount(rows, state["history"][:, TOGETHER], agents) for rows in met_pairs(state)]
    forgotten = np.maximum(0.0, evidence - np.column_stack(known))
    return (evidence + forgotten).ravel() + prior.side_ridge


class _Dense:
    """The whole precision as one matrix: features, then source and receiver effects of each agent in turn."""

    def __init__(self, state: State, prior: Prior) -> None:
        self._features = features = len(prior.mean)
        sides = state["sides"].reshape(-1, features)
        sources, receivers = met_pairs(state)
        shared = np.diag(_diagonal(state, prior))
        shared[2 * sources, 2 * receivers + 1] = state["history"][:, TOGETHER]
        shared[2 * receivers + 1, 2 * sources] = state["history"][:, TOGETHER]
        own = state["precision"] + prior.ridge * np.eye(features)
        self._precision = np.block([[own, sides.T], [sides, shared]])

    def solve(self, moment: np.ndarray, side_moment: np.ndarray) -> Coefficients:
        """The coefficients of which these are the precision's products."""
        return self._parts(np.linalg.solve(self._precision, np.append(moment, side_moment)))

    def spread(self, random: np.random.Generator) -> Coefficients:
        """A draw with the inverse of the precision as covariance."""
        lower = np.linalg.cholesky(self._precision)
        return self._parts(np.linalg.solve(lower.T, random.standard_normal(len(lower))))

    def _parts(self, found: np.ndarray) -> Coefficients:
        return Coefficients(found[: self._features], found[self._features :].reshape(-1, 2))


class _Sparse:
    """The same in parts: A of the features, M of the agents' effects (sparse), B between them; as `_Dense`."""

    def __init__(self, state: State, prior: Prior) -> None:
        from scipy.sparse import csr_array

        features, agents = len(prior.mean), len(state["agents"])
        self._own = state["precision"] + prior.ridge * np.eye(features)
        self._sides = state["sides"].reshape(-1, features)
        sources, receivers = met_pairs(state)
        starts = np.searchsorted(sources, np.arange(agents + 1))  # keys ascend, so rows do
        self._met = csr_array((state["history"][:, TOGETHER], receivers, starts), shape=(agents, agents))
        self._back = self._met.T.tocsr()
        self._ridge = prior.side_ridge
        self._diagonal = _diagonal(state, prior)

    def solve(self, moment: np.ndarray, side_moment: np.ndarray) -> Coefficients:
        """The coefficients of which these are the precision's products."""
        right = side_moment.ravel() - self._sides @ np.linalg.solve(self._own, moment)
        sides = self._conjugate(self._without_features, right)
        features = np.linalg.solve(self._own, moment - self._sides.T @ sides)
        return Coefficients(features, sides.reshape(-1, 2))

    def spread(self, random: np.random.Generator) -> Coefficients:
        """A draw with, nearly, the inverse of the precision as covariance."""
        shared = self._sides.T @ (self._sides / (2 * self._diagonal - self._ridge)[:, None])
        lower = np.linalg.cholesky(self._own - shared)
        features = np.linalg.solve(lower.T, random.standard_normal(len(lower)))
        sides = self._conjugate(self._between, self._noise(random) - self._sides @ features)
        return Coefficients(features, sides.reshape(-1, 2))

    def _noise(self, random: np.random.Generator) -> np.ndarray:
        """A draw with covariance M: each pair's evidence moves both of its ends alike."""
        noise = self._met.copy()
        noise.data = np.sqrt(noise.data) * random.standard_normal(len(noise.data))
        known = np.column_stack([self._met.sum(1), self._met.sum(0)]).ravel()
        alone = np.sqrt(np.maximum(0.0, self._diagonal - known)) * random.standard_normal(len(known))
        return np.column_stack([noise.sum(1), noise.sum(0)]).ravel() + alone

    def _between(self, sides: np.ndarray) -> np.ndarray:
        """M times the agents' effects."""
        by_agent = sides.reshape(-1, 2)
        crossed = np.column_stack([self._met @ by_agent[:, 1], self._back @ by_agent[:, 0]]).ravel()
        return self._diagonal * sides + crossed

    def _without_features(self, sides: np.ndarray) -> np.ndarray:
        """(M - B A^-1 B') times the agents' effects: the features are solved for along with them."""
        return self._between(sides) - self._sides @ np.linalg.solve(self._own, self._sides.T @ sides)

    def _conjugate(self, product: Callable[[np.ndarray], np.ndarray], right: np.ndarray) -> np.ndarray:
        """What `product` takes to `right`, by conjugate gradients, scaled by the diagonal."""
        found, left = np.zeros_like(right), right
        scaled = left / self._diagonal
        direction, size = scaled, left @ scaled
        enough = _PRECISE**2 * size
        for _ in range(_STEPS):
            if size <= enough:
                break
            moved = product(direction)
            step = size / (direction @ moved)
            found, left = found + step * direction, left - step * moved
            scaled = left / self._diagonal
            before, size = size, left @ scaled
            direction = scaled + size / before * direction
        return found
