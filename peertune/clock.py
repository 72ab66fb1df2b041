"""Virtual time: who is there in a round, how long work takes, and when a round closes.

The unit is one local optimiser step of an ordinary agent. Nothing waits for real: calls run as they always do, and the
clock says when they would have finished and what the coordinator would have seen by then. Who is slow and who drops out
are functions of the seed, so that stragglers and dropouts are an experiment that can be repeated.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peertune.engines.base import Ref

_ANSWERS = 16  # drafts written in the time of one optimiser step
_BATCHES = 2  # of a step of a lesson: the agent's own, and texts
_STRAGGLERS, _DROPOUTS = 1, 2  # streams of random numbers

Stay = tuple[int, int | None]  # first and last round; None: to the end


@dataclass(frozen=True, slots=True)
class Availability:
    """What the section `availability` of the configuration says, key by key."""

    dropout: float = 0.0
    stragglers: float = 0.0
    slowdown: float = 10.0
    quorum: float = 1.0
    deadline: float | None = None
    present: Mapping[str, Sequence[Stay]] = field(default_factory=dict)


class Clock:
    """The virtual time of one arm. Without `availability` it stands still: everybody is there, nothing is late."""

    def __init__(self, names: Sequence[str], availability: Availability | None = None, seed: int = 0) -> None:
        self._names, self._seed = tuple(names), seed
        self._rules, self._timed = availability or Availability(), availability is not None
        self._slowness = dict.fromkeys(names, 1.0) | dict.fromkeys(self._stragglers(), self._rules.slowdown)
        self.restore(None)

    def restore(self, state: Sequence[float] | None) -> None:
        """Return to a `state`; None: to the beginning."""
        self.now, *free = state or [0.0] * (1 + len(self._names))
        self._free = dict(zip(self._names, free, strict=True))
        self._begin_nothing()

    @property
    def state(self) -> list[float] | None:
        """Between rounds: now, and when each agent will be free. None without virtual time."""
        return [self.now, *self._free.values()] if self._timed else None

    @property
    def busy(self) -> Collection[str]:
        """Who must be left alone between rounds, because it is still at work: in virtual time nobody."""
        return ()

    def rejoin(self, t: int) -> list[str]:
        """Who was `busy` and is done before round `t`."""
        return []

    def leave(self, name: str) -> bool:
        """May a run go on without an agent that is out of reach?"""
        return False

    def call_back(self, t: int) -> list[str]:
        """Who has been left behind, and is to be tried again before round `t`."""
        return []

    def begin(self, t: int) -> list[str]:
        """Open round `t`; who takes part. If all who are there are still at work, it begins when the first is free."""
        self._begin_nothing()
        if not self._timed:
            return list(self._names)
        self._open = True
        self._absent = self._missing(t)
        there = [name for name in self._names if name not in self._absent]
        self._start = self.now = max(self.now, min((self._free[name] for name in there), default=0.0))
        self._absent |= {name: "at work" for name in there if self._free[name] > self.now}
        self._asked = [name for name in there if name not in self._absent]
        self._limit = math.inf if self._rules.deadline is None else self.now + self._rules.deadline
        return list(self._asked)

    def charge(self, ref: Ref, args: Sequence[Any]) -> None:
        """A call begins when the agent is free and all arguments are there; it takes its cost times the slowness."""
        if self._open and ref.owner in self._free:  # a server is always as fast as it has to be
            needed = (self._finish.get(arg.id, 0.0) for arg in args if isinstance(arg, Ref))
            begins = max(self.now, self._free[ref.owner], *needed)
            self._free[ref.owner] = begins + self._slowness[ref.owner] * cost(ref.verb, args)
            self._finish[ref.id] = self._free[ref.owner]

    def wait(self, refs: Sequence[Ref]) -> set[Ref]:
        """Let the time pass until these calls have finished, or until the deadline. Returns those that have."""
        came = {ref for ref in refs if self.finish(ref) <= self._limit}
        self._missed += [ref.owner for ref in refs if ref not in came and ref.owner not in self._missed]
        until = max((self.finish(ref) for ref in came), default=self.now)
        self.now = max(self.now, until if len(came) == len(set(refs)) else self._limit)
        return came

    def close_on(self, times: Sequence[float]) -> None:
        """Let the time pass until the quorum of these moments, or until the deadline: then the round is closed."""
        if self._open and times:
            needed = enough(self._rules.quorum, len(times))
            self.now = max(self.now, min(sorted(times)[needed - 1], self._limit))
            self._closed = True

    def close(self, refs: Collection[Ref]) -> set[Ref]:
        """Close the round on these calls. Returns those whose answers can be seen: all, and when is their `finish`."""
        self.close_on([self.finish(ref) for ref in refs])
        return set(refs)

    def end(self) -> dict[str, Any] | None:
        """End the round: without reports it closes on its agents' work. What happened, or None without virtual time."""
        if not self._open:
            return None
        if not self._closed:
            self.close_on([self._free[name] for name in self._asked])
        body = {"start": self._start, "end": self.now, "absent": self._absent, "missed": self._missed}
        body["busy"] = [name for name in self._names if self._free[name] > self.now]
        self._begin_nothing()
        return body

    def finish(self, ref: Ref) -> float:
        """When a call of this round finishes."""
        return self._finish.get(ref.id, 0.0)

    def free(self, name: str) -> float:
        """When the agent will have done all that it was asked so far."""
        return self._free[name]

    def _begin_nothing(self) -> None:
        self._open = self._closed = False
        self._start, self._limit = self.now, math.inf
        self._absent: dict[str, str] = {}
        self._asked: list[str] = []
        self._missed: list[str] = []
        self._finish: dict[int, float] = {}  # by the call's number

    def _missing(self, t: int) -> dict[str, str]:
        """Who is not there in round `t`, and why."""
        out = {name: "dropped out" for row, name in enumerate(self._names) if self._drops_out(t, row)}
        return out | {name: "away" for name in self._names if not _stays(self._rules.present.get(name), t)}

    def _drops_out(self, t: int, row: int) -> bool:
        return np.random.default_rng([self._seed, _DROPOUTS, t, row]).random() < self._rules.dropout

    def _stragglers(self) -> list[str]:
        count = round(self._rules.stragglers * len(self._names))
        order = np.random.default_rng([self._seed, _STRAGGLERS]).permutation(len(self._names))
        return [self._names[row] for row in sorted(order[:count].tolist())]


def enough(quorum: float, count: int) -> int:
    """How many of so many are the quorum."""
    return max(1, math.ceil(quorum * count - 1e-9))


def cost(verb: str, args: Sequence[Any]) -> float:
    """Of a call at an ordinary agent, in local optimiser steps: training and writing count, all else is free."""
    match verb:
        case "fit":
            return float(args[0])
        case "split_lower" | "split_labelled":  # a whole step: the agent waits for the server's part of it
            return 1.0
        case "learn":
            return _BATCHES * float(args[1])
        case "draft":
            return len(args[0].items) / _ANSWERS
    return 0.0


def _stays(stays: Sequence[Stay] | None, t: int) -> bool:
    return stays is None or any(first <= t and (last is None or t <= last) for first, last in stays)
