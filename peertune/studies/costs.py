"""What an arm has cost, read off its events: bytes by who sends what to whom, FLOPs, updates, memory, seconds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from peertune.ledger import COORDINATOR, SERVER, Event

AGENT = "agent"
TEXTS = "texts"  # the kind of payload that carries answers
UPDATES, FLOPS, MEMORY = "exchange_updates", "flops", "memory"  # names of metric events
OWN = ("init", "round")  # phases of the method's own work; what deploying, grading and storing cost stands apart
APART = ("grade", "checkpoint", "restore")  # verbs of the latter

Flow = tuple[str, str, str]  # kind of payload, and between which kinds of party


@dataclass(slots=True)
class Costs:
    """Sums of one arm up to the end of a round; a client is an agent, not the server.

    `flows`: bytes. `flops`: of clients. `updates`: optimiser steps on exchanges. `memory`: of the largest training step
    of a client, in bytes; None if nobody says. `seconds`: of the clients' calls, which may run side by side.
    `trips`: round trips, how often a client sent something after it had been sent something, or had begun the round.
    `apart_bytes`, `apart_flops` (of clients): by phase, and in no other sum.
    """

    flows: Counter[Flow] = field(default_factory=Counter)
    flops: float = 0.0
    server_flops: float = 0.0
    updates: float = 0.0
    memory: float | None = None
    seconds: float = 0.0
    trips: int = 0
    apart_bytes: Counter[str] = field(default_factory=Counter)
    apart_flops: Counter[str] = field(default_factory=Counter)

    @property
    def bytes(self) -> int:
        """Each transfer counts once."""
        return sum(self.flows.values())

    @property
    def up(self) -> int:
        """What clients sent: to the coordinator, the server and each other."""
        return sum(count for (_, source, _), count in self.flows.items() if source == AGENT)

    @property
    def down(self) -> int:
        """What clients received, from whomever."""
        return sum(count for (_, _, destination), count in self.flows.items() if destination == AGENT)

    @property
    def server_bytes(self) -> int:
        """What the server sent or received."""
        return sum(count for (_, *ends), count in self.flows.items() if SERVER in ends)

    @property
    def text_bytes(self) -> int:
        return sum(count for (payload, *_), count in self.flows.items() if payload == TEXTS)

    def totals(self) -> dict[str, float]:
        """Everything that adds up, by name."""
        names = ("bytes", "up", "down", "server_bytes", "flops", "server_flops", "updates", "seconds")
        apart = (("bytes", self.apart_bytes), ("flops", self.apart_flops))
        return {
            **{name: getattr(self, name) for name in names},
            "client_trips": self.trips,
            **{f"{phase}_{what}": counts[phase] for what, counts in apart for phase in ("deploy", "evaluate")},
        }


def costs_by_round(events: Sequence[Event], calls: Iterable[Mapping[str, Any]]) -> dict[int, Costs]:
    """round -> what one arm has cost up to its end. `calls`: bodies of the arm's `call` facts."""
    seconds: Counter[int] = Counter()
    for call in calls:
        if call["agent"] != SERVER and call["verb"] not in APART:
            seconds[call["round"]] += call["seconds"]
    found: dict[int, Costs] = {}
    total, sending = Costs(), set[str]()
    for event in events:
        if event.round not in found:  # rounds come in order
            total = found[event.round] = deepcopy(total)
            total.seconds += seconds[event.round]
            sending.clear()
        if event.kind == "transfer":
            _add_transfer(total, event)
            _add_trip(total, event, sending)
        elif event.kind == "metric":
            _add_metric(total, event)
    return found


def _add_transfer(costs: Costs, event: Event) -> None:
    body = event.body
    if event.phase in OWN:
        costs.flows[body["payload"], _party(body["source"]), _party(body["destination"])] += body["bytes"]
    else:
        costs.apart_bytes[event.phase] += body["bytes"]


def _add_trip(costs: Costs, event: Event, sending: set[str]) -> None:
    """`sending`: the clients that have sent something since they were last sent something."""
    source, destination = event.body["source"], event.body["destination"]
    if event.phase in OWN and _party(source) == AGENT:
        costs.trips += source not in sending
        sending.add(source)
    sending.discard(destination)


def _party(name: str) -> str:
    return name if name in (COORDINATOR, SERVER) else AGENT


def _add_metric(costs: Costs, event: Event) -> None:
    name, value, own = event.body["name"], event.body["value"], event.phase in OWN
    if event.body["agent"] == SERVER:
        costs.server_flops += value if name == FLOPS and own else 0
    elif name == UPDATES:
        costs.updates += value
    elif name == FLOPS and own:
        costs.flops += value
    elif name == FLOPS:
        costs.apart_flops[event.phase] += value
    elif name == MEMORY and own:
        costs.memory = max(value, costs.memory or 0)
