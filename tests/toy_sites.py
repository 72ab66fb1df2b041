"""Toy agents at sites of their own, with no network between them: a line is a function call."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from toy import NAMES, PATH_HERE, Spec

from peertune.engines.flare import FlareEngine
from peertune.engines.post import Line
from peertune.engines.seal import Seal
from peertune.engines.site import Home, Site
from peertune.ledger import COORDINATOR

SESSION = "toys/1"


def home(name: str, folder: Path, deadline: float = 60.0, **spec: str) -> Home:
    """The home of a toy agent."""
    return Home(name, "toy:build", msgspec.msgpack.encode(Spec(str(folder), **spec)), deadline, PATH_HERE)


def line(site: Callable[[], Site], caller: str) -> Line:
    """How `caller` reaches that site."""
    return lambda verb, raw, seconds: site().answer(caller, verb, raw)


class Village:
    """The sites of toy agents, and an engine that reaches them. `seal`: one for all, or one of each name."""

    def __init__(
        self,
        folder: Path,
        deadline: float = 60.0,
        seal: Seal | Mapping[str, Seal] | None = None,
        names: Sequence[str] = NAMES,
        **spec: str,
    ) -> None:
        self.folder = folder
        self.sites: dict[str, Site] = {}
        for name in names:
            others = {other: line(lambda other=other: self.sites[other], name) for other in names if other != name}
            own = seal[name] if isinstance(seal, Mapping) else seal
            self.sites[name] = Site(home(name, folder, deadline, **spec), SESSION, others, own, patience=1.0)
        try:
            self.engine = FlareEngine(self.lines(), SESSION, patience=1.0)
        except BaseException:
            self.close()
            raise

    def lines(self) -> dict[str, Line]:
        return {name: line(lambda name=name: self.sites[name], COORDINATOR) for name in self.sites}

    def close(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()
        for site in self.sites.values():
            site.close()
