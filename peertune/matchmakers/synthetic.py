"""Federations without models, in which the true gain of every exchange is known: what a matchmaker is measured on.

`TrustEnvironment` follows the formulas of the official synthetic environment of KNEXA-FL (text exchange), written anew.
`SkillEnvironment` has a skill per category; a receiver gains where its source is better, and gains are used up.
The dynamics are the same for every policy: what an exchange changes depends on who meets whom, never on who chose it.
A policy sees profiles in the layout of `peertune.profiles`, no more than it would see of real agents.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from peertune.matchmakers.base import Candidates
from peertune.profiles import BINS, HISTOGRAM, INVERSE_PERPLEXITY, LOSS, PARAMETERS, SCORE

Heterogeneity = Literal["low", "medium", "high"]
ALPHA: Mapping[Heterogeneity, float] = {"low": 2.0, "medium": 0.7, "high": 0.3}  # of the Dirichlet distributions
_SIZES = (  # millions of parameters, a row a family: pythia, opt, gpt2, t5
    (70, 160, 410, 1000, 1400),
    (125, 350, 1300, 2700),
    (82, 124, 355, 774),
    (77, 220, 770, 3000),
)


class Environment(ABC):
    """One federation of `agents` agents; what is random in it follows from the seed. Gains are [source, receiver]."""

    names: tuple[str, ...]

    @abstractmethod
    def profiles(self) -> np.ndarray:
        """What the matchmaker sees: float64 [agents, 32]."""

    @abstractmethod
    def gains(self) -> np.ndarray:
        """The expected reward of every directed pair at this moment: float64 [agents, agents], 0 on the diagonal."""

    @abstractmethod
    def exchange(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """One round: disjoint pairs (source, receiver) meet, all at once. The rewards that they report, with noise."""

    @abstractmethod
    def skills(self) -> np.ndarray:
        """What it is all for: the skill of each agent, 0..1, [agents]."""


def candidates(environment: Environment) -> Candidates:
    """Every directed pair, by text, as `candidate_pairs` would give them."""
    agents = len(environment.names)
    sources, receivers = np.nonzero(~np.eye(agents, dtype=bool))
    unknown, none = np.full(agents, 0.5), np.zeros(len(sources))
    protocols = none.astype(np.int64)
    return Candidates(environment.names, environment.profiles(), unknown, sources, receivers, protocols, none)


class TrustEnvironment(Environment):
    """Rewards from the distance of the data, complementary skill, trust and bandwidth, less the bytes.

    A pair's reward has no direction: both sides improve. Trust, quality, bandwidth and efficiency are in no profile.
    """

    def __init__(self, agents: int, heterogeneity: Heterogeneity, seed: int) -> None:
        random = np.random.default_rng([seed, 1])
        self._noise = np.random.default_rng([seed, 2])
        alpha = ALPHA[heterogeneity]
        self.names = tuple(f"a{index}" for index in range(agents))
        self._family = random.integers(4, size=agents)
        self._size = np.array([random.choice(_SIZES[family]) for family in self._family], dtype=np.float64)
        self._types = random.dirichlet([alpha] * 5, size=agents)
        self._levels = random.dirichlet([1.5 * alpha] * 3, size=agents)
        level = np.select([self._size <= 160, self._size <= 410, self._size <= 1500], [0.25, 0.35, 0.45], 0.55)
        self._skill = np.clip(random.normal(level, 0.05), 0, 1)
        self._global = np.clip(self._skill - random.uniform(0.02, 0.08, agents), 0, 1)
        self._trust = random.beta(4, 2, agents)
        self._quality = random.uniform(0.3, 0.7, agents)
        self._efficiency = random.uniform(0.6, 0.9, agents)
        self._bandwidth = random.uniform(0.3, 1.0, agents)
        self._rate = np.full(agents, 0.01)
        self._change = np.zeros(agents)
        self._partners: list[list[int]] = [[] for _ in range(agents)]
        self._distance = 0.7 * _jensen_shannon(self._types) + 0.3 * _jensen_shannon(self._levels)

    def profiles(self) -> np.ndarray:
        values = np.zeros((len(self.names), 32))
        values[np.arange(len(values)), self._family] = 1
        values[:, PARAMETERS] = np.log10(self._size * 1e6) / 10
        values[:, SCORE], values[:, SCORE + 1] = self._skill, self._change
        values[:, LOSS] = -np.log(np.maximum(self._skill, 1e-3))
        values[:, INVERSE_PERPLEXITY] = np.maximum(self._skill, 1e-3)
        values[:, HISTOGRAM][:, :5], values[:, HISTOGRAM][:, 5:8] = self._types / 2, self._levels / 2
        return values

    def gains(self) -> np.ndarray:
        """10 (0.1 base + 0.3 learning) - 1e-5 KB, clipped to 0..1."""
        least = np.minimum.outer
        same = self._family[:, None] == self._family
        complementary = 0.4 * _bump(self._skill) + 0.4 * _bump(self._global) + 0.2 * np.where(same, 0.5, 1.0)
        trust = 0.5 * least(self._trust, self._trust) + 0.3 * _mean(self._trust) + 0.2 * _mean(self._quality)
        trust = np.maximum(0.0, trust - 0.3 * self._met_lately())
        network = 0.6 * _mean(self._bandwidth) + 0.4 * _mean(self._efficiency)
        base = 0.5 * self._distance + 0.2 * complementary + 0.2 * trust + 0.1 * network
        lead = np.maximum(0.0, self._skill[None] - self._skill[:, None])  # [learner, teacher]
        learning = 0.6 * (1 - self._skill[:, None]) * lead * (1 + self._rate[:, None])
        improvement = np.clip(0.1 * base + 0.3 * (learning + learning.T), 0, 0.5)
        kilobytes = 2048 * (2 - least(self._bandwidth, self._bandwidth))
        reward = np.clip(10 * improvement - 1e-5 * kilobytes, 0, 1)
        np.fill_diagonal(reward, 0.0)
        return reward

    def exchange(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        gains, rewards = self.gains(), []
        for source, receiver in pairs:
            reward = float(np.clip(gains[source, receiver] + self._noise.normal(0, 0.02), 0, 1))
            rewards.append(reward)
            self._partners[source].append(receiver)
            self._partners[receiver].append(source)
            for one in (source, receiver):
                self._improve(one, reward)
        return rewards

    def skills(self) -> np.ndarray:
        return self._skill.copy()

    def _improve(self, one: int, reward: float) -> None:
        step = 0.05 * reward * (1 - self._skill[one])
        self._skill[one] = min(1.0, self._skill[one] + step)
        self._global[one] = min(1.0, self._global[one] + step / 2)
        self._rate[one] = 0.8 * self._rate[one] + 0.2 * step
        self._change[one] = step
        if reward > 0.5:
            self._quality[one] = min(1.0, 1.05 * self._quality[one])

    def _met_lately(self) -> np.ndarray:
        """1 where the higher is among the last three partners of the lower, by number; symmetric [agents, agents]."""
        met = np.zeros((len(self.names),) * 2)
        for one, partners in enumerate(self._partners):
            met[one, partners[-3:]] = 1
        met = np.triu(met, 1)
        return met + met.T


class SkillEnvironment(Environment):
    """A skill for each of 12 categories; exchanges pull the receiver towards its source, up a lot and down a little.

    A receiver values its own mix of categories and all categories alike, half and half. Every agent also learns a
    little from its own data between rounds. Only the receiver gains, and what it has learnt cannot be learnt again.
    """

    def __init__(self, agents: int, heterogeneity: Heterogeneity, seed: int) -> None:
        random = np.random.default_rng([seed, 1])
        self._noise = np.random.default_rng([seed, 2])
        self.names = tuple(f"a{index}" for index in range(agents))
        self._mix = random.dirichlet([ALPHA[heterogeneity]] * BINS, size=agents)
        self._family = random.integers(4, size=agents)
        self._limit = random.uniform(0.4, 0.9, agents)  # what this agent's model can reach on its own
        self._skill = self._limit[:, None] * (1 - np.exp(-8 * self._mix)) * random.uniform(0.7, 1.0, (agents, BINS))
        self._before = self._score()

    def profiles(self) -> np.ndarray:
        values, score = np.zeros((len(self.names), 32)), self._score()
        values[np.arange(len(values)), self._family] = 1
        values[:, PARAMETERS] = 0.8 + 0.2 * self._limit
        values[:, SCORE], values[:, SCORE + 1] = score, score - self._before
        values[:, LOSS] = -np.log(np.maximum(score, 1e-3))
        values[:, INVERSE_PERPLEXITY] = np.maximum(score, 1e-3)
        values[:, HISTOGRAM] = self._mix
        return values

    def gains(self) -> np.ndarray:
        """Rise of the receiver's valued skill, times 3 (about 0..0.5), less a cost of 0.01."""
        value = 0.5 * self._mix + 0.5 / BINS  # [receiver, category]
        rise = np.einsum("src,rc->sr", self._pull(), value)
        gains = 3.0 * rise - 0.01
        np.fill_diagonal(gains, 0.0)
        return gains

    def exchange(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        gains, pull = self.gains(), self._pull()
        self._before = self._score()
        rewards = [float(gains[pair] + self._noise.normal(0, 0.03)) for pair in pairs]
        for source, receiver in pairs:
            self._skill[receiver] += pull[source, receiver]
        self._skill += 0.01 * self._mix * np.maximum(0.0, self._limit[:, None] - self._skill)
        return rewards

    def skills(self) -> np.ndarray:
        return self._skill.mean(1)

    def _score(self) -> np.ndarray:
        """What an agent measures on its own validation data: [agents]."""
        return (self._mix * self._skill).sum(1)

    def _pull(self) -> np.ndarray:
        """What a receiver's skills would change by: [source, receiver, category]; models of other families fit less."""
        lead = self._skill[:, None] - self._skill[None]
        fit = np.where(self._family[:, None] == self._family, 1.0, 0.8)[:, :, None]
        return fit * np.where(lead > 0, 0.3, 0.05) * lead


ENVIRONMENTS: dict[str, type[TrustEnvironment] | type[SkillEnvironment]] = {
    "trust": TrustEnvironment,
    "skill": SkillEnvironment,
}


def _bump(values: np.ndarray) -> np.ndarray:
    """exp(-(gap - 0.3)^2 / 0.1) of all pairs: [agents, agents]."""
    return np.exp(-((np.abs(values[:, None] - values) - 0.3) ** 2) / 0.1)


def _mean(values: np.ndarray) -> np.ndarray:
    return (values[:, None] + values) / 2


def _jensen_shannon(rows: np.ndarray) -> np.ndarray:
    """Distances in nats (root of the divergence) of all pairs of rows: [agents, agents]."""
    p, q = rows[:, None] + 1e-300, rows[None] + 1e-300
    middle = (p + q) / 2
    divergence = (p * np.log(p / middle) + q * np.log(q / middle)).sum(2) / 2
    return np.sqrt(np.maximum(0.0, divergence))
