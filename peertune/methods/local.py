"""No collaboration: what each agent reaches alone, with all the optimiser steps that an exchanging agent has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peertune.federation import Federation
from peertune.methods.base import Method, State


@dataclass(frozen=True, slots=True)
class Local(Method):
    """No collaboration: local steps plus exchange steps, all on the agent's own data."""

    def check(self, agents: Sequence[Mapping[str, Any]]) -> None:
        """Any agents will do."""

    def init(self, fed: Federation) -> State:
        return {}

    def round(self, state: State, fed: Federation, t: int) -> State:
        for agent in fed.agents:
            agent.fit(self.run.budget.local_steps + self.run.budget.exchange_steps)
        return state
