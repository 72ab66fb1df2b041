"""Builds the agent of a site, in the agent's own process."""

from typing import Any

import msgspec

from peertune.assemble import Spec, build_agents
from peertune.deploy.home import Plan
from peertune.engines.resident import Resident


def build(raw: bytes, names: list[str]) -> tuple[dict[str, Resident], list[dict[str, Any]]]:
    """The builder. The first training example, which a local run shows its owner, stays here, and so does a path."""
    plan = msgspec.json.decode(raw, type=Plan)
    agents, facts = build_agents(msgspec.json.encode(Spec(plan.config, plan.folder)), names)
    shared = [{key: value for key, value in each.items() if key != "preview"} for each in facts]
    return agents, [each | {"model": plan.model} for each in shared]
