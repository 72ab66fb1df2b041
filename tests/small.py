"""Small true runs: tiny models, a few problems, two rounds; a second or two each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import make_tiny_model

from peertune.config.schema import Config
from peertune.experiment import Experiment
from peertune.ledger import Event, Ledger

FAMILIES = ("llama", "gpt2")
# the paper's exchange: one source for all prompts, and every text is used; texts of tiny models pass no test
PAPER: dict[str, Any] = {
    **{"type": "knexa", "route": "set", "matchmaker": "linucb", "reward": "private"},
    **{"tested": False, "keep_best": False},
}
# a source for every prompt; every text is offered, and none is too unlikely to be pulled
ROUTED: dict[str, Any] = {"type": "knexa", "router": {"type": "beta", "floor": 0.0}, "tested": False, "audit": 2}


def make_models(folder: Path) -> dict[str, str]:
    """A tiny model of each family in `folder`: name -> path."""
    return {family: str(make_tiny_model(folder / family, family)) for family in FAMILIES}


def small_config(models: dict[str, str], who: str = "llama gpt2 llama gpt2", **changes: Any) -> Config:
    """`who`: the agents' models. `changes`: sections by name; a dict is merged into the section."""
    sections: dict[str, Any] = {
        "seed": 0,
        "rounds": 2,
        "task": {
            "type": "codelets",
            "train": 48,
            "validation": 32,
            "transfer": 6,
            "probe": 4,
            "test": 8,
            "partition": "iid",
        },
        "agents": [{"model": models[name]} for name in who.split()],
        "method": PAPER,
        "budget": {"warm_start_steps": 2, "local_steps": 1, "exchange_steps": 2},
        "training": {"batch_size": 4},
        "evaluation": {"max_new_tokens": 8, "every": 2},
        "engine": {"workers": 0, "device": "cpu"},
    }
    for name, change in changes.items():
        merged = isinstance(change, dict) and isinstance(sections.get(name), dict) and "type" not in change
        sections[name] = sections[name] | change if merged else change
    return Config.model_validate_json(json.dumps(sections))


def ignore(event: str, body: dict[str, Any]) -> None:
    """A watch that looks away."""


def run(folder: Path, config: Config, watch: Callable[[str, dict[str, Any]], None] = ignore) -> Ledger:
    """Run `config` in `folder` to its end; returns the ledger."""
    experiment = Experiment.create(folder, config, watch)
    experiment.run()
    return Ledger.read(folder / "ledger.sqlite")


def resume(folder: Path, watch: Callable[[str, dict[str, Any]], None] = ignore) -> Ledger:
    """Resume the run in `folder` to its end; returns the ledger."""
    Experiment.reopen(folder, watch).run()
    return Ledger.read(folder / "ledger.sqlite")


def bodies(ledger: Ledger, kind: Any, arm: str | None = None) -> list[dict[str, Any]]:
    return [event.body for event in ledger.events(kind, arm)]


def last_checkpoint(ledger: Ledger, arm: str) -> Event:
    return list(ledger.events("checkpoint", arm))[-1]
