"""All data in one place: the upper bound, which needs what a federation exists to avoid.

Every agent's model is trained on everybody's training examples, for as many steps as any other method has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peertune.errors import MethodError
from peertune.federation import Federation
from peertune.methods.base import Method, State


@dataclass(frozen=True, slots=True)
class Centralised(Method):
    """Upper bound: local steps plus exchange steps, all on the pooled data of all agents."""

    def check(self, agents: Sequence[Mapping[str, Any]]) -> None:
        for facts in agents:
            if facts["chats"]:
                raise MethodError(
                    f"centralised needs examples that every model can read, but {facts['chats']} of {facts['name']} "
                    f"are chats in its own model's template; give them as prompt and completion, or leave this arm out"
                )

    def init(self, fed: Federation) -> State:
        return {}

    def round(self, state: State, fed: Federation, t: int) -> State:
        """Examples are pulled anew in every round, so no agent keeps any: not for another arm, nor on its disk."""
        records = {agent.name: agent.records() for agent in fed.agents}
        for receiver in fed.agents:
            for source, examples in records.items():
                if source != receiver.name:
                    receiver.pool(examples)
            receiver.fit(self.run.budget.local_steps + self.run.budget.exchange_steps)
        return state
