"""The `asynchrony` section: how long a round waits for whom, in real time. What does not fit it is refused."""

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveFloat

from peertune.config.section import Section

if TYPE_CHECKING:
    from peertune.config.schema import Config

# methods whose agents wait for each other, or for the server, within a round: nothing of it can be late
_IN_STEP = {"split", "fedmkt", "centralised"}


class AsynchronyConfig(Section):
    """When a round goes on without whom. A round closes when a `quorum` of its receivers have reported; wherever it
    waits for answers, it goes on without those who have not answered after `timeout` seconds. Whoever is late is not
    asked again before it is done, and what it says then is used. The last round waits for everybody.
    """

    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    timeout: PositiveFloat | None = None


def patience_among(config: "Config") -> float:
    """Seconds that an agent waits for the answer of another: half as long as the coordinator, whom it has to answer."""
    timeout = config.asynchrony.timeout if config.asynchrony else None
    return math.inf if timeout is None else timeout / 2


def check_asynchrony(config: "Config") -> None:
    """Raise `ValueError` naming the keys that do not fit each other."""
    rules, engine = config.asynchrony, config.engine
    if rules is None:
        return
    if config.availability is not None:
        raise ValueError("asynchrony is in real time, availability in virtual time; remove one of them")
    if engine.workers != "auto" and engine.workers < len(config.parties()):
        raise ValueError(
            f"asynchrony needs a process for each of {len(config.parties())} parties, because agents of one process "
            f"wait for each other, and engine.workers is {engine.workers}; remove it"
        )
    if rules.timeout is not None and rules.timeout >= engine.deadline:
        raise ValueError(
            f"asynchrony.timeout is {rules.timeout:g} s, but a call is stopped after engine.deadline, "
            f"{engine.deadline:g} s; lower the one or raise the other"
        )
    for name, method in config.arms().items():
        if method.type in _IN_STEP or getattr(method, "vocabularies", "") == "aligned":
            raise ValueError(
                f"{name}: the parties of {method.type} wait for each other within a round, so that none can be late; "
                "remove `asynchrony`, or this arm"
            )
