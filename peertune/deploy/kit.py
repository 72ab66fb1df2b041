"""Start-up kits: what FLARE made, and what a kit must say before anything is started from it.

No code that comes with a job is run, a job may name the parts of this package only, nobody reads files or logs of a
site from afar, and every kit keeps its own stores.
"""

import json
from pathlib import Path
from typing import Any

from peertune.deploy.job import ALLOWED
from peertune.errors import ConfigError

# FLARE keeps a thread for so many seconds after every message, a minute if it is not told; what it does not deliver in
# that time is asked for again
RETRY = {"streaming_retry_timeout": 2.0, "streaming_retry_wait": 0.5}
RIGHTS = {
    "submit_job": "any",
    "clone_job": "none",
    "manage_job": "any",
    "download_job": "any",
    "view": "any",
    "operate": "none",
    "shell_commands": "none",
    "byoc": "none",
    "server-predeployed-flwr": "none",
}
OF_SERVER = {"app_command": "any"}  # how far it is
STREAMED = "site_log_streamer"  # FLARE's component that sends a site's log to the server


def is_server(kit: Path) -> bool:
    """Is it the coordinator's kit? Raises `ConfigError` if it is none at all, or the submitter's."""
    startup = kit / "startup"
    if (startup / "fed_server.json").is_file():
        return True
    if (startup / "fed_client.json").is_file():
        return False
    if (startup / "fed_admin.json").is_file():
        raise ConfigError(
            f"{kit} is a kit to submit runs with (`peertune run FILE --on {kit}`), nothing starts from it"
        )
    raise ConfigError(f"{kit} is no start-up kit: expected startup/fed_client.json or startup/fed_server.json in it")


def harden(kit: Path) -> None:
    """Write the files of `kit`/local anew. Raises `ConfigError` if the kit is not whole."""
    local, server = kit / "local", is_server(kit)
    resources = _read(local / "resources.json.default")
    resources["class_list_enforcement_mode"] = "enforce"
    resources["class_allow_list"] = list(ALLOWED)
    resources["allow_log_streaming"] = False
    resources["components"] = [part for part in resources["components"] if part["id"] != STREAMED]
    if server:
        resources = json.loads(json.dumps(resources).replace("/tmp/nvflare", str(kit.resolve() / "stores")))
    log = _read(local / "log_config.json.default")
    log["loggers"]["nvflare.collab"] = {"level": "WARNING"}  # two lines a call otherwise
    files: dict[str, Any] = {
        "resources.json": resources,
        "authorization.json": {
            "format_version": "1.0",
            "permissions": {"project_admin": RIGHTS | (OF_SERVER if server else {})},
        },
        "comm_config.json": {"allow_adhoc_conns": False, **RETRY},
        "log_config.json": log,
    }
    for name, body in files.items():
        (local / name).write_text(json.dumps(body, indent=1), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); the kit is not whole, ask for it again") from None
