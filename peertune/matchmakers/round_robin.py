"""Everybody learns from everybody in turn: rotation without learning, hard to beat where gains are used up."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge

from peertune.matchmakers.base import Matchmaker, Pair, State, greedy_pairs


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
        names = sorted({name for pair in candidates for name in (pair.source, pair.receiver)})
        place = {name: index for index, name in enumerate(names)}
        met = {(source, receiver): count for source, receiver, count in state["met"].tolist()}
        crc = {name: zlib.crc32(name.encode()) for name in names}
        slot = _slot if self.max_students == 1 else _shift
        slots = [slot(place[pair.source], place[pair.receiver], len(names)) for pair in candidates]
        turns = [
            met.get((crc[pair.source], crc[pair.receiver]), 0) * 2 * (len(names) + 1) + turn
            for pair, turn in zip(candidates, slots, strict=True)
        ]
        return greedy_pairs(candidates, [-turn for turn in turns], k, self.max_students)

    def update(self, state: State, pair: Pair, reward: float) -> State:
        key = np.array([zlib.crc32(pair.source.encode()), zlib.crc32(pair.receiver.encode())])
        here = (state["met"][:, :2] == key).all(1)
        if not here.any():
            return {"met": np.concatenate([state["met"], [[*key, 1]]])}
        return {"met": state["met"] + np.where(here, 1, 0)[:, None] * np.array([0, 0, 1])}


def _slot(source: int, receiver: int, agents: int) -> int:
    """The round of the tournament in which these two meet, from 0; the return matches come in the second half."""
    rounds = agents - 1 + agents % 2  # with an odd number, one rests in each round
    last = rounds if agents % 2 == 0 else -1  # the one agent that stays in its place
    low, high = min(source, receiver), max(source, receiver)
    meeting = 2 * low % rounds if high == last else (low + high) % rounds
    forth = (source < receiver) == ((low + high) % 2 == 0)  # in each half everybody teaches about as often as learns
    return meeting if forth else rounds + meeting


def _shift(source: int, receiver: int, agents: int) -> int:
    """The round, from 0, in which everybody learns from whoever is so many places further on."""
    return (source - receiver - 1) % agents
