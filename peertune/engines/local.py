"""The embedded engine: agents in worker processes of this machine, or (0 workers) in this process.

Calls are lazy: nothing runs before a fetch or a barrier asks for it. The coordinator's process then hands each idle
worker its next ready call. Only payload bytes cross processes. A worker that dies or outlasts the deadline fails its
own calls; at the barrier it is started again.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any

from peertune.engines.base import Argument, Barrier, Engine, Entry, Ref, fields_of
from peertune.engines.process import Inline, Process
from peertune.engines.worker import (
    Call,
    Clear,
    Done,
    Message,
    Refused,
    Release,
    Start,
    Started,
    Value,
    Withheld,
)
from peertune.errors import AgentError, ConfigError, PeertuneError
from peertune.ledger import COORDINATOR

Listener = Callable[[Ref, Done], None]

DIED = "its process ended unexpectedly (killed, or out of memory)"


@dataclass(slots=True)
class _Seat:
    """One worker, its agents and what it is doing."""

    names: list[str]
    environment: dict[str, str]
    worker: Process | Inline | None = None
    job: Message | None = None
    started: float = 0.0


@dataclass(slots=True)
class _Round:
    """Everything that ends with the round."""

    queues: dict[str, deque[tuple[Ref, list[bytes | Ref]]]]
    known: set[int] = field(default_factory=set)  # calls of this round; older answers are gone
    done: dict[int, Ref] = field(default_factory=dict)
    failures: dict[int, AgentError] = field(default_factory=dict)
    refused: dict[tuple[int, str], AgentError] = field(default_factory=dict)  # answers kept from one caller
    pulled: dict[tuple[int, str], bytes] = field(default_factory=dict)
    rows: dict[int, list[Entry]] = field(default_factory=dict)
    timings: list[Entry] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


class LocalEngine(Engine):
    """`groups` are the agents of each worker; `workers = 0` hosts them all in this process."""

    def __init__(  # noqa: PLR0913  each is one knob of the engine
        self,
        builder: str,
        spec: bytes,
        groups: Sequence[Sequence[str]],
        *,
        inline: bool = False,
        deadline: float = 600.0,
        environments: Sequence[dict[str, str]] = (),
        listener: Listener = lambda ref, done: None,
    ) -> None:
        self._builder, self._spec, self._inline = builder, spec, inline
        self._deadline, self._listener = deadline, listener
        envs = environments or [{} for _ in groups]
        self._seats = [_Seat(list(names), env) for names, env in zip(groups, envs, strict=True)]
        self._seat_of = {name: seat for seat in self._seats for name in seat.names}
        self._round = self._new_round()
        self.facts = []
        try:
            self.facts = self._start(self._seats)
        except BaseException:
            self.close()
            raise

    def submit(self, ref: Ref, args: Sequence[bytes | Ref]) -> None:
        self._round.queues[ref.owner].append((ref, list(args)))
        self._round.known.add(ref.id)

    def fetch(self, ref: Ref) -> bytes:
        key = (ref.id, COORDINATOR)
        state = self._round
        while key not in state.pulled:
            if error := self._unreachable(ref, COORDINATOR):
                raise error
            self._step(ref)
        return state.pulled[key]

    def end_round(self) -> Barrier:
        while any(self._round.queues.values()) or any(seat.job for seat in self._seats):
            self._step(None)
        for seat in self._seats:
            self._clear(seat)
        self._start([seat for seat in self._seats if not seat.worker])
        ended, self._round = self._round, self._new_round()
        return Barrier(ended.rows, ended.lost, ended.timings)

    def close(self) -> None:
        for seat in self._seats:
            if seat.worker:
                seat.worker.stop()
                seat.worker = None

    def _new_round(self) -> _Round:
        return _Round({name: deque() for name in self._seat_of})

    def _start(self, seats: Sequence[_Seat]) -> list[dict[str, Any]]:
        for seat in seats:
            seat.worker = Inline() if self._inline else Process(seat.environment)
            seat.worker.send(Start(self._builder, self._spec, seat.names))
        facts = []
        for seat in seats:
            assert seat.worker
            try:
                reply = seat.worker.receive()
            except EOFError:
                raise PeertuneError(
                    f"the process of {', '.join(seat.names)} ended while it loaded its models (out of memory?)"
                ) from None
            if isinstance(reply, Refused):
                raise (
                    ConfigError(reply.message)
                    if reply.exit_code == ConfigError.exit_code
                    else PeertuneError(reply.message)
                )
            assert isinstance(reply, Started)
            facts += reply.facts
        return facts

    # One step of the schedule: give every idle worker its next job, then take one reply.

    def _step(self, wanted: Ref | None) -> None:
        self._fail_orphans()
        for seat in self._seats:
            if seat.worker and seat.job is None and (job := self._next_job(seat, wanted)):
                self._send(seat, job)
        busy = [seat for seat in self._seats if seat.job]
        for seat in self._wait(busy) if busy else []:
            self._receive(seat)

    def _send(self, seat: _Seat, job: Message) -> None:
        assert seat.worker
        seat.job, seat.started = job, time.monotonic()
        try:
            seat.worker.send(job)
        except OSError:  # it died while idle
            self._lose(seat, DIED)

    def _clear(self, seat: _Seat) -> None:
        if seat.worker:
            try:
                seat.worker.send(Clear())
                seat.worker.receive()
            except (OSError, EOFError):  # it died while idle
                self._lose(seat, DIED)

    def _wait(self, busy: list[_Seat]) -> list[_Seat]:
        inline = [seat for seat in busy if seat.worker and seat.worker.connection is None]
        if inline:
            return inline
        by_connection = {seat.worker.connection: seat for seat in busy if isinstance(seat.worker, Process)}
        remaining = min(seat.started for seat in busy) + self._deadline - time.monotonic()
        ready = wait(list(by_connection), timeout=max(0.0, remaining))
        if not ready:
            for seat in busy:
                if time.monotonic() - seat.started >= self._deadline:
                    self._lose(seat, f"no answer within {self._deadline:g} s; its process was stopped")
        return [by_connection[connection] for connection in ready]  # pyright: ignore[reportArgumentType]

    def _next_job(self, seat: _Seat, wanted: Ref | None) -> Message | None:
        """Answers that somebody waits for first, then the oldest call whose arguments are settled."""
        state = self._round
        for name, queue in state.queues.items():
            if queue:
                for arg in queue[0][1]:
                    if (
                        isinstance(arg, Ref)
                        and self._seat_of[arg.owner] is seat
                        and self._seat_of[name] is not seat
                        and self._held(arg, name)
                    ):
                        return Release(arg, name)
        if wanted and self._seat_of[wanted.owner] is seat and self._held(wanted, COORDINATOR):
            return Release(wanted, COORDINATOR)
        heads = sorted(
            (state.queues[name][0] for name in seat.names if state.queues[name]), key=lambda head: head[0].id
        )
        for ref, args in heads:
            if all(self._settled(seat, ref.owner, arg) for arg in args):
                state.queues[ref.owner].popleft()
                return Call(ref, self._arguments(ref.owner, args))
        return None

    def _held(self, ref: Ref, caller: str) -> bool:
        """The answer exists and `caller` neither has it nor was refused it."""
        state = self._round
        return ref.id in state.done and (ref.id, caller) not in state.pulled and self._unreachable(ref, caller) is None

    def _settled(self, seat: _Seat, caller: str, arg: bytes | Ref) -> bool:
        """The argument is there, or never will be."""
        if isinstance(arg, bytes) or (arg.id, caller) in self._round.pulled or self._unreachable(arg, caller):
            return True
        return self._seat_of[arg.owner] is seat and arg.id in self._round.done

    def _arguments(self, caller: str, args: list[bytes | Ref]) -> list[Argument]:
        pulled = {arg.id: self._round.pulled.get((arg.id, caller)) for arg in args if isinstance(arg, Ref)}
        arguments = []
        for arg in args:
            if isinstance(arg, bytes):
                arguments.append(Argument(None, arg))
                continue
            error = self._unreachable(arg, caller)
            arguments.append(Argument(arg, pulled[arg.id], fields_of(error) if error else None))
        for id in pulled:
            self._round.pulled.pop((id, caller), None)
        return arguments

    def _receive(self, seat: _Seat) -> None:
        assert seat.worker
        try:
            reply = seat.worker.receive()
        except EOFError:
            self._lose(seat, DIED)
            return
        job, seat.job = seat.job, None
        match job, reply:
            case Call(ref=ref), Done():
                self._finish(ref, reply)
            case Release(ref=ref, caller=caller), Value(raw=raw):
                self._round.pulled[ref.id, caller] = raw
            case Release(ref=ref, caller=caller), Withheld(failure=failure):
                self._round.refused[ref.id, caller] = AgentError(*failure)

    def _finish(self, ref: Ref, done: Done) -> None:
        state = self._round
        state.done[ref.id] = ref
        state.rows[ref.id] = done.rows
        if done.failure:
            state.failures[ref.id] = AgentError(*done.failure)
        wall, cpu = done.seconds
        state.timings.append(
            Entry("metric", {"agent": ref.owner, "verb": ref.verb, "seconds": wall, "cpu_seconds": cpu})
        )
        self._listener(ref, done)

    def _fail(self, call: Ref, error: AgentError) -> None:
        self._round.failures[call.id] = error
        self._round.done[call.id] = call
        self._round.rows[call.id] = [Entry("failure", {"agent": error.agent, "verb": error.verb, "cause": error.cause})]

    def _fail_orphans(self) -> None:
        """Calls to agents whose process is gone fail without being run."""
        for name, queue in self._round.queues.items():
            while queue and self._seat_of[name].worker is None:
                call, _ = queue.popleft()
                self._fail(call, AgentError(name, call.verb, "its process was lost earlier in this round"))

    def _unreachable(self, ref: Ref, caller: str) -> AgentError | None:
        """Why `caller` will never have this answer; None if it has it, or may yet."""
        state = self._round
        if (ref.id, caller) in state.pulled:
            return None
        if ref.id not in state.known:
            return AgentError(ref.owner, ref.verb, "its answer was dropped when the round ended")
        return state.refused.get((ref.id, caller)) or state.failures.get(ref.id)

    def _lose(self, seat: _Seat, cause: str) -> None:
        """A worker is gone: its current call fails with `cause`, and so does everything that only it knew."""
        job, seat.job = seat.job, None
        assert seat.worker
        seat.worker.stop()
        seat.worker = None
        self._round.lost += seat.names
        if isinstance(job, Call):
            self._fail(job.ref, AgentError(job.ref.owner, job.ref.verb, cause))
        for ref in self._round.done.values():
            if ref.owner in seat.names:
                self._round.failures.setdefault(
                    ref.id, AgentError(ref.owner, ref.verb, "its answer was lost with its process")
                )
