"""True agents with something around them, for tests that hold them up or change what they say."""

from typing import Any

from peertune.engines.resident import Resident
from peertune.engines.worker import Builder


class Wrapped:
    """An agent in all that its wrapping does not change."""

    def __init__(self, agent: Resident) -> None:
        self._agent = agent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)


def wrapping(builder: Builder, kind: type[Wrapped]) -> Builder:
    """The builder of what `builder` builds, each agent wrapped."""

    def build(raw: bytes, names: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        agents, facts = builder(raw, names)
        return {name: kind(agent) for name, agent in agents.items()}, facts

    return build
