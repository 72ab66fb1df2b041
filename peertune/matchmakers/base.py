"""What a pairing policy is."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, overload

import numpy as np

from peertune.payloads import PROFILE_SIZE

PROTOCOLS = ("text", "logits", "adapter")

State = Mapping[str, np.ndarray]  # a value: it can be saved, compared and replayed


@dataclass(frozen=True, eq=False)
class Pair:
    """`source` teaches `receiver`. The context travels with the pair: what is rewarded is what was scored.

    `context`: float64 array of 64 numbers, the source's profile, then the receiver's. `predicted` is the policy's
    estimate of the reward, NaN if it makes none. `trust`: the coordinator's evidence on the source, 0..1. `protocol`:
    how the knowledge travels (text, logits or adapter), which is part of what is chosen. `lead`: the share of public
    prompts that the source is expected to have right and the receiver not, by their claims and audits; 0 if unknown.
    """

    source: str
    receiver: str
    context: np.ndarray
    predicted: float = math.nan
    trust: float = 0.5
    protocol: str = "text"
    lead: float = 0.0


@dataclass(frozen=True, eq=False)
class Candidates(Sequence[Pair]):
    """Pairs as arrays, since a million objects are slow; as a sequence, each `Pair` is made when it is asked for.

    `names`: of the agents. `profiles`: float64 [agents, 32]. `trust`: of each agent, 0..1. `sources`, `receivers`,
    `protocols`: int64 [pairs], places in `names` and in `PROTOCOLS`. `leads`: float64 [pairs].
    """

    names: tuple[str, ...]
    profiles: np.ndarray
    trust: np.ndarray
    sources: np.ndarray
    receivers: np.ndarray
    protocols: np.ndarray
    leads: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> "Candidates":
        """The same pairs as arrays. Each agent must have one profile and one trust in all of them."""
        if isinstance(pairs, Candidates):
            return pairs
        place = {name: None for pair in pairs for name in (pair.source, pair.receiver)}
        place = {name: index for index, name in enumerate(place)}
        sources = np.array([place[pair.source] for pair in pairs], dtype=np.int64)
        receivers = np.array([place[pair.receiver] for pair in pairs], dtype=np.int64)
        contexts = contexts_of(pairs)
        half = contexts.shape[1] // 2
        profiles, trust = np.zeros((len(place), half)), np.full(len(place), 0.5)
        profiles[sources], profiles[receivers] = contexts[:, :half], contexts[:, half:]
        trust[sources] = [pair.trust for pair in pairs]
        protocols = np.array([PROTOCOLS.index(pair.protocol) for pair in pairs], dtype=np.int64)
        leads = np.array([pair.lead for pair in pairs], dtype=np.float64)
        return cls(tuple(place), profiles, trust, sources, receivers, protocols, leads)

    @cached_property
    def identities(self) -> np.ndarray:
        """What a state knows the agents by: int64 [agents]."""
        return np.array([identity(name) for name in self.names], dtype=np.int64)

    def contexts(self) -> np.ndarray:
        """Both profiles of each pair, the source's first: float64 [pairs, 64]."""
        return self.profiles[np.stack([self.sources, self.receivers], axis=1)].reshape(len(self), -1)

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice | np.ndarray) -> "Candidates": ...
    def __getitem__(self, index: int | slice | np.ndarray) -> "Pair | Candidates":
        ends = self.sources[index], self.receivers[index]
        if not isinstance(index, int):
            return replace(
                self, sources=ends[0], receivers=ends[1], protocols=self.protocols[index], leads=self.leads[index]
            )
        context = np.concatenate([self.profiles[ends[0]], self.profiles[ends[1]]])
        names, trust = (self.names[ends[0]], self.names[ends[1]]), float(self.trust[ends[0]])
        protocol, lead = PROTOCOLS[self.protocols[index]], float(self.leads[index])
        return Pair(*names, context, trust=trust, protocol=protocol, lead=lead)


class Matchmaker(ABC):
    """A policy without state of its own: `match` and `update` take the state and return what is new.

    `reads_leads`: it makes use of `Pair.lead`, so that it is worth working out.
    """

    reads_leads: ClassVar[bool] = False

    @abstractmethod
    def init(self, seed: int) -> State:
        """The state before the first round."""

    @abstractmethod
    def match(self, state: State, candidates: Sequence[Pair], k: int) -> list[Pair]:
        """At most `k` of `candidates`, none of them twice by another protocol. No agent stands in two of them, unless
        the policy was told that a source may have several students; then an agent may teach and learn.
        """

    @abstractmethod
    def update(self, state: State, pair: Pair, reward: float) -> State:
        """The state after `pair`, which `match` had returned, earned `reward`. A policy that learns raises `ValueError`
        for a reward that is not a finite number.
        """

    def update_all(self, state: State, exchanges: Iterable[tuple[Pair, float]]) -> State:
        """The state after all these exchanges, in order: what a large federation needs once a round."""
        for pair, reward in exchanges:
            state = self.update(state, pair, reward)
        return state

    def gained(self, state: State) -> np.ndarray:
        """Pairs that gained before and are worth another look, as `identity` of source and receiver: int64 [pairs, 2].
        None by default.
        """
        return np.zeros((0, 2), dtype=np.int64)


def identity(name: str) -> int:
    """What a state keeps of an agent's name: 63 bits, so that even 100 000 names are all different."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def finite(reward: float) -> float:
    """`reward`, if it is a finite number; `ValueError` if not."""
    if not math.isfinite(reward):
        raise ValueError(f"a reward must be a finite number, found {reward}; drop the report")
    return reward


def contexts_of(candidates: Sequence[Pair]) -> np.ndarray:
    """The contexts of all candidates: float64 [pairs, 64]."""
    if isinstance(candidates, Candidates):
        return candidates.contexts()
    return np.array([pair.context for pair in candidates], dtype=np.float64).reshape(len(candidates), 2 * PROFILE_SIZE)


def greedy_pairs(
    candidates: Sequence[Pair], scores: Sequence[float] | np.ndarray, k: int, max_students: int = 1
) -> list[Pair]:
    """Take candidates from the highest score down, equal scores in the given order, skipping what no longer fits.

    With `max_students` 1 the pairs are disjoint. Above, a receiver has one source, a source at most that many
    receivers, and an agent may be both.
    """
    pairs = Candidates.of(candidates)
    ends = list(zip(pairs.sources.tolist(), pairs.receivers.tolist(), strict=True))
    students: dict[int, int] = {}
    learning: set[int] = set()
    chosen: list[Pair] = []
    for index in np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable").tolist():
        if len(chosen) == k:
            break
        source, receiver = ends[index]
        if receiver in learning or students.get(source, 0) >= max_students:
            continue
        if max_students == 1 and (source in learning or receiver in students):
            continue
        chosen.append(candidates[index])
        learning.add(receiver)
        students[source] = students.get(source, 0) + 1
    return chosen
