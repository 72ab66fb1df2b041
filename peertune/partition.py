"""Dealing a task's private examples to agents, the skew that this really made, and dividing an agent's own ones.

A partition is a matrix of shares, [agents, categories]: which part of each category's examples an agent gets. The same
shares deal the training and the validation examples, so that an agent is validated on the kind of data that it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt, Lt

from peertune.errors import ConfigError
from peertune.tasks.base import Example

MIN_TRAIN, MIN_VALIDATION = 8, 4  # examples that every agent gets
FEW = 20  # an agent's own examples may be so few that fewer validate
ATTEMPTS = 1000


@dataclass(frozen=True, slots=True)
class IID:
    """Examples dealt evenly and at random."""


@dataclass(frozen=True, slots=True)
class Dirichlet:
    """Each category is dealt by proportions drawn from Dirichlet(alpha): the smaller alpha, the more skewed."""

    alpha: Annotated[float, Gt(0)] = 0.1


@dataclass(frozen=True, slots=True)
class ByCategory:
    """Each category belongs to one agent."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A few broad experts share most of all categories; every other agent has a little of one category.

    `in_order`: the first agents are the experts; otherwise the seed draws who is.
    """

    experts: Annotated[int, Gt(0)] = 2
    expert_share: Annotated[float, Gt(0), Lt(1)] = 0.8
    in_order: bool = False


Partition = IID | Dirichlet | ByCategory | Experts
PARTITIONS: dict[str, Any] = {"iid": IID, "dirichlet": Dirichlet, "by_category": ByCategory, "experts": Experts}


def deal(
    pools: tuple[Sequence[Example], Sequence[Example]],
    categories: tuple[str, ...],
    agents: int,
    config: Partition,
    seed: int,
) -> list[tuple[list[Example], list[Example]]]:
    """Each agent's (train, validation) examples. Draws again until every agent has at least 8 and 4.

    Raises `ConfigError` if a thousand draws did not give everyone enough.
    """
    for attempt in range(ATTEMPTS):
        random = np.random.default_rng([seed, attempt])
        matrix = shares(agents, len(categories), config, random)
        train, validation = (_deal_pool(pool, categories, matrix, random) for pool in pools)
        if min(map(len, train)) >= MIN_TRAIN and min(map(len, validation)) >= MIN_VALIDATION:
            return list(zip(train, validation, strict=True))
    raise ConfigError(
        f"partition {_name(config)!r} leaves an agent with fewer than {MIN_TRAIN} training or "
        f"{MIN_VALIDATION} validation "
        f"examples in {ATTEMPTS} draws; use more examples, fewer agents or less skew"
    )


def hold_out(source: str, examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Divide an agent's own examples into (train, validation); those of one key are never parted.

    `share` of the examples validate, and at least 4 (of fewer than 20: 1), as far as repeated keys allow. Raises
    `ConfigError`, naming `source`, if nothing is left to train on or to validate.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.key, []).append(example)
    least = 1 if len(examples) < FEW else MIN_VALIDATION
    wanted = max(least, round(share * len(examples)))
    listed, room, train, validation = list(groups.values()), wanted, [], []
    for index in np.random.default_rng([seed, len(examples)]).permutation(len(groups)):
        group = listed[index]
        fits = len(group) <= room
        room -= len(group) * fits
        (validation if fits else train).append(group)
    train.sort(key=len, reverse=True)
    while wanted - room < least and len(train) > 1:  # no group was small enough
        room -= len(train[-1])
        validation.append(train.pop())
    if not train or not validation:
        raise ConfigError(_why_not(source, len(examples), len(groups), share))
    return [*chain.from_iterable(train)], [*chain.from_iterable(validation)]


def _why_not(source: str, examples: int, prompts: int, share: float) -> str:
    if prompts > 1:
        return f"{source}: a `validation` share of {share:g} leaves none of {examples} examples to train on; lower it"
    return (
        f"{source}: expected at least 2 different prompts, one to train on and one to validate, found {prompts}; "
        "examples of one prompt stay together"
    )


def shares(agents: int, categories: int, config: Partition, random: np.random.Generator) -> np.ndarray:
    """[agents, categories], non-negative; a column sums to 1, or to less where a part of a category is left out."""
    match config:
        case Dirichlet(alpha=alpha):
            return random.dirichlet(np.full(agents, alpha), size=categories).T
        case ByCategory():
            owners = random.permutation(categories) % agents
            return (owners == np.arange(agents)[:, None]).astype(np.float64)
        case Experts():
            return _expert_shares(agents, categories, config, random)
        case _:
            return np.full((agents, categories), 1.0 / agents)


def _expert_shares(agents: int, categories: int, config: Experts, random: np.random.Generator) -> np.ndarray:
    roles, order = random.permutation(agents), random.permutation(categories)
    if config.in_order:
        roles = np.arange(agents)
    matrix = np.zeros((agents, categories))
    for place, category in enumerate(order):
        matrix[roles[place % config.experts], category] = config.expert_share
    novices = roles[config.experts :]
    fields = random.permutation(categories)[np.arange(len(novices)) % categories]
    for novice, category in zip(novices, fields, strict=True):
        matrix[novice, category] = (1.0 - config.expert_share) / np.count_nonzero(fields == category)
    return matrix


def _deal_pool(
    pool: Sequence[Example], categories: tuple[str, ...], matrix: np.ndarray, random: np.random.Generator
) -> list[list[Example]]:
    dealt: list[list[Example]] = [[] for _ in matrix]
    for column, category in enumerate(categories):
        members = [example for example in pool if example.category == category]
        random.shuffle(members)  # pyright: ignore[reportArgumentType]
        order = random.permutation(len(matrix))  # so that rounding favours nobody
        bounds = np.round(np.cumsum(matrix[order, column]) * len(members)).astype(int)
        for agent, start, end in zip(order, [0, *bounds[:-1]], bounds, strict=True):
            dealt[agent] += members[start:end]
    return dealt


def _name(config: Partition) -> str:
    return next(name for name, kind in PARTITIONS.items() if isinstance(config, kind))


def skew(histograms: Sequence[Sequence[float]]) -> float:
    """Mean total variation distance (0: all alike, 1: nothing in common) of the agents' categories from their mean."""
    matrix = np.asarray(histograms, dtype=np.float64)
    return float(np.abs(matrix - matrix.mean(axis=0)).sum(axis=1).mean() / 2)
