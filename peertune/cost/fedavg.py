"""FedLLM: adapters up, adapters down."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peertune.aggregate import Rule
from peertune.cost.estimate import Estimate, Round
from peertune.cost.formulas import lora_numbers
from peertune.cost.parties import Party, World
from peertune.cost.wire import arrays, floats
from peertune.ledger import COORDINATOR
from peertune.lm.flops import Costs
from peertune.lm.frozen import letter
from peertune.methods import FedAvg
from peertune.payloads import Factors, Weights

Shapes = Mapping[str, tuple[int, ...]]


def fedavg(world: World, method: FedAvg) -> Estimate:
    """Up, a client and round: q |theta|, of the factors that travel: sum over matrices of r d_in (A), r d_out (B), r^2
    (R), and a trained head.

    Down: what changed since the agent was last sent something. The same factors; with fedex also frozen ones of rank
    (K - 1) r; with flora only frozen ones, of rank sum_k r_k. Before round 1 every agent's adapter goes up, and the
    common start comes down. FLOPs: as `local`. One round trip.
    """
    rule, budget = method.rule, method.run.budget
    shared, positions = _Shared(rule, world.agents), world.positions()
    rounds, deploy = [Round(trips=1) for _ in range(method.run.rounds)], Round()
    rounds[0].trips += 1
    for agent in world.agents:
        _send_up(rounds[0], agent, agent.shapes)
    for t, one in enumerate(rounds, start=1):
        chosen = method.chosen(world.agents, t)
        for agent in chosen:
            _send_down(one, agent, *shared.lacking(agent))
            steps = budget.local_steps + budget.exchange_steps
            one.ask(agent.name, steps, Factors(rule.trained(t)), method.proximal, Factors(rule.shared(t)))
            one.compute(agent, agent.fit(positions[agent.name], steps), shared.costs(agent, t))
            _send_up(one, agent, shared.travelling(agent, t))
        one.flops[COORDINATOR] += shared.aggregate(method.aggregator, chosen, t)
        if world.graded(t):
            for agent in world.agents:
                _send_down(deploy, agent, *shared.lacking(agent))
    return Estimate("fedavg", rounds, "the coordinator sees every agent's adapter, the agents their average", deploy)


def numbers_up(agent: Party, method: FedAvg) -> int:
    """|theta|: how many numbers an agent sends in the first round."""
    head = sum(math.prod(shape) for name, shape in agent.shapes.items() if not letter(name))
    return lora_numbers(_matrices(agent).values(), agent.settings.rank, method.rule.shared(1), head)


@dataclass(slots=True)
class _Shared:
    """The shared adapter by its shapes, as `methods.shared` keeps it: `held` version of each agent; `rank` of what is
    shared; ranks of the `frozen` parts by matrix, and of their last `change`.
    """

    rule: Rule
    agents: Sequence[Party]
    version: int = 1
    before: int = 1
    rank: int = 0
    held: dict[str, int] = field(default_factory=dict)
    frozen: dict[str, int] = field(default_factory=dict)
    change: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rank = max(agent.settings.rank for agent in self.agents)

    def lacking(self, agent: Party) -> tuple[Shapes, int, int]:
        """What the agent is sent; since which version, up to which."""
        held = self.held.get(agent.name, 0)
        known = held > 0 and (held == self.before or not self.frozen)
        letters = "".join(letter for letter in "ABR" if not held or letter not in self.rule.private)
        if known:
            letters = "".join(self.rule.shared(t) for t in range(held, self.version))
        factors = _of_rank(_having(self._whole(agent), letters), min(self.rank, agent.settings.rank))
        parts = _frozen(agent, self.change if known else self.frozen)
        return {**factors, **parts}, held if known else 0, self.version

    def costs(self, agent: Party, t: int) -> Costs:
        """Of an agent that has the shared adapter: cores and frozen parts cost, and what is not trained costs less."""
        core = any("R" in turn for turn in self.rule.turns)
        still = "".join(letter for letter in ("ABR" if core else "AB") if letter not in self.rule.trained(t))
        return agent.blueprint.costs(core, self.frozen, still)

    def travelling(self, agent: Party, t: int) -> Shapes:
        return _having(self._whole(agent), self.rule.shared(t))

    def aggregate(self, name: str, chosen: Sequence[Party], t: int) -> int:
        """The next version; FLOPs of making it (the table of `peertune.aggregate`)."""
        ranks = [agent.settings.rank for agent in chosen]
        matrices = _matrices(chosen[0])
        total, added = sum(ranks), {"flora": sum(ranks), "fedex": sum(ranks) - max(ranks)}.get(name, 0)
        self.version, self.before = t + 1, self.version
        self.held |= dict.fromkeys((agent.name for agent in chosen), self.before)
        self.rank = 0 if name == "flora" else max(ranks)
        self.change = {path: min(added, *sides) for path, sides in matrices.items() if added}
        joined = {path: self.frozen.get(path, 0) + rank for path, rank in self.change.items()}
        self.frozen |= {path: min(rank, *matrices[path]) for path, rank in joined.items()}
        sides = sum(d_in + d_out for d_in, d_out in matrices.values())
        mean = 2 * sum(lora_numbers(matrices.values(), rank, self.rule.shared(t)) for rank in ranks)
        special = {
            "fedex": 2 * mean,
            "flora": total * sum(d_out for _, d_out in matrices.values()),
            "flexlora": 4 * total**2 * sides,
            "hetlora": 2 * (total + sum(rank**2 for rank in ranks)) * sides,
        }
        return special.get(name, mean)

    def _whole(self, agent: Party) -> Shapes:
        """The agent's adapter, with the core that some rules train."""
        cores = {}
        if any("R" in turn for turn in self.rule.turns):
            rank = agent.settings.rank
            cores = {f"{path}.lora_R.weight": (rank, rank) for path in _matrices(agent)}
        return {**agent.shapes, **cores}


def _send_up(one: Round, agent: Party, shapes: Shapes) -> None:
    one.send("weights", agent.name, COORDINATOR, arrays(Weights, floats(shapes)))


def _send_down(one: Round, agent: Party, shapes: Shapes, since: int, upto: int) -> None:
    one.send("weights", COORDINATOR, agent.name, arrays(Weights, floats(shapes)))
    one.ask(agent.name, since, upto)


def _matrices(agent: Party) -> dict[str, tuple[int, int]]:
    """Adapted matrix -> (d_in, d_out)."""
    shapes = agent.shapes
    paths = [name.removesuffix(".lora_A.weight") for name in shapes if letter(name) == "A"]
    return {path: (shapes[f"{path}.lora_A.weight"][1], shapes[f"{path}.lora_B.weight"][0]) for path in paths}


def _having(shapes: Shapes, letters: str) -> Shapes:
    """These factors, and what is no factor: a head."""
    return {name: shape for name, shape in shapes.items() if letter(name) in letters}


def _of_rank(shapes: Shapes, rank: int) -> Shapes:
    """The same tensors with another rank, but for cores, which have that of all."""
    sides = {"A": 0, "B": 1}
    return {
        name: tuple(rank if side == sides.get(letter(name)) else size for side, size in enumerate(shape))
        for name, shape in shapes.items()
    }


def _frozen(agent: Party, ranks: Mapping[str, int]) -> Shapes:
    sides = _matrices(agent)
    a = {f"{path}.frozen_A.weight": (rank, sides[path][0]) for path, rank in ranks.items()}
    return a | {f"{path}.frozen_B.weight": (sides[path][1], rank) for path, rank in ranks.items()}
