"""Learning from each other's texts: what KNEXA-FL and its central baselines have in common.

Every agent answers the public problems at home and says how sure it is of each draft (scalars only). Somebody decides
who gets which texts; receivers check them, keep the good ones and learn from them beside their own data (Eq. 2).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from peertune.errors import MethodError
from peertune.federation import NEVER, Federation
from peertune.matchmakers import Pair
from peertune.methods.base import Method
from peertune.methods.book import REWARD_LIMIT, implausible
from peertune.payloads import Change, Claims, Gain, Picks, Verdicts

Fraction = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, slots=True)
class Order:
    """`receiver` is to have the texts that `source` drafted for these problems."""

    source: str
    receiver: str
    problems: tuple[int, ...]


Pulled = dict[Order, tuple[int, ...]]  # for every problem of an order that arrived: was the text of use?


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMethod(Method):
    """Hyper-parameters of the exchange of texts.

    `kd_weight`: alpha of Eq. 2, rising linearly from the first number to the second over the run. `temperature`: of the
    decoding of drafts. Gates: `tested`, source and receiver run the public tests, where a problem has some, and use
    only what passes; `confident`, a source withholds what it is not sure of; `keep_best`, the best text seen for a
    problem is kept over the rounds, the agent's own included; `rollback`, an agent goes back to where it was if its
    private validation loss rose by more than this (nats a token) in an exchange.

    What an exchange brought is recorded by Eq. 3. `reward`: on the receiver's private validation loss or on its loss on
    the public probe (private where there is no probe). `gain_weight` and `byte_weight`: gamma (1 / nat) and delta
    (1 / kB).
    """

    kd_weight: tuple[Fraction, Fraction] = (0.2, 0.5)
    temperature: Annotated[float, Ge(0), Le(10)] = 0.0
    tested: bool = True
    confident: bool = False
    keep_best: bool = True
    rollback: Annotated[float, Ge(0)] | None = None
    reward: Literal["private", "probe"] = "probe"
    gain_weight: Annotated[float, Gt(0)] = 1.0
    byte_weight: Annotated[float, Ge(0)] = 1e-3

    def check(self, agents: Sequence[Any]) -> None:
        if len(agents) < 2:
            raise MethodError(
                f"this method needs at least 2 agents, found {len(agents)}; add agents or use `method: local`"
            )
        if not self.run.transfer:
            raise MethodError(
                "this method needs public prompts that agents answer for each other; set `transfer` of the task"
            )

    def draft_all(self, fed: Federation, problems: Iterable[int]) -> dict[str, Claims]:
        """Every agent answers these problems at home; what each claims of its drafts."""
        which = Picks(tuple(problems))
        refs = {a.name: a.draft(which, self.temperature, self.confident, self.tested) for a in fed.agents}
        drafted = fed.gather(refs).items()
        return {name: claims for name, claims in drafted if whole(fed, name, "draft", claims.surprise, which)}

    def pull(self, fed: Federation, orders: Sequence[Order], agreed: bool = False) -> Pulled:
        """The texts go from source to receiver, who checks them; only the verdicts come here."""
        refs = {}
        for order in orders:
            which = Picks(order.problems)
            refs[order] = fed[order.receiver].accept(which, fed[order.source].share(which), self.tested, agreed)
        return _verdicts(fed, "accept", fed.gather(refs))

    def grade(self, fed: Federation, orders: Sequence[Order]) -> Pulled:
        """As `pull`, but the receiver only grades texts for problems whose answers are known, and keeps none."""
        refs = {}
        for order in orders:
            which = Picks(order.problems)
            refs[order] = fed[order.receiver].inspect(which, fed[order.source].share(which))
        return _verdicts(fed, "inspect", fed.gather(refs))

    def learn_all(
        self, fed: Federation, receivers: Collection[str], t: int, about: Mapping[str, Any]
    ) -> dict[str, Gain]:
        """Each receiver learns from all that it has accepted, beside its own data. The round closes on their reports;
        a gain is late if its receiver is not yet free then. `about`: what to know of a receiver when its gain is late.
        """
        steps, tolerance = self.run.budget.exchange_steps, NEVER if self.rollback is None else self.rollback
        weight = self.kd_weight_at(t)
        lessons = {name: fed[name].learn(weight, steps, tolerance, self.keep_best) for name in receivers}
        return fed.reports(lessons, about)

    def reward_for(self, gain: Gain) -> float:
        """Eq. 3."""
        change = gain.probe if self.reward == "probe" and gain.probe else gain.private
        return self.gain_weight * (change.before - change.after) - self.byte_weight * gain.kilobytes

    def known(self, fed: Federation, gains: Mapping[str, Gain]) -> dict[str, Gain]:
        """Those gains that have come by now and can be."""
        return {
            name: gain
            for name, gain in gains.items()
            if fed.free(name) <= fed.now and not implausible(self.reward_for(gain), self.reward_limit)
        }

    def learn_pulled(self, fed: Federation, receivers: Collection[str], t: int, pulled: Pulled) -> dict[str, Gain]:
        """As `learn_all`, with one event for each source of each receiver; before that, of what has come late."""
        for late in fed.late():
            self._record(fed, late.about, {late.agent: late.report}, late.agreed)
        gains = self.learn_all(fed, receivers, t, dict.fromkeys(receivers, pulled))
        self._record(fed, pulled, gains)
        return gains

    def _record(self, fed: Federation, pulled: Pulled, gains: Mapping[str, Gain], agreed: int | None = None) -> None:
        for name, gain in gains.items():
            mine = {order: passed for order, passed in pulled.items() if order.receiver == name}
            if cause := implausible(self.reward_for(gain), self.reward_limit):
                fed.record("refused", agent=name, exchange=None, cause=cause)
            else:
                record_pairs(fed, mine, gain, self.reward_for(gain), agreed=agreed)

    @property
    def reward_limit(self) -> float:
        """Rewards beyond it, either way, are refused."""
        return REWARD_LIMIT * max(1.0, self.gain_weight)

    def kd_weight_at(self, t: int) -> float:
        first, last = self.kd_weight
        return first + (last - first) * (t - 1) / max(1, self.run.rounds - 1)

    def transfer(self) -> range:
        """The numbers of the problems to learn from."""
        return range(len(self.run.transfer))


def whole(fed: Federation, agent: str, verb: str, answer: Sequence[Any], asked: Picks) -> bool:
    """Is there one entry for every problem asked? If not, the agent has failed, and the ledger says so."""
    if len(answer) == len(asked.items):
        return True
    fed.failed.add(agent)
    cause = f"its answer has {len(answer)} entries for {len(asked.items)} problems"
    fed.record("failure", agent=agent, verb=verb, cause=cause)
    return False


def _verdicts(fed: Federation, verb: str, found: Mapping[Order, Verdicts]) -> Pulled:
    return {
        order: each.passed
        for order, each in found.items()
        if whole(fed, order.receiver, verb, each.passed, Picks(order.problems))
    }


def record_pairs(
    fed: Federation, pulled: Pulled, gain: Gain, reward: float, pair: Pair | None = None, agreed: int | None = None
) -> None:
    """One event for each source of a lesson; what it brought is the receiver's, of all its sources together. `pair`:
    what was agreed, where a matchmaker made pairs. `agreed`: in which earlier round. `due`: the virtual time of a gain
    that comes after the round closed.
    """
    measured = {**_measured("", gain.private), **(_measured("probe_", gain.probe) if gain.probe else {})}
    predicted = pair.predicted if pair and math.isfinite(pair.predicted) else None
    for order, passed in pulled.items():
        due = fed.free(order.receiver)
        fed.record(
            "pair",
            source=order.source,
            receiver=order.receiver,
            protocol=pair.protocol if pair else "text",
            texts=len(passed),
            useful=sum(passed),
            reward=reward,
            kept=gain.kept,
            kilobytes=gain.kilobytes,
            predicted=predicted,
            **measured,
            **({"due": due} if due > fed.now else {}),
            **({"agreed": agreed} if agreed else {}),
        )


def _measured(prefix: str, change: Change) -> dict[str, float | None]:
    """Losses before and after, the standard error of the difference, and how many of it the difference is: None if
    that is no number.
    """
    signal = (change.before - change.after) / change.error if change.error else math.inf
    named: dict[str, float | None] = {"before": change.before, "after": change.after, "error": change.error}
    named["signal_to_noise"] = signal if math.isfinite(signal) else None
    return {prefix + name: value for name, value in named.items()}
