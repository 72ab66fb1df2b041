"""The engine across organisations: every agent at a site of its own, reached over lines that NVIDIA FLARE carries.

Calls are collected until somebody waits, then every site is told all of its own at once. Arguments go from the site of
their owner to that of their receiver, never through here. The sites look after deadlines and lost processes; one that
is out of reach fails its own calls. Each site has a thread of its own here, so that nobody waits for a slow one.
"""

import math
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from peertune.engines.account import MOST, checked, describes, reason
from peertune.engines.base import Argument, Barrier, Engine, Ref, failure_row, fields_of, timing
from peertune.engines.local import Listener
from peertune.engines.post import (
    FACTS,
    Accepted,
    Answer,
    Clear,
    Drain,
    Drained,
    Get,
    Line,
    Order,
    Pending,
    Question,
    Submit,
    alive,
    ask,
)
from peertune.engines.receipts import Bag
from peertune.engines.worker import Done, Refused, Started, Value, Withheld
from peertune.errors import AgentError, ConfigError, PayloadError, PeertuneError

Found = TypeVar("Found")
BATCH = 16 << 20  # bytes of arguments in one message, unless one call has more
PULSE = 2.0  # seconds after which a site's thread looks if there is more to tell


@dataclass(slots=True)
class _Visit:
    """What one site is asked in one round; a busy site's visit lasts until it is done. Shared with the site's thread:
    what changes here changes under the engine's lock.
    """

    number: int
    waiting: list[Order] = field(default_factory=list)
    sent: dict[int, Ref] = field(default_factory=dict)
    fetched: dict[int, bytes] = field(default_factory=dict)
    wanted: dict[int, Ref] = field(default_factory=dict)  # somebody waits until they have been answered
    answered: set[int] = field(default_factory=set)
    tended: bool = False  # its thread is at work
    unreachable: str = ""


