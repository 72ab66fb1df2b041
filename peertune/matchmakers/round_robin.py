"""Everybody learns from everybody in turn: rotation without learning, hard to beat where gains are used up."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from peertune.matchmakers.base import Candidates, Matchmaker, Pair, State, greedy_pairs


@dataclass(frozen=True, slots=True)
class RoundRobin(Matchmaker):
    """A fixed schedule that covers every directed pair before any pair comes again.

    `max_students`: receivers of one source. With 1, pairs are disjoint and the order is that of a tournament (the
    circle method), first in one direction, then in the other. Above, everybody learns in every round, from the next
    agent by name, then from the one after it, and so on. Pairs that have met less often come first, so that a failed
    exchange, or an agent that joins late, has its turn next. Of several protocols of a pair the first is taken.
    """

    max_students: Annotated[int, Ge(1)] = 1

    def init(self, seed: int) -> State:
        return {"met": np.zeros((0, 3), dtype=np.int64)}  # CRC-32 of source and of receiver, number of exchanges

    def match(self, state: State, candidates: Sequence[Pair], k: int) -> list[Pair]:
        if not candidates:
            return []
        pairs = Candidates.of(candidates)
        there = sorted(set(pairs.sources.tolist()) | set(pairs.receivers.tolist()), key=pairs.names.__getitem__)
        place, slot = np.zeros(len(pairs.names), dtype=np.int64), _slots if self.max_students == 1 else _shifts
        place[there] = np.arange(len(there))
        slots = slot(place[pairs.sources], place[pairs.receivers], len(there))
        turns = _times_met(state, pairs) * 2 * (len(there) + 1) + slots
        return greedy_pairs(candidates, -turns, k, self.max_students)

    def update(self, state: State, pair: Pair, reward: float) -> State:
        key = np.array([zlib.crc32(pair.source.encode()), zlib.crc32(pair.receiver.encode())])
        here = (state["met"][:, :2] == key).all(1)
        if not here.any():
            return {"met": np.concatenate([state["met"], [[*key, 1]]])}
        return {"met": state["met"] + np.where(here, 1, 0)[:, None] * np.array([0, 0, 1])}


def _times_met(state: State, pairs: Candidates) -> np.ndarray:
    """How often each of these pairs has met, int64 [pairs]."""
    crc = [zlib.crc32(name.encode()) for name in pairs.names]
    met = {(source, receiver): count for source, receiver, count in state["met"].tolist()}
    ends = zip(pairs.sources.tolist(), pairs.receivers.tolist(), strict=True)
    return np.array([met.get((crc[source], crc[receiver]), 0) for source, receiver in ends], dtype=np.int64)


def _slots(sources: np.ndarray, receivers: np.ndarray, agents: int) -> np.ndarray:
    """The round of the tournament in which these two meet, from 0; the return matches come in the second half."""
    rounds = agents - 1 + agents % 2  # with an odd number, one rests in each round
    last = rounds if agents % 2 == 0 else -1  # the one agent that stays in its place
    low, high = np.minimum(sources, receivers), np.maximum(sources, receivers)
    meeting = np.where(high == last, 2 * low, low + high) % rounds
    forth = (sources < receivers) == ((low + high) % 2 == 0)  # in each half all teach about as often as they learn
    return np.where(forth, meeting, rounds + meeting)


def _shifts(sources: np.ndarray, receivers: np.ndarray, agents: int) -> np.ndarray:
    """The round, from 0, in which everybody learns from whoever is so many places further on."""
    return (sources - receivers - 1) % agents
