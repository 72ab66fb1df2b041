"""Where two methods send the same: how large a public set, or how many private tokens, make the one the dearer."""

from collections.abc import Iterator

from peertune.codecs import Codec, bytes_of
from peertune.cost.fedavg import numbers_up
from peertune.cost.formulas import adapter_bytes, break_even
from peertune.cost.kd import bytes_a_problem
from peertune.cost.parties import World
from peertune.cost.plan import Plan
from peertune.methods import KD, FedAvg, Split


def crossovers(plan: Plan) -> list[str]:
    """One line for each arm that shares logits or activations beside the last one that shares adapters, which may be
    the method itself: bytes that an agent sends in a round, framing aside.
    """
    averaged = [(arm, method) for arm, method in plan.methods.items() if isinstance(method, FedAvg)]
    return list(_beside(plan, *averaged[-1])) if averaged else []


def _beside(plan: Plan, averaged: str, fedavg: FedAvg) -> Iterator[str]:
    world = plan.world
    name = f"{averaged} (LoRA r={world.agents[0].settings.rank})"
    upload = adapter_bytes(numbers_up(world.agents[0], fedavg))
    for arm, method in plan.methods.items():
        if isinstance(method, KD):
            most, here = break_even(upload, bytes_a_problem(world, method)), method.problems or len(world.transfer)
            yield f"{arm} is cheaper than {name} only below {most:,.0f} public problems a round; here {here:,}"
        if isinstance(method, Split):
            most, here = break_even(upload, _bytes_a_token(world, method)), _rows(world) * _mean_tokens(world)
            yield f"{arm} is cheaper than {name} only below {most:,.0f} tokens a round; here {here:,.0f}"


def _bytes_a_token(world: World, method: Split) -> float:
    """Hidden states, and in the U-shape gradients of those that come back."""
    many, agent = 1000, world.agents[0]
    codec = Codec(method.codec, method.outliers, method.keep)
    read = sum(row.loss_tokens for row in agent.train) / sum(len(row.ids) for row in agent.train)
    back = 0.0 if method.plain else read if method.last is None else 1.0
    return (1 + back) * bytes_of(codec, many, agent.hidden) / many


def _mean_tokens(world: World) -> float:
    rows = [row for agent in world.agents for row in agent.train]
    return sum(len(row.ids) for row in rows) / len(rows)


def _rows(world: World) -> int:
    """Rows that an agent trains on in a round."""
    budget = world.config.budget
    return (budget.local_steps + budget.exchange_steps) * world.config.training.batch_size