class FlareEngine(Engine):
    """`lines`: to each agent's site. `session`: of this start of the run. `patience`: seconds that a site may be out of
    reach.
    """

    def __init__(
        self,
        lines: Mapping[str, Line],
        session: str,
        *,
        patience: float = 60.0,
        listener: Listener = lambda ref, done: None,
    ) -> None:
        self._lines, self._session, self._patience, self._listener = lines, session, patience, listener
        self._pool = ThreadPoolExecutor(2 * len(lines), thread_name_prefix="engine")
        self._changed, self._closed = threading.Condition(), False
        self._broken: BaseException | None = None  # what ended a site's thread
        self._receipts = Bag(lines)
        self._silent: set[str] = set()  # sites that were out of reach when last asked
        self._number = 0
        self._visits = {name: _Visit(0) for name in lines}
        self.facts = [facts for each in self._everywhere(lines, self._describe).values() for facts in each]

    def submit(self, ref: Ref, args: Sequence[bytes | Ref]) -> None:
        visit, order = self._visits[ref.owner], Order(ref, [self._argument(arg) for arg in args])
        with self._changed:
            visit.waiting.append(order)
            visit.sent[ref.id] = ref

    def fetch(self, ref: Ref) -> bytes:
        self._tend_all()
        visit = self._visits[ref.owner]
        self._until(lambda: not visit.waiting, math.inf)
        if ref.id not in visit.sent:
            raise _dropped(ref)
        if ref.id not in visit.fetched:
            answer = self._ask(ref.owner, Get(self._session, visit.number, ref))
            if not isinstance(answer, Value):
                raise reason(answer) if isinstance(answer, Withheld) else _unreachable(ref, visit)
            visit.fetched[ref.id] = answer.raw
        return visit.fetched[ref.id]

    def answered(self, refs: Collection[Ref], enough: int, seconds: float) -> set[Ref]:
        with self._changed:
            for ref in refs:
                if ref.id not in self._visits[ref.owner].answered:
                    self._visits[ref.owner].wanted[ref.id] = ref
        self._tend_all()

        def come() -> set[Ref]:
            return {ref for ref in refs if ref.id in self._visits[ref.owner].answered}

        self._until(lambda: len(come()) >= min(enough, len(refs)), seconds)
        return come()

    def end_round(self, busy: Collection[str] = ()) -> Barrier:
        self._tend_all()
        visits = {name: visit for name, visit in self._visits.items() if name not in busy}
        self._until(lambda: not any(visit.tended for visit in visits.values()), math.inf)
        drained = self._everywhere(visits, lambda name: self._ask(name, Drain(self._session, visits[name].number)))
        self._clear(drained)
        self._number += 1
        self._visits |= {name: _Visit(self._number) for name in visits}
        rows, timings = {}, []
        for ref, done in _own_calls(drained, visits):
            rows[ref.id] = done.rows
            timings.append(timing(ref, done.seconds))
            self._listener(ref, done)
        for ref in (ref for visit in visits.values() for ref in visit.sent.values()):
            if ref.id not in rows:
                rows[ref.id] = [failure_row(_unreachable(ref, visits[ref.owner]))]
        lost = [name for name, each in drained.items() if not isinstance(each, Drained) or each.lost]
        return Barrier(rows, lost, timings)

    def close(self) -> None:
        self._closed = True
        self._pool.shutdown()

    def _clear(self, drained: Mapping[str, Answer | None]) -> None:
        """End the round everywhere. Receipts go on to those that they are for, later to one that is out of reach."""
        for name, each in drained.items():
            if isinstance(each, Drained):
                self._receipts.put(name, each.receipts)

        def clear(name: str) -> Answer | None:
            return self._ask(name, Clear(self._session, self._visits[name].number, self._receipts.of(name)))

        for name, done in self._everywhere(drained, clear).items():
            if isinstance(done, Accepted):
                self._receipts.handed(name)

    def _describe(self, name: str) -> list[dict[str, Any]]:
        """What the site says of its agent. Raises what it would have raised here."""
        answer = self._ask(name, Get(self._session, 0, Ref(name, FACTS, "facts")))
        if isinstance(answer, Started) and describes(name, answer.facts):
            return answer.facts
        cause = self._visits[name].unreachable or f"the site of {name} does not describe its agent"
        if isinstance(answer, Refused) and answer.exit_code == ConfigError.exit_code:
            raise ConfigError(cause)
        raise PeertuneError(cause)

    # Arguments and batches.

    def _argument(self, arg: bytes | Ref) -> Argument:
        if isinstance(arg, bytes):
            return Argument(None, arg)
        return Argument(arg, None, None if arg.id in self._visits[arg.owner].sent else fields_of(_dropped(arg)))

    def _send_to(self, name: str, orders: list[Order]) -> None:
        for batch in _batches(orders):
            self._ask(name, Submit(self._session, self._visits[name].number, batch))

    # A thread for each site, while there is something to tell it or to wait for.

    def _tend_all(self) -> None:
        """Let all sites be told what they do not know yet, and asked what is wanted of them."""
        with self._changed:
            for name, visit in self._visits.items():
                if not visit.tended and (visit.waiting or visit.wanted):
                    visit.tended = True
                    self._pool.submit(self._tend, name, visit)

    def _tend(self, name: str, visit: _Visit) -> None:
        try:
            while self._tend_once(name, visit):
                pass
        except BaseException as error:  # whoever waits for this site raises it
            with self._changed:
                self._broken = error
                self._changed.notify_all()

    def _tend_once(self, name: str, visit: _Visit) -> bool:
        """Is there anything left to do?"""
        with self._changed:
            orders, ref = list(visit.waiting), next(iter(visit.wanted.values()), None)
            visit.tended = not self._closed and bool(orders or ref)
            self._changed.notify_all()
        if not visit.tended:
            return False
        if orders:
            self._send_to(name, orders)
            with self._changed:
                del visit.waiting[: len(orders)]
        elif ref:
            self._look(name, visit, ref)
        return True

    def _look(self, name: str, visit: _Visit, ref: Ref) -> None:
        """Has it been answered? A site that is out of reach has failed."""
        found = self._ask(name, Get(self._session, visit.number, ref, look=True), PULSE)
        if not isinstance(found, Pending):
            with self._changed:
                visit.answered.add(ref.id)
                del visit.wanted[ref.id]

    def _until(self, there: Callable[[], bool], seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._broken or there(), None if math.isinf(seconds) else seconds)
        if self._broken:
            raise self._broken

    # Sites that do not answer.

    def _everywhere(self, names: Iterable[str], task: Callable[[str], Found]) -> dict[str, Found]:
        return dict(zip(names, self._pool.map(task, names), strict=True))

    def _ask(self, name: str, question: Question, seconds: float = math.inf) -> Answer | None:
        """The answer, or none from a site that is out of reach, which is then left alone until the round has ended."""
        visit = self._visits[name]
        if visit.unreachable:
            return None
        if name in self._silent and not alive(self._lines[name], self._session):
            visit.unreachable = f"{name} is still out of reach"
            return None
        self._silent.discard(name)
        try:
            answer = ask(self._lines[name], question, self._patience, seconds)
        except (ConnectionError, PayloadError) as error:
            visit.unreachable = f"{name} is out of reach: {error}"
            self._silent.add(name)
            return None
        if isinstance(answer, Refused):
            visit.unreachable = f"{name}: {answer.message[:MOST]}"
        return answer


def _own_calls(drained: Mapping[str, Answer | None], visits: Mapping[str, _Visit]) -> Iterator[tuple[Ref, Done]]:
    """What came of all calls. A site speaks for those that it was asked, for nobody else's, and not for the run."""
    for name, each in drained.items():
        if isinstance(each, Drained):
            for ref, done in each.calls:
                if visits[name].sent.get(ref.id) == ref:
                    yield ref, checked(ref, done)


def _unreachable(ref: Ref, visit: _Visit) -> AgentError:
    return AgentError(ref.owner, ref.verb, visit.unreachable or "its site knows nothing of this call")


def _dropped(ref: Ref) -> AgentError:
    return AgentError(ref.owner, ref.verb, "its answer was dropped when the round ended")


def _batches(orders: Sequence[Order]) -> Iterator[list[Order]]:
    """The orders in messages of no more than `BATCH` bytes, or of one call."""
    batch: list[Order] = []
    size = 0
    for order in orders:
        weight = sum(len(arg.raw) for arg in order.args if arg.raw)
        if batch and size + weight > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(order)
        size += weight
    if batch:
        yield batch
