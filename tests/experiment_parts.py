"""What disturbs small runs: agents with a spoilt verb, a stop in the middle of a round, workers that can be killed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peertune.agent import Agent
from peertune.experiment import Experiment, Interrupted

TWO = "llama gpt2"


def spoil(patch: pytest.MonkeyPatch, verb: str, behave: Callable[..., Any]) -> None:
    """Every agent's `verb` becomes `behave(original, agent, *args)`."""
    original = getattr(Agent, verb)
    patch.setattr(Agent, verb, lambda agent, *args: behave(original, agent, *args))


def stopped_after(folder: Path, config: Any, arm: str, round: int) -> Experiment:
    """A run that was asked to stop during that round."""

    def watch(event: str, body: dict[str, Any]) -> None:
        if event == "begin" and (body["arm"], body["round"]) == (arm, round):
            experiment.request_stop()

    experiment = Experiment.create(folder, config, watch)
    with pytest.raises(Interrupted, match=rf"continue with `peertune resume {folder.name}`"):
        experiment.run()
    return experiment


def workers() -> list[int]:
    """Worker processes of this one."""
    children = [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
    return [int(pid) for pid in children if b"peertune.engines.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
