"""A configuration -> what each of its arms will cost."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from peertune.arms import make_method, make_run
from peertune.assemble import vocabulary
from peertune.config.schema import Config
from peertune.cost.baselines import centralised, local, warm_start
from peertune.cost.estimate import Estimate
from peertune.cost.fedavg import fedavg
from peertune.cost.fedmkt import fedmkt
from peertune.cost.kd import kd
from peertune.cost.parties import Models, Party, World, world_of
from peertune.cost.split import split
from peertune.cost.texts import central_text, knexa
from peertune.errors import ConfigError
from peertune.lm.blueprint import ADAPTER
from peertune.lm.cut import layers_of
from peertune.methods import Method

FAMILIES: dict[str, Callable[..., Estimate]] = {
    "local": local,
    "fedavg": fedavg,
    "knexa": knexa,
    "kd": kd,
    "fedmkt": fedmkt,
    "split": split,
    "central_text": central_text,
    "centralised": centralised,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """`methods` and `estimates` by arm; `left_out`: the reason by arm. `start`: of the warm start, before all arms."""

    world: World
    methods: dict[str, Method]
    estimates: dict[str, Estimate]
    left_out: dict[str, str]
    start: Estimate


def plan_of(config: Config, left_out: Mapping[str, str] | None = None, models: Models | None = None) -> Plan:
    """What all arms of the configuration will cost. Nothing is trained, and no weights are read. `models`: known from
    other configurations.

    Raises `ConfigError`: a model or data set that is not there, no arm that its agents admit.
    """
    world = world_of(config, models)
    methods, misfits = methods_of(world)
    arms = config.arms()
    found = {arm: _for_those_there(config, FAMILIES[arms[arm].type](world, method)) for arm, method in methods.items()}
    return Plan(world, methods, found, {**(left_out or {}), **misfits}, warm_start(world))


def methods_of(world: World) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods by arm, but for those that do not fit the agents, of which the reasons. Raises `ConfigError` if the
    configuration's own method is one of these.
    """
    config, agents = world.config, [_facts(agent) for agent in world.agents]
    run = make_run(config, (world.transfer, world.probe), agents, _facts(world.server) if world.server else None)
    methods, misfits = {}, {}
    for arm, section in config.arms().items():
        method = make_method(run, section)
        try:
            method.check(agents)
        except ConfigError as error:
            if section is config.method:
                raise
            misfits[arm] = str(error)
        else:
            methods[arm] = method
    return methods, misfits


def planned(config: Config, models: Models | None = None) -> dict[str, dict[str, Any]]:
    """arm -> `Estimate.totals`, and `exact`: is it what the run will cost, or the most?"""
    plan = plan_of(config, models=models)
    return {arm: each.totals() | {"exact": not each.bound} for arm, each in plan.estimates.items()}


def _for_those_there(config: Config, found: Estimate) -> Estimate:
    if (config.availability is None and config.asynchrony is None) or found.bound:
        return found
    return replace(found, bound="at most: as if all agents were there in every round")


def _facts(party: Party) -> dict[str, Any]:
    """What methods ask of an agent before a run; as in the ledger's `run` event, but that nothing is hashed whole."""
    shapes, settings = sorted(party.shapes.items()), party.settings
    return {
        "name": party.name,
        "model": party.lm.source,
        "fingerprint": party.lm.source,
        "adapter": hashlib.sha256(msgspec.json.encode([party.lm.source, shapes])).hexdigest()[:16],
        "rank": settings.rank,
        "scale": settings.alpha / settings.rank,
        "family": party.lm.family,
        "vocabulary": vocabulary(party.lm),
        "layers": layers_of(party.lm, ADAPTER),
        "parameters": party.lm.parameters,
        "train": len(party.examples),
        "chats": sum(example.chat for example in party.examples),
    }
