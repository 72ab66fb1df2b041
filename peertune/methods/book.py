"""The book of open exchanges: each takes one report, and a report that comes late waits until its time has come.

A report that fits no open exchange, or whose reward cannot be, changes nothing and stands in the ledger as `refused`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from peertune.federation import Federation
from peertune.matchmakers.base import PROTOCOLS, Pair
from peertune.methods.base import State

REWARD_LIMIT = 100.0  # nats a token: no loss falls by so much
_A_ROUND = 1 << 20  # exchanges of a round at most: an exchange's number says in which round it was agreed


@dataclass(frozen=True, slots=True)
class Report:
    """What a receiver says of exchange `number`. `kept`: it did not go back to where it was before."""

    number: int
    source: str
    receiver: str
    reward: float
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Exchange:
    """An agreed exchange. `pair` holds the context that was scored. `share`: of the texts that were of use. `due`: the
    virtual time at which the report comes.
    """

    number: int
    pair: Pair
    share: float
    due: float = math.inf
    reward: float = math.nan
    kept: bool = True

    @property
    def agreed(self) -> int:
        """The round in which it was agreed."""
        return self.number // _A_ROUND


class Book:
    """The exchanges of round `t`, and those of earlier rounds whose reports have not come yet.

    `limit`: of a reward, either way. `state` are the arrays to keep after the round; what nobody reported is given up.
    """

    def __init__(self, state: State, fed: Federation, t: int, limit: float = REWARD_LIMIT) -> None:
        self._fed, self._t, self._limit = fed, t, limit
        self._names = [agent.name for agent in fed.everyone]
        self._open = {each.number: each for each in _read(state, self._names)}
        self._next = t * _A_ROUND

    def agree(self, pair: Pair, share: float) -> int:
        """Open an exchange; its number."""
        number, self._next = self._next, self._next + 1
        self._open[number] = Exchange(number, pair, share)
        return number

    def opened(self, number: int) -> Exchange:
        """An open exchange, to `reopen` it in a later round."""
        return self._open[number]

    def reopen(self, exchange: Exchange) -> None:
        """The report of an earlier round's exchange is about to be taken: it has only come now."""
        self._open[exchange.number] = exchange

    def take(self, report: Report, due: float) -> bool:
        """Write down a report that comes at `due`; false if it is refused, and then nothing has changed."""
        cause = self._refusal(report)
        if cause:
            self._fed.record("refused", agent=report.receiver, exchange=report.number, cause=cause)
            return False
        was = self._open[report.number]
        self._open[was.number] = Exchange(was.number, was.pair, was.share, due, report.reward, report.kept)
        return True

    def come(self) -> list[Exchange]:
        """The exchanges whose reports have come by now, in the order of their coming; they are closed."""
        there = [each for each in self._open.values() if each.due <= self._fed.now]
        found = sorted(there, key=lambda each: (each.due, each.number))
        for each in found:
            del self._open[each.number]
            if self.age(each):
                body = {"source": each.pair.source, "receiver": each.pair.receiver, "reward": each.reward}
                self._fed.record("late", exchange=each.number, agreed=each.agreed, due=each.due, **body)
        return found

    def age(self, exchange: Exchange) -> int:
        """Rounds since it was agreed: 0 unless its report came late."""
        return self._t - exchange.agreed

    @property
    def state(self) -> State:
        """No arrays where nothing is awaited."""
        awaited = [each for each in self._open.values() if math.isfinite(each.due)]
        if not awaited:
            return {}
        place = {name: row for row, name in enumerate(self._names)}
        whole, numbers = [], []
        for each in awaited:
            pair = each.pair
            whole.append((each.number, place[pair.source], place[pair.receiver], PROTOCOLS.index(pair.protocol)))
            numbers.append((pair.predicted, pair.trust, pair.lead, each.share, each.due, each.reward, each.kept))
        return {
            "whole": np.array(whole, np.int64),  # [awaited, 4]
            "numbers": np.array(numbers, np.float64),  # [awaited, 7]
            "contexts": np.stack([each.pair.context for each in awaited]),  # [awaited, 64]
        }

    def _refusal(self, report: Report) -> str:
        exchange = self._open.get(report.number)
        if exchange is None:
            return f"no exchange {report.number} is open: it was never agreed, has been settled, or was given up"
        pair = exchange.pair
        if (report.source, report.receiver) != (pair.source, pair.receiver):
            return f"exchange {report.number} is another pair's, not that of {report.source} and {report.receiver}"
        if math.isfinite(exchange.due):
            return f"exchange {report.number} has been reported before"
        return implausible(report.reward, self._limit)


def implausible(reward: float, limit: float = REWARD_LIMIT) -> str:
    """Why a reward cannot be; empty if it can."""
    return "" if abs(reward) <= limit else f"a reward of {reward:g} is not a number within +-{limit:g}"  # nor is NaN


def _read(state: State, names: list[str]) -> Iterator[Exchange]:
    if not state:
        return
    for whole, numbers, context in zip(state["whole"], state["numbers"], state["contexts"], strict=True):
        number, source, receiver, protocol = whole.tolist()
        predicted, trust, lead, share, due, reward, kept = numbers.tolist()
        pair = Pair(names[source], names[receiver], context, predicted, trust, PROTOCOLS[protocol], lead)
        yield Exchange(number, pair, share, due, reward, bool(kept))
