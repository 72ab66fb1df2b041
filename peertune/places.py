"""Do the models and data sets that a configuration names exist, and can its methods do with these models?

No model is loaded, nothing is downloaded, no torch imported.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peertune.codecs import Codec, layout
from peertune.config.schema import AnswersTask, Config, HumanEvalTask, IntentTask, MBPPTask, MethodConfig, RecordsTask
from peertune.errors import ConfigError
from peertune.ledger import SERVER
from peertune.lm.source import resolve
from peertune.methods import METHODS
from peertune.methods.kd import strangers
from peertune.methods.split import FAMILIES, check_cuts, uncut
from peertune.tasks.disjoint import check_disjoint
from peertune.tasks.intent import FILES
from peertune.tasks.programs import FILE_KINDS
from peertune.tasks.records import KINDS, locate, read_examples


def check_places(config: Config) -> list[str]:
    """The models and data sets that are not on this machine and will be asked of the hub, sorted.

    Raises `ConfigError`, one line each, for all that are nowhere.
    """
    remote, lines = set(), []
    for key, place, kinds in _places(config):
        try:
            if (locate(place, kinds) if kinds else resolve(place)[1]) == "hub":
                remote.add(place)
        except ConfigError as error:
            lines.append(f"[{key}] {error}")
    if lines:
        raise ConfigError("\n".join(lines))
    _check_methods(config)
    _check_public(config)
    return sorted(remote)


def uses_server(method: MethodConfig) -> bool:
    """Does the method ask anything of a server?"""
    return METHODS[method.type].needs_server or getattr(method, "server_model", False)


def _check_methods(config: Config) -> None:
    """Raise `ConfigError` if a method cannot do with its models, as far as their config.json says, or a server has
    nothing to do.
    """
    if config.server and not any(map(uses_server, config.arms().values())):
        raise ConfigError(
            "[server] no arm has a use for it, and it would be loaded and stored all the same; remove it, or add an "
            "arm of `split` or `fedmkt`, or of `kd` or `central_text` with `server_model: true`"
        )
    for name, method in config.arms().items():
        try:
            if method.type == "split":
                _check_split(config, method)
            if method.type in ("kd", "fedmkt"):
                _check_listed(config, method)
            if method.type == "kd" and method is config.method:  # as a baseline it may be left out
                _check_heads(config, method)
        except ConfigError as error:
            raise ConfigError(f"[{name}] {error}") from None


def _check_split(config: Config, method: MethodConfig) -> None:
    """The model is of a family that can be cut, has blocks where it is, and hidden states that the codec can code."""
    model = config.agents[0].model
    described = _described(model)
    if (family := described.get("model_type", FAMILIES[0])) not in FAMILIES:
        raise uncut(model, family)
    if layers := _number(described, "num_hidden_layers", "n_layer"):
        check_cuts(
            {agent: (method.cuts or {}).get(agent, method.cut) for agent in config.agent_names()}, method.last, layers
        )
    if width := _number(described, "hidden_size", "n_embd"):
        layout(Codec(method.codec, method.outliers, method.keep), 1, width)


def _check_listed(config: Config, method: MethodConfig) -> None:
    """Of a position no more tokens travel than there are; of classes all do where that takes fewer bytes."""
    if isinstance(config.task, IntentTask) and config.task.output == "classes":
        return
    whole = method.type == "kd" and method.vocabularies != "aligned"
    cure = "lower it, or set it to 0, which is all of them" if whole else "lower it"
    server = [config.server] if config.server and uses_server(method) else []
    for party in (*config.agents, *server):
        tokens = _number(_described(party.model), "vocab_size")
        if tokens and method.top_k > tokens:
            raise ConfigError(
                f"{method.type}: `top_k` is {method.top_k}, but {party.model} has {tokens} tokens; {cure}"
            )


def _check_heads(config: Config, method: MethodConfig) -> None:
    """Models of one vocabulary have heads of one width; whether it is one vocabulary, only tokenizers tell."""
    together = method.vocabularies == "one" or (method.server_model and method.vocabularies != "aligned")
    if not together or (isinstance(config.task, IntentTask) and config.task.output == "classes"):
        return
    learners = {name: party.model for name, party in config.parties().items() if name != SERVER or method.server_model}
    (first, one), *others = learners.items()
    own = _number(_described(one), "vocab_size")
    for name, model in others:
        if (tokens := _number(_described(model), "vocab_size")) and own and tokens != own:
            raise strangers(f"{name} ({model}) has {tokens}, {first} ({one}) has {own}")


def _check_public(config: Config) -> None:
    """Raise `ConfigError` if a file of public prompts holds problems of the test."""
    task = config.task
    if isinstance(task, RecordsTask) and task.transfer and locate(task.transfer) == locate(task.test) == "file":
        public = read_examples(task.transfer, completions=False)
        check_disjoint(f"task.transfer ({task.transfer})", transfer=public, test=read_examples(task.test))


def _described(model: str) -> dict[str, Any]:
    """What a model's config.json says; nothing of one that is not here or cannot be read."""
    place, origin = resolve(model)
    try:
        described = {} if origin == "hub" else json.loads((Path(place) / "config.json").read_bytes())
    except (OSError, ValueError):  # who loads the model will say what is wrong with it
        return {}
    return described if isinstance(described, dict) else {}


def _number(described: dict[str, Any], *names: str) -> int:
    """The one of these that there is; 0 if there is none."""
    return next((described[name] for name in names if isinstance(described.get(name), int)), 0)


def _places(config: Config) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(key, path, suffixes of files that are read there); a model has no suffixes."""
    task = config.task
    if isinstance(task, MBPPTask | HumanEvalTask):
        yield "task.path", task.path, FILE_KINDS
    if isinstance(task, AnswersTask):
        yield "task.path", task.path, KINDS
    if isinstance(task, IntentTask):
        yield "task.path", task.path, FILES
        yield "task.test_path", task.test_path, FILES
    if isinstance(task, RecordsTask):
        yield "task.test", task.test, KINDS
    if isinstance(task, MBPPTask | HumanEvalTask | RecordsTask) and isinstance(task.transfer, str):
        yield "task.transfer", task.transfer, KINDS
    if config.server:
        yield "server.model", config.server.model, ()
    for number, agent in enumerate(config.agents):
        yield f"agents.{number}.model", agent.model, ()
        if agent.data:
            yield f"agents.{number}.data.path", agent.data.path, KINDS
