"""One organisation's agent, and the four questions that others may ask: submit, get, drain, clear.

A site knows no network: whoever carries the bytes says who asks, and must know it for certain. Only the coordinator may
submit, drain and clear; an answer goes to those whom the agent's own rules let have it. The agent lives in a process of
its own, which may die or hang without taking the site with it.
"""

import math
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec

from peertune.engines import post, receipts
from peertune.engines.base import ONCE, Argument, Ref, failure_row, fields_of
from peertune.engines.child import Child
from peertune.engines.local import DIED
from peertune.engines.seal import Plain, Seal
from peertune.engines.worker import Call, Done, Refused, Release, Start, Started, Value, Withheld, refused
from peertune.engines.worker import Clear as Forget
from peertune.errors import AgentError, ConfigError, PeertuneError
from peertune.ledger import COORDINATOR, SERVER
from peertune.payloads import kind_of

LOST = "its answer was lost with its process"


@dataclass(frozen=True, slots=True)
class Home:
    """What a site's owner has set: the agent, "module:function" that builds it and what that is told, seconds that a
    call may take, environment variables of the agent's process, and seconds that a call waits for another agent.
    """

    name: str
    builder: str
    spec: bytes
    deadline: float = 600.0
    environment: Mapping[str, str] = field(default_factory=dict)
    patience: float = math.inf


@dataclass(slots=True)
class _Round:
    """Everything that ends with the round."""

    number: int
    seen: set[int] = field(default_factory=set)
    done: dict[int, tuple[Ref, Done]] = field(default_factory=dict)
    failures: dict[int, AgentError] = field(default_factory=dict)
    handed: dict[str, tuple[int, Value]] = field(default_factory=dict)  # what is kept once, by who has it
    lost: bool = False


