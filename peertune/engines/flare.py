"""The engine across organisations: every agent at a site of its own, reached over lines that NVIDIA FLARE carries.

Calls are collected until somebody waits, then every site is told all of its own at once. Arguments go from the site of
their owner to that of their receiver, never through here. The sites look after deadlines and lost processes; one that
is out of reach fails its own calls.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from peertune.engines.base import Argument, Barrier, Engine, Entry, Ref, fields_of
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
    Question,
    Submit,
    alive,
    ask,
)
from peertune.engines.receipts import Bag
from peertune.engines.worker import Refused, Started, Value, Withheld
from peertune.errors import AgentError, ConfigError, PayloadError, PeertuneError

Found = TypeVar("Found")
BATCH = 16 << 20  # bytes of arguments in one message, unless one call has more


@dataclass(slots=True)
class _Round:
    """Everything that ends with the round."""

    number: int
    waiting: dict[str, list[Order]]
    sent: dict[int, Ref] = field(default_factory=dict)
    fetched: dict[int, bytes] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)  # site -> cause


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
        self._pool = ThreadPoolExecutor(len(lines), thread_name_prefix="engine")
        self._receipts = Bag(lines)
        self._silent: set[str] = set()  # sites that were out of reach when last asked
        self._round = self._new_round(0)
        self.facts = [facts for each in self._everywhere(self._describe).values() for facts in each]

    def submit(self, ref: Ref, args: Sequence[bytes | Ref]) -> None:
        self._round.waiting[ref.owner].append(Order(ref, [self._argument(arg) for arg in args]))
        self._round.sent[ref.id] = ref

    def fetch(self, ref: Ref) -> bytes:
        state = self._round
        self._send()
        if ref.id not in state.sent:
            raise _dropped(ref)
        if ref.id not in state.fetched:
            answer = self._ask(ref.owner, Get(self._session, state.number, ref))
            if not isinstance(answer, Value):
                raise AgentError(*answer.failure) if isinstance(answer, Withheld) else _unreachable(ref, state)
            state.fetched[ref.id] = answer.raw
        return state.fetched[ref.id]

    def end_round(self, busy: Collection[str] = ()) -> Barrier:
        self._send()
        state = self._round
        drained = self._everywhere(lambda name: self._ask(name, Drain(self._session, state.number)))
        self._clear(state.number, drained)
        self._round = self._new_round(state.number + 1)
        rows, timings = {}, []
        for ref, done in (call for each in drained.values() if isinstance(each, Drained) for call in each.calls):
            wall, cpu = done.seconds
            rows[ref.id] = done.rows
            timings.append(Entry("metric", {"agent": ref.owner, "verb": ref.verb, "seconds": wall, "cpu_seconds": cpu}))
            self._listener(ref, done)
        for ref in state.sent.values():
            if ref.id not in rows:
                error = _unreachable(ref, state)
                rows[ref.id] = [Entry("failure", {"agent": error.agent, "verb": error.verb, "cause": error.cause})]
        lost = [name for name, each in drained.items() if not isinstance(each, Drained) or each.lost]
        return Barrier(rows, lost, timings)

    def close(self) -> None:
        self._pool.shutdown()

    def _clear(self, number: int, drained: Mapping[str, Answer | None]) -> None:
        """End the round everywhere. Receipts go on to those that they are for, later to one that is out of reach."""
        for name, each in drained.items():
            if isinstance(each, Drained):
                self._receipts.put(name, each.receipts)
        for name, done in self._everywhere(
            lambda name: self._ask(name, Clear(self._session, number, self._receipts.of(name)))
        ).items():
            if isinstance(done, Accepted):
                self._receipts.handed(name)

    def _new_round(self, number: int) -> _Round:
        return _Round(number, {name: [] for name in self._lines})

    def _describe(self, name: str) -> list[dict[str, Any]]:
        """What the site says of its agent. Raises what it would have raised here."""
        answer = self._ask(name, Get(self._session, 0, Ref(name, FACTS, "facts")))
        if isinstance(answer, Started):
            return answer.facts
        if isinstance(answer, Refused) and answer.exit_code == ConfigError.exit_code:
            raise ConfigError(answer.message)
        raise PeertuneError(self._round.unreachable[name])

    # Arguments and batches.

    def _argument(self, arg: bytes | Ref) -> Argument:
        if isinstance(arg, bytes):
            return Argument(None, arg)
        return Argument(arg, None, None if arg.id in self._round.sent else fields_of(_dropped(arg)))

    def _send(self) -> None:
        """Tell all sites what they do not know yet."""
        waiting, self._round.waiting = self._round.waiting, {name: [] for name in self._lines}
        if any(waiting.values()):
            self._everywhere(lambda name: self._send_to(name, waiting[name]))

    def _send_to(self, name: str, orders: list[Order]) -> None:
        for batch in _batches(orders):
            self._ask(name, Submit(self._session, self._round.number, batch))

    # Sites that do not answer.

    def _everywhere(self, task: Callable[[str], Found]) -> dict[str, Found]:
        return dict(zip(self._lines, self._pool.map(task, self._lines), strict=True))

    def _ask(self, name: str, question: Question) -> Answer | None:
        """The answer, or none from a site that is out of reach, which is then left alone until the round has ended."""
        out_of_reach = self._round.unreachable
        if name in out_of_reach:
            return None
        if name in self._silent and not alive(self._lines[name], self._session):
            out_of_reach[name] = f"{name} is still out of reach"
            return None
        self._silent.discard(name)
        try:
            answer = ask(self._lines[name], question, self._patience)
        except (ConnectionError, PayloadError) as error:
            out_of_reach[name] = f"{name} is out of reach: {error}"
            self._silent.add(name)
            return None
        if isinstance(answer, Refused):
            out_of_reach[name] = answer.message
        return answer


def _unreachable(ref: Ref, state: _Round) -> AgentError:
    return AgentError(ref.owner, ref.verb, state.unreachable.get(ref.owner, "its site knows nothing of this call"))


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
