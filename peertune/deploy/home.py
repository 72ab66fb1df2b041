"""What the owner of a kit has agreed to and set: the run's configuration, and where the own model, data and runs are.

It lies in the kit and nowhere else. A job names the configuration by its hash; another one is refused.
"""

import hashlib
import json
from pathlib import Path

import msgspec

from peertune.config.asynchrony import patience_among
from peertune.config.schema import Config
from peertune.engines.site import Home
from peertune.errors import ConfigError
from peertune.guard.keys import grouped

FILE = "peertune.json"  # in the folder `local` of a kit
BUILDER = "peertune.deploy.build:build"  # the only one there is: no message can name another


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`party`: whose kit it is; the coordinator's has none. `config`: JSON, as all have agreed. `runs`: the folder of
    runs. `model`, `data`: where they are here, if not where `config` says.
    """

    config: str
    runs: str
    party: str | None = None
    model: str | None = None
    data: str | None = None


def write_settings(kit: Path, settings: Settings) -> None:
    (kit / "local" / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(settings), indent=1))


def read_settings(kit: Path) -> Settings:
    """The settings of a kit. Raises `ConfigError`."""
    path = kit / "local" / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); this is no kit, or it is damaged: ask for it again"
        ) from None


def settle(kit: Path, *, model: str | None, data: Path | None, runs: Path | None) -> None:
    """Note where the owner of a kit has its own things; what is None stays. Raises `ConfigError` without data."""
    if data and not data.exists():
        raise ConfigError(f"there is no {data}; name the file or folder of this agent's data with --data")
    chosen = {
        "model": str(Path(model).resolve()) if model and Path(model).exists() else model,
        "data": str(data.resolve()) if data else None,
        "runs": str(runs.resolve()) if runs else None,
    }
    changes = {key: value for key, value in chosen.items() if value is not None}
    write_settings(kit, msgspec.structs.replace(read_settings(kit), **changes))


def digest(config: Config) -> str:
    """What a configuration is known by. Where it runs, and where an agent's data lies, is no part of it."""
    body = config.model_dump(mode="json", exclude={"engine"})
    for agent in body["agents"]:
        agent["data"] = bool(agent["data"])
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def agreed(settings: Settings, wanted: str) -> Config:
    """The kit's configuration. Raises `ConfigError` if it is not the `wanted` one."""
    config = Config.model_validate_json(settings.config)
    if digest(config) != wanted:
        raise ConfigError(
            f"this run has configuration {grouped(wanted)}, the kit was made for {grouped(digest(config))}; "
            "agree on one, and let every party join with it"
        )
    return config


def home(settings: Settings, run: Path, wanted: str) -> Home:
    """The site's home for one run, which `run` is the folder of. Raises `ConfigError`."""
    config, name = agreed(settings, wanted), settings.party
    if name not in config.parties():
        raise ConfigError(f"the kit is for {name}, which is no party of this run")
    own = localised(config, settings)
    plan = Plan(own.model_dump_json(), str(run), config.parties()[name].model)
    return Home(name, BUILDER, msgspec.json.encode(plan), own.engine.deadline, patience=patience_among(config))


def localised(config: Config, settings: Settings) -> Config:
    """The configuration with this party's own places in it."""
    body = json.loads(config.model_dump_json())
    names = config.agent_names()
    party = body["agents"][names.index(settings.party)] if settings.party in names else body["server"]
    if settings.model:
        party["model"] = settings.model
    if settings.data:
        party["data"] = (party["data"] or {}) | {"path": settings.data}
    return Config.model_validate_json(json.dumps(body))


class Plan(msgspec.Struct, frozen=True):
    """What the agent's process is told: the configuration with its own places, as JSON, the run's folder here, and what
    all others call the model.
    """

    config: str
    folder: str
    model: str
