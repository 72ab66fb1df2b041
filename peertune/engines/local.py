"""The embedded engine: agents in worker processes of this machine, or (0 workers) in this process.

Calls are lazy: nothing runs before a fetch or a barrier asks for it. The coordinator's process then hands each idle
worker its next ready call. Only payload bytes cross processes. A worker that dies or outlasts the deadline fails its
own calls; at the barrier it is started again.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from peertune.engines.base import Argument, Barrier, Engine, Ref, fields_of
from peertune.engines.calls import Calls
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
from peertune.ledger import COORDINATOR, SERVER

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


class LocalEngine(Engine):
    """`groups` are the agents of each worker; `workers = 0` hosts them all in this process. `patience`: seconds that a
    call waits for the answer of another agent.
    """

    def __init__(  # noqa: PLR0913  each is one knob of the engine
        self,
        builder: str,
        spec: bytes,
        groups: Sequence[Sequence[str]],
        *,
        inline: bool = False,
        deadline: float = 600.0,
        patience: float = math.inf,
        environments: Sequence[dict[str, str]] = (),
        listener: Listener = lambda ref, done: None,
    ) -> None:
        self._builder, self._spec, self._inline = builder, spec, inline
        self._deadline, self._patience, self._listener = deadline, patience, listener
        envs = environments or [{} for _ in groups]
        self._seats = [_Seat(list(names), env) for names, env in zip(groups, envs, strict=True)]
        self._seat_of = {name: seat for seat in self._seats for name in seat.names}
        self._round = Calls.of(self._seat_of)
        self._waiting: dict[int, float] = {}  # since when a call has waited for the answer of another agent
        self.facts = []
        try:
            self.facts = self._start(self._seats)
        except BaseException:
            self.close()
            raise

    def submit(self, ref: Ref, args: Sequence[bytes | Ref]) -> None:
        self._round.submit(ref, list(args))

    def fetch(self, ref: Ref) -> bytes:
        key = (ref.id, COORDINATOR)
        state = self._round
        while key not in state.pulled:
            if error := state.unreachable(ref, COORDINATOR):
                raise error
            self._step(ref)
        return state.pulled[key]

    def answered(self, refs: Collection[Ref], enough: int, seconds: float) -> set[Ref]:
        end = time.monotonic() + seconds
        ids = {ref.id for ref in refs}
        self._step(None, 0.0)
        while len(ids & self._round.done.keys()) < min(enough, len(ids)) and time.monotonic() < end:
            self._step(None, end - time.monotonic())
        return {ref for ref in refs if ref.id in self._round.done}

    def end_round(self, busy: Collection[str] = ()) -> Barrier:
        seats = [seat for seat in self._seats if not set(seat.names) & set(busy)]
        while any(queue for name, queue in self._round.queues.items() if name not in busy) or any(
            seat.job for seat in seats
        ):
            self._step(None)
        for seat in seats:
            self._clear(seat)
        self._start([seat for seat in seats if not seat.worker])
        ended = self._round
        self._round = ended.part(busy)
        return Barrier(ended.rows, ended.lost, ended.timings)

    def close(self) -> None:
        for seat in self._seats:
            if seat.worker:
                seat.worker.stop()
                seat.worker = None

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

    def _step(self, wanted: Ref | None, seconds: float = math.inf) -> None:
        self._fail_orphans()
        self._give_up()
        for seat in self._seats:
            if seat.worker and seat.job is None and (job := self._next_job(seat, wanted)):
                self._send(seat, job)
        busy = [seat for seat in self._seats if seat.job]
        for seat in self._wait(busy, seconds) if busy else []:
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

    def _wait(self, busy: list[_Seat], seconds: float) -> list[_Seat]:
        inline = [seat for seat in busy if seat.worker and seat.worker.connection is None]
        if inline:
            return inline
        by_connection = {seat.worker.connection: seat for seat in busy if isinstance(seat.worker, Process)}
        ends = [seat.started + self._deadline for seat in busy]
        ends += [since + self._patience for since in self._waiting.values()]
        ready = wait(list(by_connection), timeout=max(0.0, min(min(ends) - time.monotonic(), seconds)))
        come = [by_connection[connection] for connection in ready]  # pyright: ignore[reportArgumentType]
        for seat in busy:
            if seat not in come and time.monotonic() - seat.started >= self._deadline:
                self._lose(seat, f"no answer within {self._deadline:g} s; its process was stopped")
        return come

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
                        and state.held(arg, name)
                    ):
                        return Release(arg, name)
        if wanted and self._seat_of[wanted.owner] is seat and state.held(wanted, COORDINATOR):
            return Release(wanted, COORDINATOR)
        heads = sorted(
            (state.queues[name][0] for name in seat.names if state.queues[name]), key=lambda head: head[0].id
        )
        for ref, args in heads:
            if all(self._settled(seat, ref.owner, arg) for arg in args):
                state.queues[ref.owner].popleft()
                return Call(ref, self._arguments(ref.owner, args))
        return None

    def _settled(self, seat: _Seat, caller: str, arg: bytes | Ref) -> bool:
        """The argument is there, or never will be."""
        if isinstance(arg, bytes) or (arg.id, caller) in self._round.pulled or self._round.unreachable(arg, caller):
            return True
        return self._seat_of[arg.owner] is seat and arg.id in self._round.done

    def _arguments(self, caller: str, args: list[bytes | Ref]) -> list[Argument]:
        pulled = {arg.id: self._round.pulled.get((arg.id, caller)) for arg in args if isinstance(arg, Ref)}
        arguments = []
        for arg in args:
            if isinstance(arg, bytes):
                arguments.append(Argument(None, arg))
                continue
            error = self._round.unreachable(arg, caller)
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
                self._round.finish(ref, reply)
                self._listener(ref, reply)
            case Release(ref=ref, caller=caller), Value(raw=raw):
                self._round.pulled[ref.id, caller] = raw
            case Release(ref=ref, caller=caller), Withheld(failure=failure):
                self._round.refused[ref.id, caller] = AgentError(*failure)

    def _fail_orphans(self) -> None:
        """Calls to agents whose process is gone fail without being run."""
        for name, queue in self._round.queues.items():
            while queue and self._seat_of[name].worker is None:
                call, _ = queue.popleft()
                self._round.fail(call, AgentError(name, call.verb, "its process was lost earlier in this round"))

    def _give_up(self) -> None:
        """Who has waited too long for an answer of another agent goes on without it. A server may take its time."""
        if math.isinf(self._patience):
            return
        state, now, waiting = self._round, time.monotonic(), self._waiting
        self._waiting = {}
        for name, seat in self._seat_of.items():
            if seat.job or not state.queues[name]:
                continue
            call, args = state.queues[name][0]
            others = [arg for arg in args if isinstance(arg, Ref) and arg.owner not in (name, SERVER)]
            late = [arg for arg in others if not self._settled(seat, name, arg)]
            if late and now - waiting.get(call.id, now) < self._patience:
                self._waiting[call.id] = waiting.get(call.id, now)
                continue
            for arg in late:
                cause = f"no answer within {self._patience:g} s, which {name} waited for it"
                state.refused[arg.id, name] = AgentError(arg.owner, arg.verb, cause)

    def _lose(self, seat: _Seat, cause: str) -> None:
        """A worker is gone: its current call fails with `cause`, and so does everything that only it knew."""
        job, seat.job = seat.job, None
        assert seat.worker
        seat.worker.stop()
        seat.worker = None
        if isinstance(job, Call):
            self._round.fail(job.ref, AgentError(job.ref.owner, job.ref.verb, cause))
        self._round.lose(seat.names)
