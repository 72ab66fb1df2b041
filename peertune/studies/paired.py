"""Arms compared seed by seed and problem by problem: means, differences and relative gains with 95 % intervals.

The bootstrap has two levels, as a new study would have: seeds are drawn with replacement and, within every drawn seed,
its test problems. Both arms keep what was drawn: they met the same federation and the same problems. Percentiles.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from peertune.report.reading import START
from peertune.studies.records import Arm, Run

RESAMPLES = 4000
LEVELS = [2.5, 97.5]

Interval = tuple[float, float, float]  # estimate, 2.5 %, 97.5 %
Who = Sequence[str]  # agents


@dataclass(frozen=True, slots=True)
class Comparison:
    """`arm` minus `other` in the main score of benign agents, 0..1, after the last round, over the common `seeds`.

    `gain`: relative to `other`, 1 = twice as good; None where `other` may be 0. `positive`: seeds in which `arm` is
    better.
    """

    arm: str
    other: str
    seeds: tuple[int, ...]
    difference: Interval
    gain: Interval | None
    positive: int


def resampled_means(seeds: Sequence[np.ndarray]) -> np.ndarray:
    """Means of bootstrap samples, [RESAMPLES, columns], of one array a seed, [problems, columns]."""
    return _weights(tuple(map(len, seeds))) @ np.concatenate(seeds)


@lru_cache(maxsize=4)  # every comparison of a federation draws the same seeds and problems
def _weights(problems: tuple[int, ...]) -> np.ndarray:
    """What each problem of each seed counts in a bootstrap sample, [RESAMPLES, all problems]; a row sums to 1."""
    random = np.random.default_rng(0)
    drawn = random.integers(len(problems), size=(RESAMPLES, len(problems)))
    weights = [np.zeros((RESAMPLES, count)) for count in problems]
    for place in range(len(problems)):
        for seed, count in enumerate(problems):
            rows = np.flatnonzero(drawn[:, place] == seed)
            counts = random.multinomial(count, np.full(count, 1 / count), size=len(rows))
            weights[seed][rows] += counts / (count * len(problems))
    return np.concatenate(weights, axis=1)


def interval(estimate: float, resampled: np.ndarray) -> Interval:
    """The estimate and the percentiles of its bootstrap values, [RESAMPLES]."""
    low, high = np.percentile(resampled, LEVELS)
    return float(estimate), float(low), float(high)


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean and its interval where seeds alone are drawn; one value a seed."""
    scores = np.array(values)
    drawn = np.random.default_rng(0).integers(len(scores), size=(RESAMPLES, len(scores)))
    return interval(float(scores.mean()), scores[drawn].mean(axis=1))


def mean_score(arms: Sequence[Arm], agents: Who) -> Interval:
    """The mean over seeds of the main score of these agents; one arm a seed."""
    columns = [_problems(arm, _graded([arm], agents))[:, None] for arm in arms]
    estimate = np.mean([column.mean() for column in columns])
    return interval(float(estimate), resampled_means(columns)[:, 0])


def compare(runs: Sequence[Run], arm: str, other: str, agents: Who | None = None) -> Comparison | None:
    """Two arms of one federation; benign agents unless `agents` are named. None if no seed has finished both."""
    pairs = {run.seed: (run.arms[arm], run.arms[other]) for run in runs if arm in run.arms and other in run.arms}
    return compare_pairs(pairs, arm, other, runs[0].benign if agents is None and runs else agents or ())


def compare_pairs(pairs: Mapping[int, tuple[Arm, Arm]], arm: str, other: str, agents: Who) -> Comparison | None:
    """The same of any two arms that met the same problems under each seed; of agents that were graded in both."""
    columns = []
    for both in pairs.values():
        graded = _graded(both, agents)
        if not graded:
            return None
        columns.append(np.stack([_problems(one, graded) for one in both], axis=1))
    if not columns:
        return None
    by_seed = np.array([column.mean(axis=0) for column in columns])
    mine, theirs = by_seed.mean(axis=0)
    draws = resampled_means(columns)
    gain = None
    if theirs > 0 and draws[:, 1].min() > 0:
        gain = interval(mine / theirs - 1, draws[:, 0] / draws[:, 1] - 1)
    return Comparison(
        arm=arm,
        other=other,
        seeds=tuple(pairs),
        difference=interval(mine - theirs, draws[:, 0] - draws[:, 1]),
        gain=gain,
        positive=int((by_seed[:, 0] > by_seed[:, 1]).sum()),
    )


def ratio(pairs: Sequence[tuple[float, float]]) -> Interval | None:
    """Sum of the first numbers over sum of the second, one pair a seed; seeds are drawn. None if a second is 0."""
    values = np.array(pairs, dtype=float).reshape(-1, 2)
    if not len(values) or values[:, 1].min() <= 0:
        return None
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    sums = values[drawn].sum(axis=1)
    return interval(values[:, 0].sum() / values[:, 1].sum(), sums[:, 0] / sums[:, 1])


def arms_of(runs: Sequence[Run]) -> list[str]:
    """Every arm that some seed has finished, in the order of the configuration."""
    return list(dict.fromkeys(arm for run in runs for arm in run.arms if arm != START))


def _graded(arms: Sequence[Arm], agents: Who) -> list[str]:
    return [name for name in agents if all(name in arm.grades for arm in arms)]


def _problems(arm: Arm, agents: Who) -> np.ndarray:
    """The mean score over agents of each problem, [problems]."""
    return np.mean([arm.grades[name] for name in agents], axis=0)
