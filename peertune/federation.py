"""All that a method may touch: agents by name, Refs, and what it explicitly fetches.

`agent.verb(...)` returns at once a `Ref`: the answer, still living at that agent. Passing a Ref to another agent
moves the bytes owner -> receiver; only `fetch` and `gather` bring them to the coordinator.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from peertune.clock import Clock
from peertune.engines.base import Barrier, Engine, Entry, Ref, read_answer
from peertune.errors import AgentError, MethodError
from peertune.handle import NEVER as NEVER
from peertune.handle import AgentHandle, Argument
from peertune.ledger import COORDINATOR, SERVER, EventKind
from peertune.payloads import Number, Payload, encode
from peertune.realtime import RealClock

Key = TypeVar("Key")
NO_SERVER = "this method needs a server, the run has none; give the configuration a `server: {model: ...}`"


@dataclass(frozen=True, slots=True)
class RoundLog:
    """What one round left for the ledger: `rows` in the order of the method's own text, `lost` agents, seconds a
    call.
    """

    rows: list[Entry]
    lost: list[str]
    timings: list[Entry]


@dataclass(frozen=True, slots=True)
class Late:
    """The `report` of an agent that came after round `agreed` had closed; `about`: what was noted of it then."""

    agent: str
    agreed: int
    report: Any
    about: Any


class Federation:
    """The agents of one run, over any engine.

    `everyone`: all agents. `agents`: those that take part in this round; between rounds, all that are not `busy` with
    one that has closed. `parties`: all agents, and the server if the run has one.
    """

    def __init__(
        self, engine: Engine, names: Sequence[str], clock: Clock | RealClock | None = None, server: bool = False
    ) -> None:
        self._engine = engine
        self.clock = clock or Clock(names)
        self._ids = itertools.count()
        self._log: list[Entry | Ref] = []  # a Ref stands for the rows of that call, which arrive at the barrier
        self._awaited: dict[Ref, Late] = {}  # reports of rounds that closed without them
        self._arrived: list[Late] = []
        self._t = 0
        self.failed: set[str] = set()  # agents whose calls failed since the round began
        self.everyone = [AgentHandle(name, self._submit) for name in names]
        self.agents = self.everyone
        self.parties = [*self.everyone, *([AgentHandle(SERVER, self._submit)] if server else [])]
        self._by_name = {party.name: party for party in self.parties}

    def __getitem__(self, name: str) -> AgentHandle:
        return self._by_name[name]

    @property
    def has_server(self) -> bool:
        return SERVER in self._by_name

    @property
    def server(self) -> AgentHandle:
        """The party with a model and no data. Raises `MethodError` if the run has none."""
        if not self.has_server:
            raise MethodError(NO_SERVER)
        return self._by_name[SERVER]

    @property
    def now(self) -> float:
        """Virtual time, in local optimiser steps, or real time, in seconds; else 0."""
        return self.clock.now

    def free(self, name: str) -> float:
        """The time at which that agent will have done all it was asked so far."""
        return self.clock.free(name)

    @property
    def busy(self) -> Collection[str]:
        """Agents that are still at work for a round that has closed, or out of reach: they are to be left alone."""
        return self.clock.busy

    def leave(self, name: str) -> bool:
        """Go on without an agent that is out of reach; false where everybody is needed."""
        left = self.clock.leave(name)
        self.agents = [agent for agent in self.agents if agent.name not in self.busy]
        return left

    def call_back(self, t: int) -> list[str]:
        """Who was out of reach, and is to be tried again before round `t`."""
        return self.clock.call_back(t)

    def rejoin(self, t: int) -> list[str]:
        """Who was `busy` and is done before round `t`. What they report late is there; `end_round` gives the rest."""
        back = self.clock.rejoin(t)
        refs = [ref for ref in self._awaited if ref.owner in back]
        reports = self._fetch_all({ref: ref for ref in refs})
        late = [replace(self._awaited.pop(ref), report=reports.get(ref)) for ref in refs]
        self._arrived += [each for each in late if each.report is not None]
        return back

    def begin_round(self, t: int) -> None:
        """From now to `end_round`, `agents` are those that take part in round `t`, and time passes."""
        self._t, self.agents = t, [self[name] for name in self.clock.begin(t)]

    def fetch(self, ref: Ref) -> Payload | None:
        """Bring the answer of one call to the coordinator. Raises `AgentError` if the agent could not give it, or not
        before the deadline of the round.
        """
        if not self.clock.wait([ref]):
            raise AgentError(ref.owner, ref.verb, "its answer had not come at the deadline of the round")
        return self._fetch(ref)

    def gather(self, refs: Mapping[Key, Ref]) -> dict[Key, Any]:
        """Fetch several answers. A call that failed is left out and stands in the ledger as a failure; so is one that
        has not come at the deadline of the round, which is nobody's failure.
        """
        came = self.clock.wait(list(refs.values()))
        return self._fetch_all({key: ref for key, ref in refs.items() if ref in came})

    def reports(self, refs: Mapping[Key, Ref], about: Mapping[Key, Any] | None = None) -> dict[Key, Any]:
        """As `gather`, of the answers that a round is about: it closes at their quorum or at the deadline.

        Of what comes later nothing may be used before its time. In virtual time it is there already: its time is when
        its agent is `free`. In real time it is in `late` in a later round, with what is said `about` it here.
        """
        came = self.clock.close(refs.values())
        for key, ref in refs.items():
            if ref not in came:
                self._awaited[ref] = Late(ref.owner, self._t, None, (about or {}).get(key))
        return self._fetch_all({key: ref for key, ref in refs.items() if ref in came})

    def late(self) -> list[Late]:
        """The reports for earlier rounds that have come before this one began; once."""
        arrived, self._arrived = self._arrived, []
        return arrived

    def _fetch(self, ref: Ref) -> Payload | None:
        raw = self._engine.fetch(ref)
        payload = read_answer(ref, raw)
        if payload is not None:
            self.record("transfer", source=ref.owner, destination=COORDINATOR, payload=payload.kind, bytes=len(raw))
        return payload

    def _fetch_all(self, refs: Mapping[Key, Ref]) -> dict[Key, Any]:
        answers = {}
        for key, ref in refs.items():
            try:
                answers[key] = self._fetch(ref)
            except AgentError as error:
                self.failed.add(error.agent)
                self.record("failure", agent=error.agent, verb=error.verb, cause=error.cause)
        return answers

    def record(self, kind: EventKind, **body: Any) -> None:
        """Write an event of the method's own, such as a pairing, into the ledger of this round."""
        self._log.append(Entry(kind, body))

    def end_round(self) -> RoundLog:
        """Wait until every call has run, drop all Refs, and return what happened, in the order of the calls. What
        `busy` agents do is none of it: it goes on, and belongs to a later round.
        """
        if passed := self.clock.end():
            self.record("clock", **passed)
        busy = set(self.busy)
        self.agents = [agent for agent in self.everyone if agent.name not in busy]
        barrier: Barrier = self._engine.end_round(busy)
        self.failed.clear()
        rows = [
            row
            for entry in self._log
            for row in (barrier.rows.get(entry.id, []) if isinstance(entry, Ref) else [entry])
        ]
        self._log = [entry for entry in self._log if isinstance(entry, Ref) and entry.owner in busy]
        return RoundLog(_without_repeats(rows), barrier.lost, barrier.timings)

    def _submit(self, name: str, verb: str, args: tuple[Argument, ...]) -> Ref:
        ref = Ref(name, next(self._ids), verb)
        wire: list[bytes | Ref] = []
        for arg in args:
            if isinstance(arg, Ref):
                wire.append(arg)
                continue
            payload = arg if isinstance(arg, Payload) else Number(arg)
            raw = encode(payload)
            self.record("transfer", source=COORDINATOR, destination=name, payload=payload.kind, bytes=len(raw))
            wire.append(raw)
        self._log.append(ref)
        self.clock.charge(ref, args)
        self._engine.submit(ref, wire)
        return ref


def _without_repeats(rows: list[Entry]) -> list[Entry]:
    """A failure is seen by the agent that failed and by everyone who asked for its answer; one row is enough."""
    seen: list[dict[str, Any]] = []
    kept = []
    for row in rows:
        if row.kind == "failure":
            if row.body in seen:
                continue
            seen.append(row.body)
        kept.append(row)
    return kept
