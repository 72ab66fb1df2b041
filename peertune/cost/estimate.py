"""What a method will cost, as a value: bytes by payload and link, FLOPs and memory by party, round trips."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from peertune.cost.parties import Party
from peertune.ledger import COORDINATOR, SERVER
from peertune.lm.flops import Costs, Pass
from peertune.payloads import Number, Payload, encode

Key = TypeVar("Key")
Flow = tuple[str, str, str]  # kind of payload, source, destination


@dataclass(slots=True)
class Round:
    """What one round costs.

    `flows`: bytes, framing included. `flops`: by party; the coordinator's are those of its own arithmetic. `memory`:
    bytes of the largest training step, by party. `trips`: how many answers are waited for, one after the other.
    `in_turn`: agents send one after the other.
    """

    flows: Counter[Flow] = field(default_factory=Counter)
    flops: Counter[str] = field(default_factory=Counter)
    memory: dict[str, int] = field(default_factory=dict)
    trips: int = 0
    in_turn: bool = False

    def send(self, payload: str, source: str, destination: str, size: int) -> None:
        """`size` bytes of one kind of payload move over one link."""
        self.flows[payload, source, destination] += size

    def ask(self, name: str, *arguments: Payload | float) -> None:
        """The coordinator calls a verb with these arguments."""
        for argument in arguments:
            payload = argument if isinstance(argument, Payload) else Number(argument)
            self.send(payload.kind, COORDINATOR, name, len(encode(payload)))

    def answer(self, name: str, payload: Payload) -> None:
        """The coordinator fetches an answer of that size."""
        self.send(payload.kind, name, COORDINATOR, len(encode(payload)))

    def compute(self, party: Party, passes: Iterable[Pass], costs: Costs | None = None) -> None:
        """Batches go through a party's model, those of training one after the other. `costs`: where not its usual."""
        for one in passes:
            self.flops[party.name] += (costs or party.costs).flops(one)
            if one.kind == "training" and (one.start, one.stop) == (0, None):
                self.hold(party, (costs or party.costs).memory(one))

    def hold(self, party: Party, needed: int) -> None:
        """So many bytes are in a party's memory in training."""
        self.memory[party.name] = max(needed, self.memory.get(party.name, 0))


@dataclass(frozen=True, slots=True)
class Estimate:
    """One arm. `deploy`: what evaluations ask for beside the rounds. `exposure`: who will see what. `bound`: why the
    run may cost less; empty if all is known before it.
    """

    method: str
    rounds: list[Round]
    exposure: str
    deploy: Round = field(default_factory=Round)
    bound: str = ""

    @property
    def flows(self) -> Counter[Flow]:
        """Bytes of all rounds."""
        return sum((one.flows for one in self.rounds), Counter())

    @property
    def links(self) -> dict[tuple[str, str], int]:
        """(source, destination) -> bytes."""
        return _added(((source, destination), size) for (_, source, destination), size in self.flows.items())

    def totals(self) -> dict[str, Any]:
        """All rounds and clients together, by the names that a comparison gives to what was measured."""
        flows = self.flows
        flops: Counter[str] = sum((one.flops for one in self.rounds), Counter())
        clients = [each.memory[name] for each in self.rounds for name in each.memory if name != SERVER]
        servers = (SERVER, COORDINATOR)
        return {
            "bytes": sum(flows.values()),
            "up": sum(size for (_, source, _), size in flows.items() if source not in servers),
            "down": sum(size for (*_, destination), size in flows.items() if destination not in servers),
            "server_bytes": sum(size for (_, *ends), size in flows.items() if SERVER in ends),
            "deploy_bytes": sum(self.deploy.flows.values()),
            "flops": sum(count for name, count in flops.items() if name not in servers),
            "server_flops": flops[SERVER],
            "coordinator_flops": flops[COORDINATOR],
            "memory": max(clients, default=None),
            "server_memory": max((each.memory[SERVER] for each in self.rounds if SERVER in each.memory), default=None),
            "trips": sum(one.trips for one in self.rounds),
        }

    def seconds(self, bandwidth: float, delay: float) -> float:
        """How long the rounds' transfers take where every agent has one link of `bandwidth` bits a second, and a round
        trip takes `delay` seconds. Side by side, the round waits for the agent with most to send and receive.
        """
        return sum(8 * _waited_for(one) / bandwidth + one.trips * delay for one in self.rounds)


def _waited_for(one: Round) -> int:
    """Bytes over the link of the agent that sends and receives most; if they do so in turn, over those of all."""
    ends = ((end, size) for (_, *link), size in one.flows.items() for end in link)
    links = _added((end, size) for end, size in ends if end not in (SERVER, COORDINATOR)).values()
    return sum(links) if one.in_turn else max(links, default=0)


def _added(pairs: Iterable[tuple[Key, int]]) -> dict[Key, int]:
    totals: Counter[Key] = Counter()
    for key, size in pairs:
        totals[key] += size
    return dict(totals)
