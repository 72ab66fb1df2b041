"""Agents of true runs that are held like those of `held`, or cannot be reached."""

import os
import time
from functools import partial
from pathlib import Path

import msgspec
from toy_sites import SESSION, line
from wrapped import Wrapped, wrapping

from peertune.assemble import build_agents
from peertune.config.schema import Config
from peertune.deploy.home import BUILDER, Plan
from peertune.engines.flare import FlareEngine
from peertune.engines.site import Home, Site
from peertune.ledger import COORDINATOR
from peertune.payloads import Payload


class Gated(Wrapped):
    """An agent of a true run, held in the same way in the folder GATES."""

    def call(self, verb: str, args: list[Payload]) -> Payload | None:
        while (Path(os.environ["GATES"]) / f"{self._agent.name}.{verb}").exists():
            time.sleep(0.01)
        return self._agent.call(verb, args)


build_true = wrapping(build_agents, Gated)


def true_sites(config: Config, folder: Path, cut: set[str]) -> FlareEngine:
    """The agents of a true run at sites, and who cannot be reached at the moment."""
    sites: dict[str, Site] = {}

    def reach(name: str) -> Site:
        if name in cut:
            raise ConnectionError("no route")
        return sites[name]

    names = list(config.parties())
    for name, party in config.parties().items():
        plan = msgspec.json.encode(Plan(config.model_dump_json(), str(folder), party.model))
        others = {other: line(partial(reach, other), name) for other in names if other != name}
        sites[name] = Site(Home(name, BUILDER, plan), SESSION, others, patience=0.5)

    class Sites(FlareEngine):
        def close(self) -> None:
            super().close()
            for site in sites.values():
                site.close()

    return Sites({name: line(partial(reach, name), COORDINATOR) for name in names}, SESSION, patience=0.5)
