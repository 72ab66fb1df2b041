"""The job that FLARE is given: a few lines of JSON that name the parts of this package. No code travels."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from peertune.errors import ConfigError
from peertune.ledger import SERVER

HUB = "server"  # what FLARE calls the coordinator
SERVER_SITE = "0server"  # no agent can have this name
SITE = "peertune.deploy.parts.FlareSite"
COORDINATOR = "peertune.deploy.coordinator.FlareCoordinator"
CONTROLLER = "nvflare.collab.runtime.controller.CollabController"
EXECUTOR = "nvflare.collab.runtime.executor.CollabExecutor"
ALLOWED = (CONTROLLER, EXECUTOR, SITE, COORDINATOR)  # all that a site lets a job name
OUTCOME = "peertune_outcome.json"  # in the job's folder at the server
PROGRESS = "peertune"  # the question that a running coordinator answers
PACKAGES = ("peertune", "nvflare")  # that all must have in one version
SETUP = 300.0  # seconds in which all sites must have begun


class Outcome(msgspec.Struct):
    """How a coordinator ended: the exit code of the command, and what to tell its user."""

    exit_code: int
    message: str


def site_of(party: str) -> str:
    """What FLARE calls the site of a party: `server` is a name of its own there."""
    return SERVER_SITE if party == SERVER else party


def check_versions(wanted: Mapping[str, str]) -> None:
    """Raise `ConfigError` unless these are the versions here: what one says the other would not understand."""
    for package, found in installed().items():
        if found != wanted.get(package):
            raise ConfigError(
                f"{package} {found} is installed here, whoever started the run has {wanted.get(package, 'none')}; "
                "install the same version everywhere"
            )


def installed() -> dict[str, str]:
    """Versions of the packages that all parties must have in one."""
    return {package: version(package) for package in PACKAGES}


def write_job(folder: Path, arguments: Mapping[str, Any], *, site: str = SITE, coordinator: str = COORDINATOR) -> Path:
    """Write a job below `folder` and return where it is. `arguments`: of both parts, as `Participant` has them; the
    versions are those that are installed here.
    """
    arguments = {"versions": installed(), **arguments}
    job = folder / arguments["run"]
    app = job / "app" / "config"
    app.mkdir(parents=True)
    server = {
        "format_version": 2,
        "workflows": [
            {
                "id": "controller",
                "path": CONTROLLER,
                "args": {"server_obj_id": "_server", "sync_task_timeout": SETUP},
            }
        ],
        "components": [{"id": "_server", "path": coordinator, "args": arguments}],
    }
    client = {
        "format_version": 2,
        "executors": [{"tasks": ["*"], "executor": {"path": EXECUTOR, "args": {"client_obj_id": "_client"}}}],
        "components": [{"id": "_client", "path": site, "args": arguments}],
    }
    meta = {
        "name": arguments["run"],
        "resource_spec": {},
        "min_clients": len(arguments["sites"]),
        "mandatory_clients": sorted(arguments["sites"].values()),
        "deploy_map": {"app": [HUB, *sorted(arguments["sites"].values())]},  # nobody else who is connected hears of it
    }
    for path, body in (
        (app / "config_fed_server.json", server),
        (app / "config_fed_client.json", client),
        (job / "meta.json", meta),
    ):
        path.write_text(json.dumps(body, indent=1), encoding="utf-8")
    return job
