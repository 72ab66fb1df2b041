"""Small true runs of split learning, and what a run left in checkpoints and ledger."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from killing import questions
from safetensors.torch import load as load_safetensors
from small import last_checkpoint, make_models, small_config

from peertune.checkpoint import Blobs
from peertune.config.schema import Config
from peertune.ledger import Ledger

SPLIT: dict[str, Any] = {"type": "split"}
PLAIN, V1, INT8 = SPLIT | {"shape": "plain"}, SPLIT | {"variant": "v1"}, SPLIT | {"codec": "int8"}
RELEASE = {"weights": "coordinator", "activations": "agents", "labelled": "agents", "gradient": "agents"}
ROUNDS, STEPS, BATCH, WARM = 2, 3, 4, 2
State = dict[str, torch.Tensor]


def models_and_questions(folder: Path) -> dict[str, str]:
    """Tiny models without dropout, and beside them a file of questions."""
    made = make_models(folder)
    for model in made.values():  # gpt2 has dropout by default
        path = Path(model) / "config.json"
        path.write_text(re.sub(r'pdrop": 0.1', 'pdrop": 0.0', path.read_text()))
    return {**made, "questions": questions(folder)}


def config_of(models: dict[str, str], who: str = "llama llama llama", **changes: Any) -> Config:
    names = who.split()
    sizes = {"train": 24, "validation": 12, "transfer": 0, "probe": 0, "test": 2}
    task = {"type": "answers", "path": models.get("questions", ""), **sizes, "partition": "iid"}
    agents = [{"model": models.get(name, name), "release": RELEASE} for name in names]
    server = {"model": models.get(names[0], names[0])}
    usual = {"task": task, "agents": agents, "server": server, "evaluation": {"max_new_tokens": 4, "every": 2}}
    return small_config({}, "", **(usual | {"method": SPLIT} | changes))


def stored(folder: Path, arm: str, name: str) -> State:
    """The last checkpoint of a party."""
    digest = last_checkpoint(Ledger.read(folder / "ledger.sqlite"), arm).body["agents"][name]
    return load_safetensors(Blobs(folder / "agents" / name / "checkpoints").get(digest))


def adapter_of(folder: Path, arm: str, name: str) -> State:
    state = stored(folder, arm, name)
    return {key.removeprefix("adapter/"): tensor for key, tensor in state.items() if key.startswith("adapter/")}


def difference(left: State, right: State) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def integers(count: int) -> np.ndarray:
    return np.zeros(count, np.int32)
