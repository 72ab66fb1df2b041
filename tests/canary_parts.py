"""The parts of a job that is searched for canaries. It runs at the hub, too, and so names none of them."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

from peertune.deploy.coordinator import FlareCoordinator
from peertune.deploy.parts import FlareSite
from peertune.engines.seal import Plain, Seal
from peertune.engines.site import Home

FOLDER = "SEARCHED"  # the environment variable that names the folder of the search
RAN, DONE = "ran", "searched"  # files there: the run is over; the coordinator may end


class CanarySite(FlareSite):
    """A site whose agent puts canaries into all texts that it shares. FLARE's own encryption from end to end is off:
    the hub sees what it sees if nothing but the seal is to be trusted.
    """

    secure = False

    def _home(self) -> Home:
        return dataclasses.replace(super()._home(), builder="canary_agents:build")


class WaitingCoordinator(FlareCoordinator):
    """One that stays after the run until it has been searched."""

    secure = False

    def _run(self, progress: dict[str, Any]) -> None:
        super()._run(progress)
        place = Path(os.environ[FOLDER])
        (place / f"{self.run}.{RAN}").touch()
        while not (place / f"{self.run}.{DONE}").exists():
            time.sleep(0.1)


class OpenSite(CanarySite):
    """Nothing is sealed: the hub reads what agents exchange."""

    def _seal(self) -> Seal:
        return Plain()


class OpenCoordinator(WaitingCoordinator):
    """It has a canary of its own, made here, so that no file names it."""

    def _run(self, progress: dict[str, Any]) -> None:
        self.planted = "-".join(("zq", "canary", self.run))
        super()._run(progress)
