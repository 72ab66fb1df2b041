"""The parts of a job on FLARE's simulator, where all kits are folders beside each other and nobody has certificates."""

import os
from pathlib import Path

from flare_parts import FOLDER
from nvflare.collab import collab

from peertune.deploy.coordinator import FlareCoordinator
from peertune.deploy.parts import FlareSite


def kits() -> Path:
    return Path(os.environ[FOLDER]) / "kits"


class SmallSite(FlareSite):
    secure = False

    def kit(self) -> Path:
        return kits() / collab.site_name


class SmallCoordinator(FlareCoordinator):
    secure = False

    def kit(self) -> Path:
        return kits() / "hub"
