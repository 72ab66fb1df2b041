"""Split learning in a configuration: what does not fit together."""

from typing import TYPE_CHECKING

from peertune.codecs import Codec
from peertune.errors import ConfigError

if TYPE_CHECKING:
    from peertune.config.schema import Config, MethodConfig


def check_split(config: "Config", name: str, method: "MethodConfig") -> dict[str, str]:
    """What agents must release, and to whom. Raises `ValueError` naming the keys that do not fit."""
    _same_model(config, name)
    if unknown := sorted(set(method.cuts or ()) - set(config.agent_names())):
        raise ValueError(
            f"{name}: `cuts` names {unknown[0]!r}, which is no agent; the agents are {', '.join(config.agent_names())}"
        )
    if method.shape == "plain" and method.last is not None:
        raise ValueError(f"{name}: `shape: plain` has one cut, the head is at the server; remove `last`")
    deepest = max((method.cuts or {}).get(agent, method.cut) for agent in config.agent_names())
    if method.last is not None and method.last <= deepest:
        raise ValueError(f"{name}: `last` is {method.last}, but {deepest} blocks are below the first cut; raise `last`")
    try:
        Codec(method.codec, method.outliers, method.keep)
    except ConfigError as error:
        raise ValueError(f"{name}: {error}") from None
    sent = {"labelled": "agents"} if method.shape == "plain" else {"activations": "agents", "gradient": "agents"}
    return {"weights": "coordinator", **sent}


def _same_model(config: "Config", name: str) -> None:
    if config.server is None:
        raise ValueError(f"{name}: split needs a server, which trains the middle; add `server: {{model: ...}}`")
    own = config.server.adapter or config.adapter
    for agent, party in zip(config.agent_names(), config.agents, strict=True):
        if party.model != config.server.model:
            raise ValueError(
                f"{name}: split needs one base model for all; {agent} ({party.model}) differs from the server "
                f"({config.server.model}). Give all the same `model`, or use knexa, which mixes models"
            )
        if (party.adapter or config.adapter) != own:
            raise ValueError(f"{name}: split needs one adapter shape for all; give {agent} the server's `adapter`")
