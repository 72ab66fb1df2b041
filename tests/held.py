"""Toy agents that stop in the middle of a call until they are let go: slow at the word of a test, not of a clock."""

import time
from pathlib import Path
from typing import Any

import msgspec
from toy import NAMES, PATH_HERE, Spec, ToyAgent, described
from toy_sites import SESSION, line

from peertune.engines.base import Engine, Resident
from peertune.engines.flare import FlareEngine
from peertune.engines.local import LocalEngine
from peertune.engines.site import Home, Site
from peertune.ledger import COORDINATOR
from peertune.payloads import Payload

FOUR = NAMES[:4]


class Held(ToyAgent):
    """Waits before it runs a call as long as its folder has the file NAME.VERB."""

    def call(self, verb: str, args: list[Payload]) -> Payload | None:
        while (self._folder / f"{self.name}.{verb}").exists():
            time.sleep(0.01)
        return super().call(verb, args)


def build(raw: bytes, names: list[str]) -> tuple[dict[str, Resident], list[dict[str, Any]]]:
    folder = Path(msgspec.msgpack.decode(raw, type=Spec).folder)
    return {name: Held(name, folder) for name in names}, [described(name) for name in names]


class Yard:
    """Four held agents in processes of their own, on the embedded engine or at sites."""

    def __init__(self, folder: Path, where: str, deadline: float = 60.0, patience: float = 60.0) -> None:
        self.folder, spec = folder, msgspec.msgpack.encode(Spec(str(folder)))
        self.sites: dict[str, Site] = {}
        self.cut: set[str] = set()  # sites that nobody can reach
        if where == "local":
            groups, environments = [[name] for name in FOUR], [PATH_HERE] * len(FOUR)
            self.engine: Engine = LocalEngine(
                "held:build", spec, groups, deadline=deadline, patience=patience, environments=environments
            )
            return
        for name in FOUR:
            others = {other: line(lambda other=other: self._site(other), name) for other in FOUR if other != name}
            home = Home(name, "held:build", spec, deadline, PATH_HERE, patience)
            self.sites[name] = Site(home, SESSION, others, patience=1.0)
        lines = {name: line(lambda name=name: self._site(name), COORDINATOR) for name in FOUR}
        self.engine = FlareEngine(lines, SESSION, patience=1.0)

    def hold(self, name: str, verb: str) -> None:
        (self.folder / f"{name}.{verb}").touch()

    def release(self, name: str, verb: str) -> None:
        (self.folder / f"{name}.{verb}").unlink()

    def trace(self, name: str) -> list[str]:
        """The verbs that the agent has run."""
        path = self.folder / f"{name}.trace"
        return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []

    def _site(self, name: str) -> Site:
        if name in self.cut:
            raise ConnectionError("no route")
        return self.sites[name]

    def close(self) -> None:
        self.engine.close()
        for site in self.sites.values():
            site.close()
