"""What the local engine knows of the calls between two barriers: which wait, which have run, who has which answer."""

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from peertune.engines.base import Entry, Ref, failure_row, timing
from peertune.engines.worker import Done
from peertune.errors import AgentError

Value = TypeVar("Value")
Queue = deque[tuple[Ref, list[bytes | Ref]]]


@dataclass(slots=True)
class Calls:
    """Ends with the round, but for what busy agents have of it."""

    queues: dict[str, Queue]
    known: dict[int, Ref] = field(default_factory=dict)  # calls of this round; older answers are gone
    done: dict[int, Ref] = field(default_factory=dict)
    failures: dict[int, AgentError] = field(default_factory=dict)
    refused: dict[tuple[int, str], AgentError] = field(default_factory=dict)  # answers kept from one caller
    pulled: dict[tuple[int, str], bytes] = field(default_factory=dict)
    rows: dict[int, list[Entry]] = field(default_factory=dict)
    timings: list[Entry] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, names: Iterable[str]) -> "Calls":
        return cls({name: deque() for name in names})

    def submit(self, ref: Ref, args: list[bytes | Ref]) -> None:
        self.queues[ref.owner].append((ref, args))
        self.known[ref.id] = ref

    def finish(self, ref: Ref, done: Done) -> None:
        self.done[ref.id] = ref
        self.rows[ref.id] = done.rows
        if done.failure:
            self.failures[ref.id] = AgentError(*done.failure)
        self.timings.append(timing(ref, done.seconds))

    def fail(self, call: Ref, error: AgentError) -> None:
        self.failures[call.id] = error
        self.done[call.id] = call
        self.rows[call.id] = [failure_row(error)]

    def lose(self, names: Collection[str]) -> None:
        """The process of these agents is gone, and with it everything that only it knew."""
        self.lost += names
        for ref in self.done.values():
            if ref.owner in names:
                lost = AgentError(ref.owner, ref.verb, "its answer was lost with its process")
                self.failures.setdefault(ref.id, lost)

    def unreachable(self, ref: Ref, caller: str) -> AgentError | None:
        """Why `caller` will never have this answer; None if it has it, or may yet."""
        if (ref.id, caller) in self.pulled:
            return None
        if ref.id not in self.known:
            return AgentError(ref.owner, ref.verb, "its answer was dropped when the round ended")
        return self.refused.get((ref.id, caller)) or self.failures.get(ref.id)

    def held(self, ref: Ref, caller: str) -> bool:
        """The answer exists and `caller` neither has it nor was refused it."""
        return ref.id in self.done and (ref.id, caller) not in self.pulled and self.unreachable(ref, caller) is None

    def part(self, busy: Collection[str]) -> "Calls":
        """Take out what belongs to these agents: their calls, and the answers that they hold or have pulled."""
        theirs = {id for id, ref in self.known.items() if ref.owner in busy}
        kept = Calls.of(self.queues)
        kept.known, kept.done = _taken(self.known, theirs), _taken(self.done, theirs)
        kept.failures, kept.rows = _taken(self.failures, theirs), _taken(self.rows, theirs)
        kept.refused = {key: error for key, error in self.refused.items() if key[0] in theirs or key[1] in busy}
        kept.pulled = {key: raw for key, raw in self.pulled.items() if key[0] in theirs or key[1] in busy}
        for name in busy:
            kept.queues[name], self.queues[name] = self.queues[name], deque()
        kept.lost = [name for name in self.lost if name in busy]
        self.lost = [name for name in self.lost if name not in busy]
        return kept


def _taken(values: dict[int, Value], ids: Collection[int]) -> dict[int, Value]:
    return {id: values.pop(id) for id in ids if id in values}
