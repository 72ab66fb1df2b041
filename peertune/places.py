"""Do the models and data sets that a configuration names exist? Nothing is loaded or downloaded, no torch imported."""

import json
from collections.abc import Iterator
from pathlib import Path

from peertune.config.schema import AnswersTask, Config, HumanEvalTask, IntentTask, MBPPTask, RecordsTask
from peertune.errors import ConfigError, MethodError
from peertune.lm.source import resolve
from peertune.methods.split import check_cuts
from peertune.tasks.intent import FILES
from peertune.tasks.programs import FILE_KINDS
from peertune.tasks.records import KINDS, locate


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
    _check_cuts(config)
    return sorted(remote)


def _check_cuts(config: Config) -> None:
    """Raise `ConfigError` if split learning cuts a model where it has no blocks, as far as its config.json says."""
    for name, method in config.arms().items():
        if method.type != "split":
            continue
        place, origin = resolve(config.agents[0].model)
        if origin != "hub" and (layers := _layers(Path(place) / "config.json")):
            cuts = {agent: (method.cuts or {}).get(agent, method.cut) for agent in config.agent_names()}
            try:
                check_cuts(cuts, method.last, layers)
            except MethodError as error:
                raise ConfigError(f"[{name}] {error}") from None


def _layers(path: Path) -> int:
    """Blocks of the model that a config.json describes; 0 if it does not say."""
    try:
        described = json.loads(path.read_bytes())
    except (OSError, ValueError):  # who loads the model will say what is wrong with it
        return 0
    counts = [described.get(key) for key in ("num_hidden_layers", "n_layer")] if isinstance(described, dict) else []
    return next((count for count in counts if isinstance(count, int)), 0)


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
