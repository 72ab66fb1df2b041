"""Real agents whose texts hold canaries; lives in the agent's own process."""

from typing import Any

from canaries import CANARIES

from peertune.deploy import build as real
from peertune.engines.resident import Resident
from peertune.payloads import Payload, Texts

EXCHANGED, PRIVATE = CANARIES[:25], CANARIES[25:]


class Planted:
    """An agent, and canaries at the end of each text that it shares."""

    def __init__(self, agent: Resident) -> None:
        self._agent = agent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)

    def call(self, verb: str, args: list[Payload]) -> Payload | None:
        answer = self._agent.call(verb, args)
        if verb == "share" and isinstance(answer, Texts):
            return Texts(tuple(" ".join([text, *EXCHANGED]) for text in answer.items))
        return answer


def build(raw: bytes, names: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    agents, facts = real.build(raw, names)
    return {name: Planted(agent) for name, agent in agents.items()}, facts
