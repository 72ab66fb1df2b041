"""What an engine is, and what runs at the agent's side of every engine.

An engine carries calls to agents and answers back. It knows no method. A `Host` holds the agents of one process: it
runs their verbs, keeps the answers with their owners, asks the owner's release policy before any answer leaves, and
counts.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from peertune.engines.resident import Resident, write_traceback
from peertune.errors import AgentError, PayloadError, PeertuneError
from peertune.ledger import COORDINATOR, EventKind
from peertune.payloads import (
    Activations,
    Assessed,
    Claims,
    Gain,
    Gradient,
    Labelled,
    Lexicon,
    Logits,
    Payload,
    Profile,
    Receipt,
    Records,
    Scores,
    Tally,
    Texts,
    Verdicts,
    Weights,
    decode,
    encode,
    kind_of,
)


class Ref(msgspec.Struct, frozen=True):
    """A value that lives at `owner`: the answer to its call number `id` of `verb`."""

    owner: str
    id: int
    verb: str


METRICS = (
    *("train_loss", "exchange_loss", "validation_loss"),  # nats a token
    *("validation_score", "text_accuracy", "kept"),  # a share of 1
    *("exchange_updates", "flops"),  # counts of the call
    *("secrets_redacted", "personal_redacted", "copies_redacted"),  # what the guard took out of the answer
    "memory",  # bytes, at the most
)
Fields = tuple[str, str, str, str]  # of an AgentError: agent, verb, cause, code

# what each verb answers; None: nothing
ANSWERS: dict[str, type[Payload] | None] = {
    "fit": None,
    "profile": Profile,
    "draft": Claims,
    "share": Texts,
    "accept": Verdicts,
    "blend": Verdicts,
    "inspect": Verdicts,
    "learn": Gain,
    "grade": Scores,
    "records": Records,
    "pool": None,
    "adapter": Weights,
    "load": None,
    "know": Logits,
    "express": Logits,
    "soften": Verdicts,
    "distil": None,
    "spell": Lexicon,
    "assess": Assessed,
    **dict.fromkeys(("meet", "hear", "renew"), None),
    "study": Tally,
    **dict.fromkeys(("split_take", "split_join", "split_back", "split_serve"), None),
    **dict.fromkeys(("split_lower", "split_middle"), Activations),
    "split_labelled": Labelled,
    **dict.fromkeys(("split_loss", "split_middle_back", "split_score"), Gradient),
    **dict.fromkeys(("split_leave", "split_close", "split_part"), Weights),
    "checkpoint": Receipt,
    "restore": None,
}
# dropped as soon as somebody has pulled it: a round has too many, and nobody else needs them
ONCE = (Activations.kind, Labelled.kind, Gradient.kind)


class Entry(msgspec.Struct, frozen=True):
    """An event for the ledger, without its place in the run."""

    kind: EventKind
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Barrier:
    """What a round left at the agents: rows by call id, agents whose state is gone, and how long each call took."""

    rows: dict[int, list[Entry]]
    lost: list[str]
    timings: list[Entry]


class Engine(ABC):
    """Carries calls to agents. One coordinator issues all calls in one order; each agent runs its own in that order."""

    facts: list[dict[str, Any]]  # what each agent's builder says of it

    @abstractmethod
    def submit(self, ref: Ref, args: Sequence[bytes | Ref]) -> None:
        """Ask `ref.owner` to run `ref.verb`; a Ref among `args` is pulled from its owner by the receiver."""

    @abstractmethod
    def fetch(self, ref: Ref) -> bytes:
        """The answer's bytes, waiting for it; empty if the verb answers nothing. Raises `AgentError`."""

    def answered(self, refs: Collection[Ref], enough: int, seconds: float) -> set[Ref]:
        """Those of `refs` that have been answered or have failed, as soon as `enough` have, or after `seconds`.

        Here all of them: an engine where nothing runs beside the coordinator has `fetch` wait for each.
        """
        return set(refs)

    @abstractmethod
    def end_round(self, busy: Collection[str] = ()) -> Barrier:
        """Wait until all calls have run, then drop all answers. Lost agents are there again, in their first state.

        Agents that are `busy` are left at work: what they were asked goes on, and their answers stay, until the first
        barrier that does not name them; it has their rows.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop everything that the engine started."""


class Argument(msgspec.Struct, frozen=True):
    """One argument of a call: bytes, from the coordinator or the owner of `ref`, or the reason why they cannot come.

    Neither: the owner of `ref` lives at the same host.
    """

    ref: Ref | None
    raw: bytes | None
    failure: Fields | None = None


def fields_of(error: AgentError) -> Fields:
    """The error as it crosses processes: `AgentError(*fields)` makes it again."""
    return error.agent, error.verb, error.cause, error.code


