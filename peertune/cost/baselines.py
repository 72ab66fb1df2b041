"""What learning alone costs, and learning from everybody's data."""

from peertune.cost.estimate import Estimate, Round
from peertune.cost.parties import Position, World
from peertune.methods import Centralised, Local
from peertune.payloads import Record, Records, encode


def warm_start(world: World) -> Estimate:
    """What all arms begin from: `warm_start_steps` of every agent, alone."""
    one, steps = Round(), world.config.budget.warm_start_steps
    for agent in world.agents:
        one.ask(agent.name, steps)
        one.compute(agent, agent.fit(Position(), steps))
    return Estimate("local", [one], "nothing leaves an agent")


def local(world: World, method: Local) -> Estimate:
    """Bytes: none but the calls. FLOPs a round: s steps of b rows, about 2 F a token with LoRA."""
    positions, rounds = world.positions(), []
    steps = method.run.budget.local_steps + method.run.budget.exchange_steps
    for _ in range(method.run.rounds):
        one = Round()
        for agent in world.agents:
            one.ask(agent.name, steps)
            one.compute(agent, agent.fit(positions[agent.name], steps))
        rounds.append(one)
    return Estimate("local", rounds, "nothing leaves an agent")


def centralised(world: World, method: Centralised) -> Estimate:
    """Bytes a round: everybody's training examples to every other agent. FLOPs: as `local`, on all data."""
    positions, rounds = world.positions(), []
    steps = method.run.budget.local_steps + method.run.budget.exchange_steps
    texts = {agent.name: [Record(each.prompt, each.completion) for each in agent.examples] for agent in world.agents}
    sizes = {name: len(encode(Records(tuple(records)))) for name, records in texts.items()}
    for _ in range(method.run.rounds):
        one = Round(trips=1)
        for agent in world.agents:
            others = [other for other in world.agents if other is not agent]
            for other in others:
                one.send("records", other.name, agent.name, sizes[other.name])
            pooled = [row for other in others for row in agent.encode_all(other.examples)]
            one.ask(agent.name, steps)
            one.compute(agent, agent.fit(positions[agent.name], steps, pooled))
        rounds.append(one)
    return Estimate("centralised", rounds, "every agent sees all training examples of all others")
