"""What a pairing policy is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from peertune.payloads import Profile

State = Mapping[str, np.ndarray]  # a value: it can be saved, compared and replayed


@dataclass(frozen=True, eq=False)
class Pair:
    """`source` teaches `receiver`. The context travels with the pair: what is rewarded is what was scored.

    `context`: float64 array of 64 numbers, the source's profile, then the receiver's. `predicted` is the policy's
    estimate of the reward, NaN if it makes none.
    """

    source: str
    receiver: str
    context: np.ndarray
    predicted: float = math.nan


class Matchmaker(ABC):
    """A policy without state of its own: `match` and `update` take the state and return what is new."""

    @abstractmethod
    def init(self, seed: int) -> State:
        """The state before the first round."""

    @abstractmethod
    def match(self, state: State, candidates: Sequence[Pair], k: int) -> list[Pair]:
        """At most `k` of `candidates`; no agent stands in two of them, unless the policy was told that it may."""

    @abstractmethod
    def update(self, state: State, pair: Pair, reward: float) -> State:
        """The state after `pair`, which `match` had returned, earned `reward`."""


def directed_pairs(profiles: Mapping[str, Profile]) -> list[Pair]:
    """Every directed pair of different agents, in the order of the names given."""
    vectors = {name: np.array(profile.values, dtype=np.float64) for name, profile in profiles.items()}
    return [
        Pair(source, receiver, np.concatenate([vectors[source], vectors[receiver]]))
        for source in vectors
        for receiver in vectors
        if source != receiver
    ]


def greedy_disjoint(candidates: Sequence[Pair], scores: Sequence[float], k: int) -> list[Pair]:
    """Take candidates from the highest score down, skipping agents already taken; equal scores in the given order."""
    taken: set[str] = set()
    chosen: list[Pair] = []
    for index in np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable"):
        if len(chosen) == k:
            break
        pair = candidates[int(index)]
        if not {pair.source, pair.receiver} & taken:
            chosen.append(pair)
            taken |= {pair.source, pair.receiver}
    return chosen


def with_predictions(pairs: Sequence[Pair], predictions: Mapping[Pair, float]) -> list[Pair]:
    """`pairs` with the policy's estimates filled in."""
    return [replace(pair, predicted=predictions[pair]) for pair in pairs]
