"""All that a method may touch: agents by name, Refs, and what it explicitly fetches.

`agent.verb(...)` returns at once a `Ref`: the answer, still living at that agent. Passing a Ref to another agent
moves the bytes owner -> receiver; only `fetch` and `gather` bring them to the coordinator.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from peertune.clock import Clock
from peertune.engines.base import Barrier, Engine, Entry, Ref, read_answer
from peertune.errors import AgentError, MethodError
from peertune.ledger import COORDINATOR, SERVER, EventKind
from peertune.mutual import MutualCalls
from peertune.payloads import (
    ALL_FACTORS,
    Distillation,
    Factors,
    Logits,
    Number,
    Payload,
    Picks,
    Receipt,
    Records,
    Texts,
    Weights,
    encode,
)
from peertune.splitting import SplitCalls

Key = TypeVar("Key")
Argument = Payload | Ref | int | float
NO_SERVER = "this method needs a server, the run has none; give the configuration a `server: {model: ...}`"
NEVER = 1e9  # nats a token: no loss rises by so much


class AgentHandle(MutualCalls, SplitCalls):
    """One agent, seen from the coordinator. Each method asks it to run the verb of that name and returns a `Ref`."""

    def __init__(self, federation: "Federation", name: str) -> None:
        self._federation, self.name = federation, name

    def fit(self, steps: int, factors: Factors = ALL_FACTORS, proximal: float = 0.0) -> Ref:
        """Train the adapter for `steps` optimiser steps on the agent's own data. Answer: none.

        `factors`: only these of it. `proximal`: FedProx's mu; mu / 2 ||theta - theta_0||^2 is part of the loss.
        """
        return self._call("fit", steps, *((factors, proximal) if proximal or factors != ALL_FACTORS else ()))

    def records(self) -> Ref:
        """Answer: `Records`, the agent's training examples."""
        return self._call("records")

    def pool(self, records: Records | Ref) -> Ref:
        """Put others' examples beside the agent's own, for its next `fit` only. Answer: none."""
        return self._call("pool", records)

    def profile(self) -> Ref:
        """Answer: `Profile`."""
        return self._call("profile")

    def draft(self, which: Picks, temperature: float = 0.0, confident: bool = False, tested: bool = False) -> Ref:
        """Answer public problems at home, and keep the texts there. Answer: `Claims`, scalars only."""
        return self._call("draft", which, temperature, int(confident), int(tested))

    def share(self, which: Picks) -> Ref:
        """The texts that the agent drafted for these problems in this round. Answer: `Texts`."""
        return self._call("share", which)

    def accept(self, which: Picks, texts: Texts | Ref, tested: bool = False, agreed: bool = False) -> Ref:
        """Keep texts to learn from, after the public tests if `tested`; what cannot be tested only if it says what
        another text of the round says, if `agreed`. Answer: `Verdicts`.
        """
        return self._call("accept", which, texts, int(tested), *((1,) if agreed else ()))

    def blend(self, adapter: Weights | Ref) -> Ref:
        """Take the adapter of an agent with the same base; `learn` starts by moving towards it. Answer: `Verdicts`."""
        return self._call("blend", adapter)

    def express(self, which: Picks, k: int) -> Ref:
        """What the agent expected at each token of the texts that it shares. Answer: `Logits`."""
        return self._call("express", which, k)

    def soften(self, which: Picks, logits: Logits | Ref) -> Ref:
        """Learn the texts just accepted with what their author expected, once. Answer: `Verdicts`."""
        return self._call("soften", which, logits)

    def inspect(self, which: Picks, texts: Texts | Ref) -> Ref:
        """Grade texts for public problems, and keep nothing. Answer: `Verdicts`."""
        return self._call("inspect", which, texts)

    def learn(self, kd_weight: float, steps: int, tolerance: float = NEVER, keep: bool = False) -> Ref:
        """Train `steps` steps on own data, weighted 1 - `kd_weight`, and on the accepted texts, weighted `kd_weight`;
        go back if the private validation loss rises by more than `tolerance`. Answer: `Gain`.
        """
        return self._call("learn", kd_weight, steps, tolerance, int(keep))

    def know(self, which: Picks, k: int = 0, mass: float = 1.0, bits: int = 16) -> Ref:
        """What the agent expects at every token of the answers of these public problems, or of their class. The `k`
        most probable (0: all), of them no more than have `mass` together, in `bits` a number. Answer: `Logits`.
        """
        return self._call("know", which, k, mass, bits)

    def distil(self, which: Picks, logits: Logits | Ref, lesson: Distillation) -> Ref:
        """Learn from logits for these public problems, beside own data. Answer: none."""
        return self._call("distil", which, logits, lesson)

    def grade(self, samples: int = 1, temperature: float = 0.0) -> Ref:
        """Complete and grade the test problems. Answer: `Scores`. Changes nothing in the agent."""
        return self._call("grade", samples, temperature)

    def adapter(self, factors: Factors = ALL_FACTORS) -> Ref:
        """Answer: `Weights`, the agent's adapter, or these factors of it."""
        return self._call("adapter", *(() if factors == ALL_FACTORS else (factors,)))

    def load(self, adapter: Weights | Ref, since: int = 0, upto: int = 0) -> Ref:
        """Replace the agent's adapter, or what came of it. Answer: none.

        An adapter that all share has versions. `upto`: this one's. `since`: what came is the change after that version,
        which the agent must have, or fails; 0: it builds on nothing.
        """
        return self._call("load", adapter, *((since, upto) if upto else ()))

    def checkpoint(self, keep: Texts) -> Ref:
        """Store the agent's state on its own disk; drop stored states other than this and `keep`. Answer: `Receipt`."""
        return self._call("checkpoint", keep)

    def restore(self, receipt: Receipt) -> Ref:
        """Return to a stored state. Answer: none."""
        return self._call("restore", receipt)

    def _call(self, verb: str, *args: Argument) -> Ref:
        return self._federation._submit(self.name, verb, args)


