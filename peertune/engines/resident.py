"""An agent as its host sees it."""

import traceback
from pathlib import Path
from typing import Protocol

from peertune.payloads import Payload


class Resident(Protocol):
    """What a host needs of an agent."""

    name: str

    def call(self, verb: str, args: list[Payload]) -> Payload | None:
        """Run one verb. Whatever it raises becomes the answer's failure."""
        ...

    def may_pull(self, kind: str, caller: str) -> bool:
        """The release policy: may `caller` have this agent's payloads of `kind`?"""
        ...

    def outgoing(self, payload: Payload) -> tuple[Payload, str]:
        """What may leave of an answer, and the guard's verdict. Whatever it raises becomes the answer's failure."""
        ...

    def take_metrics(self) -> list[tuple[str, float]]:
        """Numbers noted since the last call, by name."""
        ...

    def log_path(self) -> Path | None:
        """Where tracebacks go; they stay with the agent."""
        ...


def write_traceback(agent: Resident) -> str:
    """Append the current traceback to the agent's own log; returns where it is."""
    path = agent.log_path()
    if path is None:
        return "no details kept"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
    except OSError as error:
        return f"the agent's own log cannot be written: {error.strerror}"
    return "details in the agent's own log"
