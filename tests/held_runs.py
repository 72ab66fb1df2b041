"""Agents of true runs that are held like those of `held`, or cannot be reached."""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from toy_sites import SESSION, line

from peertune.assemble import Spec, build_agents
from peertune.config.schema import Config
from peertune.engines.base import Resident
from peertune.engines.flare import FlareEngine
from peertune.engines.site import Home, Site
from peertune.ledger import COORDINATOR
from peertune.payloads import Payload


class Gated:
    """An agent of a true run, held in the same way in the folder GATES."""

    def __init__(self, agent: Resident) -> None:
        self._agent = agent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)

    def call(self, verb: str, args: list[Payload]) -> Payload | None:
        while (Path(os.environ["GATES"]) / f"{self._agent.name}.{verb}").exists():
            time.sleep(0.01)
        return self._agent.call(verb, args)


def build_true(raw: bytes, names: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    agents, facts = build_agents(raw, names)
    return {name: Gated(agent) for name, agent in agents.items()}, facts


def true_sites(config: Config, folder: Path, cut: set[str]) -> FlareEngine:
    """The agents of a true run at sites, and who cannot be reached at the moment."""
    raw = msgspec.json.encode(Spec(config.model_dump_json(), str(folder)))
    sites: dict[str, Site] = {}

    def reach(name: str) -> Site:
        if name in cut:
            raise ConnectionError("no route")
        return sites[name]

    names = list(config.parties())
    for name in names:
        others = {other: line(partial(reach, other), name) for other in names if other != name}
        sites[name] = Site(Home(name, "peertune.assemble:build_agents", raw), SESSION, others, patience=0.5)

    class Sites(FlareEngine):
        def close(self) -> None:
            super().close()
            for site in sites.values():
                site.close()

    return Sites({name: line(partial(reach, name), COORDINATOR) for name in names}, SESSION, patience=0.5)
