"""Organisations that must not share data fine-tune their language models together.

The public names. Each is imported when it is first used: `import peertune` costs nothing and brings no torch.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peertune.config import Config, read_config
    from peertune.errors import AgentError, ConfigError, MethodError, PayloadError, PeertuneError, StorageError
    from peertune.experiment import Experiment
    from peertune.federation import AgentHandle, Federation, Ref
    from peertune.ledger import Ledger
    from peertune.matchmakers import MATCHMAKERS, Matchmaker, Pair
    from peertune.methods import METHODS, Method
    from peertune.report import write_report
    from peertune.tasks.base import Example, Task

__version__ = "0.1.0"

_HOMES = {
    "peertune.config": ("Config", "read_config"),
    "peertune.errors": ("AgentError", "ConfigError", "MethodError", "PayloadError", "PeertuneError", "StorageError"),
    "peertune.experiment": ("Experiment",),
    "peertune.federation": ("AgentHandle", "Federation", "Ref"),
    "peertune.ledger": ("Ledger",),
    "peertune.matchmakers": ("MATCHMAKERS", "Matchmaker", "Pair"),
    "peertune.methods": ("METHODS", "Method"),
    "peertune.report": ("write_report",),
    "peertune.tasks.base": ("Example", "Task"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AgentError", "AgentHandle", "Config", "ConfigError", "Example", "Experiment", "Federation", "Ledger",
    "MATCHMAKERS", "METHODS", "Matchmaker", "Method", "MethodError", "Pair", "PayloadError", "PeertuneError", "Ref",
    "StorageError", "Task", "__version__", "read_config", "run", "write_report",
]  # fmt: skip


def run(config: "Config | Path", folder: Path, watch: Callable[[str, dict[str, Any]], None] | None = None) -> Path:
    """Run a configuration from start to end in the new folder `folder`; returns the path of its HTML report.

    `watch` is told (event, facts) as things happen. Raises `ConfigError`, before any training if possible.
    """
    from peertune import Experiment, read_config, write_report  # late: torch comes with them

    checked = read_config(config) if isinstance(config, Path) else config
    Experiment.create(folder, checked, watch or (lambda event, facts: None)).run()
    return write_report(folder)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"peertune has no public name {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
