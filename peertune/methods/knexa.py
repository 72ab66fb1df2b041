"""KNEXA-FL, Alg. 1: who should learn from whom is itself learned, by a matchmaker that never sees a model.

Phase 1, local fine-tuning and profiles; phase 2, directed disjoint pairs; phase 3, the receiver distils the
source's text, which travels source -> receiver (Eq. 2); phase 4, the receiver's measured gain rewards the pair (Eq. 3).
The coordinator receives profiles and gains, nothing else. docs/methods.md lists where this departs from the paper.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

from peertune.errors import MethodError
from peertune.federation import Federation, Ref
from peertune.matchmakers import Matchmaker, Pair, directed_pairs
from peertune.methods.base import Method, Run, State
from peertune.payloads import Gain, Texts

Fraction = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, slots=True)
class Knexa(Method):
    """Agents learn from each other's text, paired by a learned matchmaker.

    `kd_weight`: alpha of Eq. 2, rising linearly from the first number to the second over the run. `gain_weight` and
    `byte_weight`: gamma (1 / nat) and delta (1 / kB) of Eq. 3. `temperature`: of the source's decoding. `max_pairs`:
    K_p, half the agents by default.
    """

    run: Run
    matchmaker: Matchmaker
    kd_weight: tuple[Fraction, Fraction] = (0.2, 0.5)
    gain_weight: Annotated[float, Gt(0)] = 1.0
    byte_weight: Annotated[float, Ge(0)] = 1e-3
    temperature: Annotated[float, Ge(0), Le(10)] = 0.0
    max_pairs: Annotated[int, Gt(0)] | None = None

    def check(self, agents: Sequence[Mapping[str, Any]]) -> None:
        if len(agents) < 2:
            raise MethodError(
                f"knexa pairs agents and needs at least 2, found {len(agents)}; add agents or use `method: local`"
            )
        if not self.run.transfer:
            raise MethodError(
                "knexa needs public prompts that agents answer for each other; set `transfer` of the task"
            )

    def init(self, fed: Federation) -> State:
        return self.matchmaker.init(self.run.seed)

    def round(self, state: State, fed: Federation, t: int) -> State:
        prompts = self.run.prompts()
        for agent in fed.agents:
            agent.fit(self.run.budget.local_steps)
        profiles = fed.gather({agent.name: agent.profile() for agent in fed.agents})
        pairs = self.matchmaker.match(state, directed_pairs(profiles), self.max_pairs or len(fed.agents) // 2)
        gains = fed.gather({pair: self._exchange(fed, pair, prompts, t) for pair in pairs})
        for pair, gain in gains.items():
            reward = self.gain_weight * (gain.before - gain.after) - self.byte_weight * gain.kilobytes
            state = self.matchmaker.update(state, pair, reward)
            _record(fed, pair, gain, reward)
        return state

    def _exchange(self, fed: Federation, pair: Pair, prompts: Texts, t: int) -> Ref:
        """Source answers, receiver learns: the text never passes the coordinator."""
        answers = fed[pair.source].answer(prompts, self.temperature)
        return fed[pair.receiver].learn(prompts, answers, self._kd_weight_at(t), self.run.budget.exchange_steps)

    def _kd_weight_at(self, t: int) -> float:
        first, last = self.kd_weight
        return first + (last - first) * (t - 1) / max(1, self.run.rounds - 1)


def _record(fed: Federation, pair: Pair, gain: Gain, reward: float) -> None:
    predicted = None if math.isnan(pair.predicted) else pair.predicted
    fed.record(
        "pair",
        source=pair.source,
        receiver=pair.receiver,
        predicted=predicted,
        reward=reward,
        before=gain.before,
        after=gain.after,
        kilobytes=gain.kilobytes,
    )
