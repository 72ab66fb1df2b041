"""The posterior in large federations against the exact one: the same mean, and draws of the same spread."""

import numpy as np
import pytest

from peertune.matchmakers import Pairwise, posterior
from peertune.matchmakers.base import Pair, State
from peertune.matchmakers.candidates import candidate_pairs
from peertune.matchmakers.features import NAMES
from peertune.matchmakers.posterior import Prior, _Dense, _Sparse
from peertune.payloads import Profile


@pytest.fixture(scope="module")
def state() -> State:
    """Twelve agents after 40 rounds of five random rewards."""
    policy, random = Pairwise(), np.random.default_rng(0)
    state = policy.init(0)
    for _ in range(40):
        profiles = {f"a{index}": Profile(tuple(random.uniform(0, 1, 32).tolist())) for index in range(12)}
        chosen = policy.match(state, candidate_pairs(profiles), 5)
        state = policy.update_all(state, [(pair, float(random.normal())) for pair in chosen])
    return state


PRIOR = Prior(np.full(len(NAMES), 0.1), 0.5, 4.0)


def test_the_mean_is_the_same(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, _ = posterior.posterior(state, PRIOR, 0.0, np.random.default_rng(0))
    monkeypatch.setattr(posterior, "_DENSE", 0)
    found, drawn = posterior.posterior(state, PRIOR, 0.0, np.random.default_rng(0))
    np.testing.assert_allclose(found.features, exact.features, atol=1e-4)
    np.testing.assert_allclose(found.sides, exact.sides, atol=1e-4)
    np.testing.assert_array_equal(drawn.sides, found.sides)  # no width, no spread


def test_draws_have_the_spread_of_the_posterior(state: State) -> None:
    """Of 800 draws: exact ones to 13 %; in large federations features a little narrower, never wider."""
    covariance = np.linalg.inv(_Dense(state, PRIOR)._precision)
    expected = np.sqrt(np.diag(covariance))
    for system, least in ((_Dense(state, PRIOR), 0.87), (_Sparse(state, PRIOR), 0.6)):
        random = np.random.default_rng(1)
        draws = [system.spread(random) for _ in range(800)]
        found = np.array([np.append(draw.features, draw.sides) for draw in draws]).std(axis=0)
        assert (found > least * expected).all() and (found < 1.13 * expected).all()


def test_nothing_is_known_at_first() -> None:
    empty = Pairwise().init(0)
    mean, _ = posterior.posterior(empty, PRIOR, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(mean.features, PRIOR.mean)


@pytest.mark.parametrize("dense", [200, 0])
def test_forgotten_pairs_leave_a_precision_that_can_be_drawn_from(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of 200 agents meet once only, and the prior is too weak to make up for what is forgotten."""
    policy, random = Pairwise(half_life=5.0, side_ridge=0.02), np.random.default_rng(0)
    profiles, state = random.uniform(0, 1, (200, 32)), policy.init(0)
    for _ in range(40):
        order = random.permutation(200)
        met = [
            Pair(f"a{one}", f"a{other}", np.append(profiles[one], profiles[other]))
            for one, other in zip(order[::2], order[1::2], strict=True)
        ]
        state = policy.update_all(state, [(pair, float(random.normal())) for pair in met])
    monkeypatch.setattr(posterior, "_DENSE", dense)
    mean, draw = posterior.posterior(state, Prior(np.zeros(len(NAMES)), 0.05, 0.02), 0.1, random)
    assert np.isfinite(mean.sides).all() and np.isfinite(draw.sides).all()
    assert np.abs(draw.sides).max() < 10
