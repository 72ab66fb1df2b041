"""Scripted agents on a virtual clock, and rounds of pairs among them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peertune.clock import Availability, Clock
from peertune.engines.base import Barrier, Engine, Ref
from peertune.federation import Federation
from peertune.matchmakers.base import Matchmaker
from peertune.matchmakers.linucb import LinUCB
from peertune.methods import Budget, Knexa, Run
from peertune.methods.base import Public, State
from peertune.payloads import Change, Claims, Gain, Payload, Profile, Texts, Verdicts, decode, encode

NAMES = ["a", "b", "c", "d"]
RUN = Run(rounds=6, seed=0, budget=Budget(1, 2), transfer=(Public("x", True),) * 16)
SET = {"type": "knexa", "route": "set", "matchmaker": {"type": "linucb", "max_students": 3}, "max_pairs": 4}


@dataclass
class Scripted(Engine):
    """Agents that answer at once: `gains[agent]` in the order of its lessons (the last one stays), 0.5 by default."""

    gains: dict[str, list[Gain]] = field(default_factory=dict)
    calls: list[tuple[str, str, tuple[Any, ...]]] = field(default_factory=list)
    answers: dict[int, Payload | None] = field(default_factory=dict)

    def submit(self, ref: Ref, args: Sequence[bytes | Ref]) -> None:
        values = tuple(arg if isinstance(arg, Ref) else decode(arg) for arg in args)
        self.calls.append((ref.owner, ref.verb, values))
        self.answers[ref.id] = self._answer(ref, values)

    def _answer(self, ref: Ref, values: tuple[Any, ...]) -> Payload | None:
        match ref.verb:
            case "profile":
                place = NAMES.index(ref.owner)
                return Profile(tuple(float(np.cos(place * 7 + number)) for number in range(32)))
            case "draft":
                count = len(values[0].items)
                return Claims((100,) * count, (1,) * count, (0,) * count)
            case "share":
                return Texts(("text",) * len(values[0].items))
            case "accept" | "inspect":
                return Verdicts((1,) * len(values[0].items))
            case "learn":
                mine = self.gains.get(ref.owner, [gain(0.5)])
                return mine.pop(0) if len(mine) > 1 else mine[0]
        return None

    def fetch(self, ref: Ref) -> bytes:
        answer = self.answers[ref.id]
        return b"" if answer is None else encode(answer)

    def end_round(self, busy: Collection[str] = ()) -> Barrier:
        self.answers.clear()
        return Barrier({}, [], [])

    def close(self) -> None:
        """Nothing was started."""


def gain(reward: float, kept: bool = True) -> Gain:
    return Gain(Change(200.0, 200.0 - reward, 0.1), None, 0.0, kept)


def straggling(seed: int = 0, **rules: Any) -> tuple[Clock, str]:
    """A clock of four agents, and which of them is slow."""
    rules = {"stragglers": 0.25, "slowdown": 2.0, "quorum": 0.75} | rules
    clock = Clock(NAMES, Availability(**rules), seed)
    clock.begin(1)
    for number, name in enumerate(NAMES):
        clock.charge(Ref(name, number, "fit"), [1])
    slow = max(NAMES, key=clock.free)
    clock.restore(None)
    return clock, slow


def method(matchmaker: Matchmaker | None = None, **changes: Any) -> Knexa:
    return Knexa(
        run=RUN, matchmaker=matchmaker or LinUCB(max_students=3), route="set", max_pairs=4, byte_weight=0.0, **changes
    )


def equal(one: State, other: State) -> bool:
    """Bit for bit."""
    return {key: (value.dtype, value.shape, value.tobytes()) for key, value in one.items()} == {
        key: (value.dtype, value.shape, value.tobytes()) for key, value in other.items()
    }


def play(fed: Federation, knexa: Knexa, rounds: int, state: State | None = None) -> tuple[list[State], list[list[Any]]]:
    """The states after every round, the first one before, and each round's rows."""
    states, rows = [state or knexa.init(fed)], []
    for t in range(1, rounds + 1):
        fed.begin_round(t)
        states.append(knexa.round(states[-1], fed, t))
        rows.append(fed.end_round().rows)
    return states, rows


def of(rows: Sequence[Any], kind: str) -> list[dict[str, Any]]:
    return [row.body for row in rows if row.kind == kind]
