"""The folder of a kit as FLARE's own provisioner makes it: scripts and settings, no key and no certificate."""

import logging
from pathlib import Path

from nvflare.lighter.entity import Project as FlareProject
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.utils import Identity

from peertune.deploy.documents import SUBMITTER, Project
from peertune.deploy.job import site_of
from peertune.errors import PeertuneError
from peertune.ledger import COORDINATOR

ADMIN = "admin@peertune.org"  # who submits, as FLARE wants a name
ROLE = "project_admin"
_QUIET = logging.getLogger(__name__)


def identity(project: Project, party: str) -> Identity:
    """What a party's certificate says: name, organisation, role."""
    if party == COORDINATOR:
        return Identity(project.host, COORDINATOR)
    if party == SUBMITTER:
        return Identity(ADMIN, COORDINATOR, ROLE)
    return Identity(site_of(party), party.replace("-", "_"))


def make_skeleton(project: Project, party: str, scratch: Path) -> Path:
    """The kit of `party`, in a new folder below `scratch`. Raises `PeertuneError` if FLARE cannot make it."""
    flare, own = FlareProject(project.name, "made by peertune"), identity(project, party)
    flare.set_server(project.host, COORDINATOR, {"fed_learn_port": project.port, "admin_port": project.port})
    if party == SUBMITTER:
        flare.add_admin(own.name, own.org, {"role": own.role})
    elif party != COORDINATOR:
        flare.add_client(own.name, own.org, {})
    builders = [WorkspaceBuilder(), StaticFileBuilder(config_folder="config", scheme="grpc")]
    made = Provisioner(str(scratch), builders).provision(flare, logger=_QUIET).get_result_location()
    if made is None:
        raise PeertuneError("FLARE could not make the folder of the kit; what it says stands above")
    return Path(made) / own.name
