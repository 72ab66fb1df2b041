"""Kits for everybody in a run: the coordinator, a site for each party, and whoever submits."""

import subprocess
import sys
from pathlib import Path

import yaml

from peertune.config.schema import Config
from peertune.deploy.home import Settings, write_settings
from peertune.deploy.job import site_of
from peertune.deploy.sealing import make_keys
from peertune.errors import ConfigError, PeertuneError

SUBMITTER = "admin@peertune.org"
AUTHORITY = "authority"  # the folder with the key that signs everybody's certificates
_BUILDERS = [
    {"path": "nvflare.lighter.impl.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
    {
        "path": "nvflare.lighter.impl.static_file.StaticFileBuilder",
        "args": {"config_folder": "config", "scheme": "grpc"},
    },
    {"path": "nvflare.lighter.impl.cert.CertBuilder"},
    {"path": "nvflare.lighter.impl.signature.SignatureBuilder"},
]


def provision(config: Config, project: str, address: tuple[str, int], to: Path) -> dict[str, Path]:
    """Make all kits here, with everybody's keys: name -> folder. Each must then go to its owner and nobody else.

    `address`: host and port of the coordinator, as the sites will know it. Raises `ConfigError`.
    """
    if to.exists():
        raise ConfigError(f"{to} exists; kits are not overwritten, name another folder with --to")
    authority = to / AUTHORITY
    authority.mkdir(parents=True)
    definition = authority / "project.yml"
    definition.write_text(yaml.safe_dump(_project(config, project, address)), encoding="utf-8")
    command = [sys.executable, "-m", "nvflare.cli", "provision", "-p", str(definition), "-w", str(authority)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    made = authority / project / "prod_00"
    if done.returncode or not made.is_dir():
        reason = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
        raise PeertuneError(f"nvflare provision failed: {reason[-1]}")
    kits = {}
    for source in sorted(made.iterdir()):
        owner = {address[0]: "coordinator", SUBMITTER: "submitter"}.get(source.name, source.name)
        kits[owner] = source.rename(to / owner)
    for party in config.parties():
        write_settings(kits[site_of(party)], Settings(config.model_dump_json(), "runs", party))
    write_settings(kits["coordinator"], Settings(config.model_dump_json(), "runs"))
    make_keys({party: kits[site_of(party)] for party in config.parties()})
    return kits


def _project(config: Config, project: str, address: tuple[str, int]) -> dict[str, object]:
    host, port = address
    server = {"name": host, "type": "server", "org": "coordinator", "fed_learn_port": port, "admin_port": port}
    sites = [{"name": site_of(party), "type": "client", "org": party.replace("-", "_")} for party in config.parties()]
    submitter = {"name": SUBMITTER, "type": "admin", "org": "coordinator", "role": "project_admin"}
    return {
        "api_version": 3,
        "name": project,
        "description": "made by peertune provision",
        "participants": [server, *sites, submitter],
        "builders": _BUILDERS,
    }
