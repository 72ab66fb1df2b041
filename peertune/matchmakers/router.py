"""Matchmaking at the grain of (source, category): whose text to pull for each prompt, from scalars alone.

Nobody is good at everything, so one teacher for all prompts is too coarse. Every source has a Beta posterior of being
right for each category and each bin of its own confidence, hierarchically shrunk: from the bin of all sources, through
the source's bin over all categories, to the cell. What receivers and auditors found out is the evidence; it fades,
because agents learn. With `explore` one draw ranks the sources (Thompson), without it the mean does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le

from peertune.matchmakers.base import State

EDGES = np.array([10, 50, 200])  # thousandths of a nat a token: surprise up to these is confidence of bin 3, 2, 1
TESTED = len(EDGES) + 1  # the bin of texts that are said to pass the public tests
_PRIOR = np.array([0.05, 0.2, 0.5, 0.8, 0.9])  # share of right texts by bin, before anything is known
_BINS = len(_PRIOR)
_STRENGTH = 4.0  # tries that a prior is worth
_TIE = 5e-5  # weight of a thousandth of a nat among sources that are as likely to be right


@dataclass(frozen=True, slots=True)
class Claimed:
    """What the sources claim of their drafts: arrays [agents, prompts]. Rows of absent agents offer nothing."""

    surprise: np.ndarray  # int, thousandths of a nat a token
    bins: np.ndarray  # int, of confidence, as `confidence_bin` has them
    offered: np.ndarray  # bool
    settled: np.ndarray  # bool: this agent needs no other text for that prompt


@dataclass(frozen=True, slots=True)
class Router:
    """`memory`: what evidence of one round weighs in the next. `floor`: texts that are less likely to be right are not
    pulled. `explore`: rank by a draw from the posterior, which finds liars out, instead of by its mean.
    """

    memory: Annotated[float, Gt(0), Le(1)] = 0.7
    floor: Annotated[float, Ge(0), Le(1)] = 0.2
    explore: bool = True

    def init(self, agents: int, categories: int, seed: int) -> State:
        """Evidence for each (source, category, bin)."""
        cells = (agents, categories, _BINS)
        counts = {"right": np.zeros(cells), "tried": np.zeros(cells)}
        return {"seed": np.array([seed]), "round": np.zeros(1, np.int64), **counts}

    def rank(self, state: State, claimed: Claimed, categories: np.ndarray, receiver: int) -> np.ndarray:
        """Sources for each prompt, best first, int [prompts, agents]; -1 behind the last that is worth pulling from.

        `categories`: int [prompts]. A receiver whose own draft is as likely to be right as anybody's pulls nothing.
        """
        agents = np.arange(len(claimed.bins))[:, None]
        likely = self._likely(state, receiver)[agents, categories[None, :], claimed.bins]
        scores = likely - _TIE * np.minimum(claimed.surprise, 1000)
        own = np.where(claimed.offered[receiver], scores[receiver], -np.inf)
        open_ = claimed.offered & (likely >= self.floor) & (scores > own) & ~claimed.settled[receiver]
        open_[receiver] = False
        scores = np.where(open_, scores, -np.inf)
        order = np.argsort(-scores, axis=0, kind="stable")
        return np.where(np.take_along_axis(open_, order, axis=0), order, -1).T

    def observe(self, state: State, source: int, cells: tuple[np.ndarray, np.ndarray], passed: np.ndarray) -> State:
        """The state after texts of `source` in `cells` (categories, confidence bins) were found right or not."""
        right, tried = state["right"].copy(), state["tried"].copy()
        np.add.at(right[source], cells, passed)
        np.add.at(tried[source], cells, 1.0)
        return {**state, "right": right, "tried": tried}

    def next_round(self, state: State) -> State:
        faded = {key: self.memory * state[key] for key in ("right", "tried")}
        return {**state, **faded, "round": state["round"] + 1}

    def credit(self, state: State) -> np.ndarray:
        """How likely each source is right in each category and bin: posterior means [agents, categories, bins]."""
        means, _ = _posterior(state)
        return means

    def _likely(self, state: State, receiver: int) -> np.ndarray:
        means, strength = _posterior(state)
        if not self.explore:
            return means
        random = np.random.default_rng([int(state["seed"][0]), int(state["round"][0]), receiver])
        drawn = random.beta(means * strength, (1 - means) * strength)
        drawn[receiver] = means[receiver]
        return drawn


def confidence_bin(surprise: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Bins of texts by surprise (thousandths of a nat a token): 0, least confident, to 3; 4 where `tested`."""
    return np.where(tested, TESTED, TESTED - 1 - np.digitize(surprise, EDGES, right=True))


def _posterior(state: State) -> tuple[np.ndarray, np.ndarray]:
    """Mean and strength (tries) of the Beta posterior of each cell, [agents, categories, bins]."""
    right, tried = state["right"], state["tried"]
    everybody = (right.sum((0, 1)) + _STRENGTH * _PRIOR) / (tried.sum((0, 1)) + _STRENGTH)
    of_source = (right.sum(1) + _STRENGTH * everybody) / (tried.sum(1) + _STRENGTH)
    strength = tried + _STRENGTH
    return (right + _STRENGTH * of_source[:, None]) / strength, strength


def category_numbers(categories: Sequence[str]) -> np.ndarray:
    """Each category's number in the order of first appearance, int [prompts]."""
    known = {category: number for number, category in enumerate(dict.fromkeys(categories))}
    return np.array([known[category] for category in categories], dtype=np.int64)
