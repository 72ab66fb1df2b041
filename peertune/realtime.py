"""Real time: a round waits no longer than it has been told to, and the engine says who has answered.

It has what `Clock` has, so that no method knows which time it is in.
"""

import math
import time
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from typing import Any

from peertune.clock import enough
from peertune.engines.base import Engine, Ref


@dataclass(frozen=True, slots=True)
class Asynchrony:
    """What the section `asynchrony` of the configuration says, key by key."""

    quorum: float = 1.0
    timeout: float | None = None


class RealClock:
    """Real time, in seconds since an arm began. `names`: agents; a server is always waited for.

    A wait goes on without those who have not answered after `timeout` seconds, and a round closes on a `quorum` of its
    reports. Who has not reported by then, or not done what it was asked, is `busy`: it is left alone until it is done,
    and takes part in the next round that begins thereafter. The last of `rounds` waits for everybody.
    """

    def __init__(self, names: Sequence[str], engine: Engine, rules: Asynchrony, rounds: int) -> None:
        self._names, self._engine, self._rules, self._rounds = tuple(names), engine, rules, rounds
        self.restore(None)

    def restore(self, state: Sequence[float] | None) -> None:
        """Return to a `state`; None: to the beginning. Nobody is at work."""
        self._zero = time.monotonic() - (state or [0.0])[0]
        self._at_work: dict[str, Ref] = {}  # each with the last call that it was asked
        self._away: set[str] = set()  # out of reach
        self._t = 0
        self._begin_nothing()

    @property
    def now(self) -> float:
        return time.monotonic() - self._zero

    @property
    def state(self) -> list[float] | None:
        return [self.now]

    @property
    def busy(self) -> Set[str]:
        """Who must be left alone between rounds, because it is still at work, or is out of reach."""
        return self._at_work.keys() | self._away

    def leave(self, name: str) -> bool:
        """Go on without an agent that is out of reach; false before the last round, and if nobody would be left."""
        if self._t == self._rounds or name not in self._names or len(self.busy | {name}) == len(self._names):
            return False
        self._away.add(name)
        return True

    def call_back(self, t: int) -> list[str]:
        """Who is out of reach, and is to be tried again before round `t`."""
        self._t, away, self._away = t, sorted(self._away), set()
        return away

    def rejoin(self, t: int) -> list[str]:
        """Who was `busy` and is done before round `t`. If all are at work it waits for the first, before the last round
        for everybody.
        """
        needed = len(self._at_work) if t == self._rounds else int(len(self.busy) == len(self._names))
        came = self._engine.answered(self._at_work.values(), needed, math.inf if needed else 0.0)
        back = [name for name, ref in self._at_work.items() if ref in came]
        for name in back:
            del self._at_work[name]
        return back

    def begin(self, t: int) -> list[str]:
        """Open round `t`; who takes part."""
        self._begin_nothing()
        self._open = True
        if t < self._rounds:
            self._patience = math.inf if self._rules.timeout is None else self._rules.timeout
            self._quorum = self._rules.quorum
        return [name for name in self._names if name not in self.busy]

    def charge(self, ref: Ref, args: Sequence[Any]) -> None:
        """A call is asked for."""
        if ref.owner in self._at_work:
            self._at_work[ref.owner] = ref
        elif ref.owner in self._names:
            self._last[ref.owner] = ref

    def wait(self, refs: Collection[Ref]) -> set[Ref]:
        """Wait until these calls have been answered, or for `timeout` seconds. Returns those that have."""
        return self._answered(refs, len(refs)) if self._open else set(refs)

    def close(self, refs: Collection[Ref]) -> set[Ref]:
        """Wait for the quorum of these calls, or for `timeout` seconds: then the round is closed. Returns those that
        have been answered.
        """
        if not self._open:
            return set(refs)
        self._closed = True
        came = self._answered(refs, enough(self._quorum, len(refs)))
        self._silent |= {ref.owner for ref in refs if ref not in came}
        return came

    def end(self) -> dict[str, Any] | None:
        """End the round: without reports it closes on its agents' work. What happened, or None between rounds."""
        if not self._open:
            return None
        absent = dict.fromkeys(self._at_work, "at work") | dict.fromkeys(sorted(self._away), "out of reach")
        asked = self._last.values()
        self._answered(asked, len(asked) if self._closed else enough(self._quorum, len(asked)))
        missed = {ref.owner for ref in self._late}
        done = self._engine.answered([self._last[name] for name in missed - self._silent], 0, 0.0)
        at_work = {name: ref for name, ref in self._last.items() if name in missed and ref not in done} | self._at_work
        self._at_work = {name: at_work[name] for name in self._names if name in at_work}
        body = {"start": self._start, "end": self.now, "unit": "s", "absent": absent}
        self._begin_nothing()
        return {**body, "missed": [name for name in self._names if name in missed], "busy": [*self._at_work]}

    def free(self, name: str) -> float:
        """When the agent will have done all that it was asked so far: who is at work, nobody knows."""
        return math.inf if name in self._at_work else 0.0

    def _answered(self, refs: Collection[Ref], needed: int) -> set[Ref]:
        """Those that have been answered, of `refs`. An agent that owes an answer from before is not waited for."""
        owing = {ref.owner for ref in self._late - self._engine.answered(self._late, 0, 0.0)}
        others = [ref for ref in refs if ref.owner not in owing and ref.owner in self._names]
        came = self._engine.answered(others, min(needed, len(others)), self._patience)
        came |= self._engine.answered([ref for ref in refs if ref.owner in owing], 0, 0.0)
        came |= {ref for ref in refs if ref.owner not in self._names}
        self._late |= {ref for ref in refs if ref not in came}
        return came

    def _begin_nothing(self) -> None:
        self._open = self._closed = False
        self._start, self._patience, self._quorum = self.now, math.inf, 1.0
        self._last: dict[str, Ref] = {}
        self._late: set[Ref] = set()  # what was asked in this round and had not been answered when it was waited for
        self._silent: set[str] = set()  # whose reports had not come when the round closed