@dataclass(frozen=True, slots=True)
class RoundLog:
    """What one round left for the ledger: `rows` in the order of the method's own text, `lost` agents, seconds a
    call.
    """

    rows: list[Entry]
    lost: list[str]
    timings: list[Entry]


class Federation:
    """The agents of one run, over any engine.

    `everyone`: all agents. `agents`: those that take part in this round; between rounds, all. `parties`: all agents,
    and the server if the run has one.
    """

    def __init__(self, engine: Engine, names: Sequence[str], clock: Clock | None = None, server: bool = False) -> None:
        self._engine = engine
        self.clock = clock or Clock(names)
        self._ids = itertools.count()
        self._log: list[
            Entry | int
        ] = []  # an int stands for the rows of the call of that id, which arrive at the barrier
        self.failed: set[str] = set()  # agents whose calls failed since the round began
        self.everyone = [AgentHandle(self, name) for name in names]
        self.agents = self.everyone
        self.parties = [*self.everyone, *([AgentHandle(self, SERVER)] if server else [])]
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
        """Virtual time, in local optimiser steps; 0 in a run without `availability`."""
        return self.clock.now

    def free(self, name: str) -> float:
        """The virtual time at which that agent will have done all it was asked so far."""
        return self.clock.free(name)

    def begin_round(self, t: int) -> None:
        """From now to `end_round`, `agents` are those that take part in round `t`, and virtual time passes."""
        self.agents = [self[name] for name in self.clock.begin(t)]

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

    def reports(self, refs: Mapping[Key, Ref]) -> dict[Key, Any]:
        """As `gather`, of the answers that a round is about: it closes at their quorum or at the deadline. Those that
        come later are there too. They must not be used before `now` has reached the time when their agent is `free`.
        """
        self.clock.close_on([self.clock.finish(ref) for ref in refs.values()])
        return self._fetch_all(refs)

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
        """Wait until every call has run, drop all Refs, and return what happened, in the order of the calls."""
        if passed := self.clock.end():
            self.record("clock", **passed)
        self.agents = self.everyone
        barrier: Barrier = self._engine.end_round()
        self.failed.clear()
        rows = [
            row for entry in self._log for row in (barrier.rows.get(entry, []) if isinstance(entry, int) else [entry])
        ]
        self._log = []
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
        self._log.append(ref.id)
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