@dataclass(slots=True)
class Host:
    """The agents of one process and the answers that live there."""

    agents: Mapping[str, Resident]
    _answers: dict[int, bytes | AgentError] = field(default_factory=dict)
    _verdicts: dict[int, str] = field(default_factory=dict)

    def run(self, ref: Ref, args: Sequence[Argument]) -> tuple[list[Entry], AgentError | None]:
        """Run one call; its answer or its failure becomes the value of `ref`. Returns the rows for the ledger."""
        agent = self.agents[ref.owner]
        rows: list[Entry] = []
        failure = None
        try:
            answer = self._call(ref, args, self._resolve_all(ref, args, rows))
            self._answers[ref.id] = b"" if answer is None else self._guarded(ref, answer)
        except AgentError as error:  # an argument's owner failed, or refused to release it
            failure = error
        except PeertuneError as error:
            failure = AgentError(ref.owner, ref.verb, str(error), error.code)
        except Exception as error:  # the agent's own text may be private: it stays in the agent's log
            failure = AgentError(ref.owner, ref.verb, f"{type(error).__name__} ({write_traceback(agent)})")
        rows += self._metrics(agent)
        if failure:
            self._answers[ref.id] = failure
            rows.append(failure_row(failure))
        return rows, failure

    def release(self, ref: Ref, caller: str) -> bytes:
        """The bytes of an answer, if its owner's policy lets `caller` have them. Raises `AgentError`."""
        answer = self._answers.get(ref.id)
        if answer is None:
            raise AgentError(ref.owner, ref.verb, "its answer was dropped when the round ended")
        if isinstance(answer, AgentError):
            raise answer
        if answer and caller != ref.owner and not self.agents[ref.owner].may_pull(kind_of(answer), caller):
            raise AgentError(
                ref.owner,
                ref.verb,
                f"{ref.owner} does not release {kind_of(answer)} to {caller}; see `release` in its configuration",
            )
        if answer and kind_of(answer) in ONCE:
            self._answers[ref.id] = AgentError(ref.owner, ref.verb, f"{caller} has pulled its answer; it is kept once")
        return answer

    def verdict(self, ref: Ref) -> str:
        """What the owner's guard says of an answer; empty if it was not asked."""
        return self._verdicts.get(ref.id, "")

    def clear(self) -> None:
        """Drop all answers."""
        self._answers.clear()
        self._verdicts.clear()

    def _call(self, ref: Ref, args: Sequence[Argument], values: list[Payload]) -> Payload | None:
        """What another agent sent and this one cannot use is its sender's failure, not the receiver's."""
        try:
            return self.agents[ref.owner].call(ref.verb, values)
        except PayloadError as error:
            sent = next((arg.ref for arg in args if arg.ref and arg.ref.owner != ref.owner), None)
            if sent is None:
                raise
            raise AgentError(sent.owner, sent.verb, f"{ref.owner} cannot use its answer: {error}") from None

    def _guarded(self, ref: Ref, answer: Payload) -> bytes:
        """The wire form of what the owner's guard lets go of an answer: nobody can ask for the rest."""
        guarded, self._verdicts[ref.id] = self.agents[ref.owner].outgoing(answer)
        return _encoded(guarded)

    def _metrics(self, agent: Resident) -> list[Entry]:
        """What the agent noted of itself, if it lets the coordinator have it. Nothing but named, finite numbers."""
        metrics = agent.take_metrics()
        if not agent.may_pull("metrics", COORDINATOR):
            return []
        return [
            Entry("metric", {"agent": agent.name, "name": name, "value": value})
            for name, value in metrics
            if name in METRICS and math.isfinite(value)
        ]

    def _resolve_all(self, ref: Ref, args: Sequence[Argument], rows: list[Entry]) -> list[Payload]:
        """Every argument that arrived is counted, also if another did not; then the first failure is raised."""
        values: list[Payload] = []
        failures: list[PeertuneError] = []
        for arg in args:
            try:
                values.append(self._resolve(ref, arg, rows))
            except PeertuneError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return values

    def _resolve(self, ref: Ref, arg: Argument, rows: list[Entry]) -> Payload:
        if arg.failure:
            raise AgentError(*arg.failure)
        raw = arg.raw
        if raw is None:
            assert arg.ref is not None
            raw = self.release(arg.ref, ref.owner)
        payload = read_answer(arg.ref, raw) if arg.ref else decode(raw)
        if payload is None:
            raise PayloadError("an argument is empty")
        if arg.ref and arg.ref.owner != ref.owner:
            body = {"source": arg.ref.owner, "destination": ref.owner, "payload": payload.kind, "bytes": len(raw)}
            rows.append(Entry("transfer", body))
        return payload


def failure_row(error: AgentError) -> Entry:
    return Entry("failure", {"agent": error.agent, "verb": error.verb, "cause": error.cause})


def timing(ref: Ref, seconds: tuple[float, float]) -> Entry:
    """What a call took: (wall, CPU)."""
    wall, cpu = seconds
    return Entry("metric", {"agent": ref.owner, "verb": ref.verb, "seconds": wall, "cpu_seconds": cpu})


def read_answer(ref: Ref, raw: bytes) -> Payload | None:
    """The answer that came for `ref`; None if its verb answers nothing. Raises `AgentError` naming the sender."""
    try:
        payload = decode(raw) if raw else None
    except PayloadError as error:
        raise AgentError(ref.owner, ref.verb, f"its answer is not valid: {error}") from None
    expected = ANSWERS.get(ref.verb)
    if (None if payload is None else type(payload)) is not expected:
        found, wanted = (kind.kind if kind else "nothing" for kind in (payload, expected))
        raise AgentError(ref.owner, ref.verb, f"its answer is not valid: expected {wanted}, found {found}")
    return payload


def _encoded(answer: Payload) -> bytes:
    """The wire form, refused here if nobody could read it. Raises `PayloadError`."""
    raw = encode(answer)
    kind_of(raw)
    return raw