class Site:
    """`lines`: to the other agents. `patience`: seconds that one of them may be out of reach."""

    _child: Child  # from when the first task has begun

    def __init__(
        self, home: Home, session: str, lines: Mapping[str, post.Line], seal: Seal | None = None, patience: float = 60.0
    ) -> None:
        self._home, self._session, self._lines = home, session, lines
        self._seal, self._patience = seal or Plain(), patience
        self._round, self._closed = _Round(0), False
        self._began: Started | Refused | None = None
        self._changed, self._releasing = threading.Condition(), threading.Lock()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._tasks.put(self._begin)
        threading.Thread(target=self._work, name="site", daemon=True).start()

    def answer(self, caller: str, verb: str, raw: bytes) -> bytes:
        """The answer to `caller`'s question. Never raises; what goes wrong is one line without anybody's text."""
        try:
            answer = self._answer(caller, verb, raw)
        except Exception as error:
            answer = refused(verb, error)
        return msgspec.msgpack.encode(answer)

    def close(self) -> None:
        """Stop the agent's process, now."""
        self._closed = True
        self._tasks.put(None)
        if hasattr(self, "_child"):
            self._child.stop()

    def _answer(self, caller: str, verb: str, raw: bytes) -> post.Answer:
        question: post.Question = post.read(raw, post.VERBS[verb])
        if question.session != self._session:
            raise ConfigError("this question is of another session; start the run again")
        if caller != COORDINATOR and not (isinstance(question, post.Get) and caller in self._lines):
            raise ConfigError(f"{caller} may not {verb}")
        if caller == COORDINATOR:
            self._enter(question.round)
        match question:
            case post.Submit():
                return self._submit(question)
            case post.Get():
                return self._get(caller, question)
            case post.Drain():
                return self._drain(question)
            case post.Clear():
                receipts.settle(self._seal, self._home.name, question.round, question.receipts, self._lines)
                self._enter(question.round + 1)
                return post.Accepted()

    # What the coordinator asks.

    def _submit(self, question: post.Submit) -> post.Answer:
        with self._changed:
            if question.round == self._round.number:
                new = [order for order in question.orders if order.ref.id not in self._round.seen]
                self._round.seen.update(order.ref.id for order in new)
                for order in new:
                    self._tasks.put(partial(self._serve, order, self._round))
        return post.Accepted()

    def _drain(self, question: post.Drain) -> post.Answer:
        with self._changed:
            state = self._round
            if not self._changed.wait_for(lambda: len(state.done) == len(state.seen), min(question.wait, post.LONGEST)):
                return post.Pending()
        if self._began and self._child.ended:
            self._lose()
        return post.Drained(list(state.done.values()), state.lost, receipts.signed(self._seal, self._home.name))

    def _enter(self, number: int) -> None:
        """Drop what earlier rounds have left. A process that was lost is started again."""
        with self._releasing, self._changed:
            if number <= self._round.number:
                return
            lost, self._round = self._round.lost, _Round(number)
            if lost:
                self._began = None
                self._tasks.put(self._begin)
            elif isinstance(self._began, Started):
                self._forget()
            self._changed.notify_all()

    def _forget(self) -> None:
        try:
            self._child.aside(Forget())
        except EOFError:  # it died while idle; the next call will say so
            return

    # What anybody may ask for.

    def _get(self, caller: str, question: post.Get) -> post.Answer:
        ref = question.ref
        if ref.id == post.LIFE:
            return post.Pending()
        if ref.owner != self._home.name:
            raise ConfigError(f"this is not {ref.owner}")
        if ref.id == post.FACTS:
            return self._describe(caller, question.wait)
        with self._changed:
            self._changed.wait_for(lambda: self._settled(question), min(question.wait, post.LONGEST))
            if not self._settled(question):
                return post.Pending()
            state = self._round
            if question.round < state.number:
                return _withheld(ref, "its answer was dropped when the round ended")
            if failure := state.failures.get(ref.id):
                return Withheld(fields_of(failure))
            if question.look and caller == COORDINATOR:
                return post.Accepted()
        return self._release(caller, ref, state)

    def _settled(self, question: post.Get) -> bool:
        number, state = question.round, self._round
        return number < state.number or (number == state.number and question.ref.id in state.done)

    def _describe(self, caller: str, wait: float) -> post.Answer:
        if caller != COORDINATOR:
            raise ConfigError(f"{caller} may not ask what this agent is")
        with self._changed:
            self._changed.wait_for(lambda: self._began, min(wait, post.LONGEST))
            return self._began or post.Pending()

    def _release(self, caller: str, ref: Ref, state: _Round) -> post.Answer:
        """The agent decides; the seal is closed on what it gives to another agent. The guard's verdict stays here."""
        with self._releasing:
            handed = state.handed.get(caller)
            if handed and handed[0] == ref.id:  # the answer was lost on its way
                return handed[1]
            try:
                answer = self._child.aside(Release(ref, caller))
            except EOFError:
                self._lose()
                return _withheld(ref, LOST)
            if isinstance(answer, Value) and answer.raw:
                once = kind_of(answer.raw) in ONCE
                told = caller == COORDINATOR
                answer = Value(answer.raw) if told else self._sealed(answer, ref, caller, state.number)
                if once and isinstance(answer, Value):
                    state.handed[caller] = (ref.id, answer)
            return answer

    def _sealed(self, answer: Value, ref: Ref, reader: str, number: int) -> post.Answer:
        try:
            return Value(self._seal.close(reader, number, answer.raw, ref.id, answer.verdict))
        except PeertuneError as error:
            return _withheld(ref, str(error), error.code)

    # The agent's own thread: one task after the other.

    def _work(self) -> None:
        while task := self._tasks.get():
            task()

    def _begin(self) -> None:
        home = self._home
        self._child = Child(dict(home.environment))
        if self._closed:
            self._child.stop()
        try:
            began = self._child.ask(Start(home.builder, home.spec, [home.name]))
        except EOFError:
            began = Refused("its process ended while it loaded its models (out of memory?)", 1)
        assert not isinstance(began, Done)
        with self._changed:
            self._began = began
            self._changed.notify_all()

    def _serve(self, order: post.Order, state: _Round) -> None:
        if state is not self._round:  # everybody else has gone on without it
            return
        ref = order.ref
        if isinstance(self._began, Refused):
            done = _failed(ref, self._began.message)
        elif state.lost:
            done = _failed(ref, "its process was lost earlier in this round")
        else:
            done = self._call(ref, self._arguments(order, state))
        with self._changed:
            state.done[ref.id] = (ref, done)
            if done.failure:
                state.failures[ref.id] = AgentError(*done.failure)
            self._changed.notify_all()

    def _call(self, ref: Ref, args: list[Argument]) -> Done:
        try:
            done = self._child.ask(Call(ref, args), self._home.deadline)
        except EOFError:
            cause = DIED
        except TimeoutError:
            cause = f"no answer within {self._home.deadline:g} s; its process was stopped"
        else:
            assert isinstance(done, Done)
            return done
        self._lose()
        return _failed(ref, cause)

    def _lose(self) -> None:
        """The process is gone, and with it everything that only it knew."""
        self._child.stop()
        with self._changed:
            state = self._round
            state.lost = True
            for ref, _ in state.done.values():
                state.failures.setdefault(ref.id, AgentError(ref.owner, ref.verb, LOST))

    def _arguments(self, order: post.Order, state: _Round) -> list[Argument]:
        """What the call needs of other agents, pulled from them."""
        pulled: dict[int, Argument] = {}
        for arg in order.args:
            if arg.ref and not arg.failure and arg.ref.owner != self._home.name and arg.ref.id not in pulled:
                pulled[arg.ref.id] = self._pull(arg.ref, state.number)
        return [pulled.get(arg.ref.id, arg) if arg.ref else arg for arg in order.args]

    def _pull(self, ref: Ref, number: int) -> Argument:
        """The answer from its owner, the seal opened and broken; or why it cannot come."""
        try:
            patience = math.inf if ref.owner == SERVER else self._home.patience
            answer = post.ask(self._lines[ref.owner], post.Get(self._session, number, ref), self._patience, patience)
            if isinstance(answer, post.Pending):
                answer = _withheld(ref, f"no answer within {patience:g} s, which {self._home.name} waited for it")
            if isinstance(answer, Withheld):
                return Argument(ref, None, answer.failure)
            if isinstance(answer, Value):
                raw = self._seal.open(ref.owner, number, answer.raw, ref.id) if answer.raw else answer.raw
                return Argument(ref, raw)
            cause, code = answer.message if isinstance(answer, Refused) else "its site gave another answer", "error"
        except ConnectionError as error:
            cause, code = f"{ref.owner} is out of reach: {error}", "error"
        except PeertuneError as error:
            cause, code = f"its answer is not valid: {error}", error.code
        return Argument(ref, None, fields_of(AgentError(ref.owner, ref.verb, cause, code)))


def _failed(ref: Ref, cause: str) -> Done:
    """A call that was not run to its end."""
    error = AgentError(ref.owner, ref.verb, cause)
    return Done([failure_row(error)], fields_of(error), (0.0, 0.0))


def _withheld(ref: Ref, cause: str, code: str = "error") -> Withheld:
    return Withheld(fields_of(AgentError(ref.owner, ref.verb, cause, code)))
