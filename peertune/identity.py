"""What a run is: its configuration, and its models, data and prompts by hash. A resumed run must be what it was."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from typing import Any

from peertune.config.guarding import Guarding
from peertune.config.schema import Config
from peertune.errors import ConfigError

_PARTS = {
    "version": "the version of peertune",
    "config": "the configuration",
    "agents": "a model or its data",
    "server": "the server's model",
    "transfer": "the transfer set",
}


def identity(
    config: Config, agents: Sequence[Mapping[str, Any]], server: Mapping[str, Any] | None, prompts: Sequence[str]
) -> dict[str, Any]:
    """The body of the run's first event. `engine` is no part of it: where a run runs changes nothing. Neither are
    `availability`, `asynchrony` and `server` where there is none, and `guard` where it is the default.

    Raises `ConfigError` if two parties have different models under one name.
    """
    _check_models([*agents, *([server] if server else [])])
    left_out = {"engine", *(key for key in ("availability", "asynchrony", "server") if getattr(config, key) is None)}
    settings = config.model_dump(mode="json", exclude=left_out)
    for section in (settings, *settings["agents"], settings.get("server", {})):
        if section.get("guard") in (None, Guarding().model_dump()):
            section.pop("guard", None)
    body = {
        "config": settings,
        "agents": agents,
        "transfer": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "version": importlib.metadata.version("peertune"),
        **({"server": server} if server else {}),
    }
    return json.loads(json.dumps(body))


def _check_models(parties: Sequence[Mapping[str, Any]]) -> None:
    first: dict[str, Mapping[str, Any]] = {}
    for facts in parties:
        other = first.setdefault(facts["model"], facts)
        if other["fingerprint"] != facts["fingerprint"]:
            raise ConfigError(
                f"{other['name']} and {facts['name']} name the same model {facts['model']!r}, but their files differ "
                f"({other['fingerprint'][:12]}, {facts['fingerprint'][:12]}); give both the same files, or other names"
            )


def check_same(name: str, recorded: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if the run `name` would go on with another version, configuration, model or data."""
    for part, what in _PARTS.items():
        if recorded.get(part) != body.get(part):
            raise ConfigError(
                f"{what} of {name!r} is not what it began with; put it back, or start a new run "
                "(only `engine` may change)"
            )
