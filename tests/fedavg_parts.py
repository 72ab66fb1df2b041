"""Agents that average adapters, in this process and without a run around them, so that a test can look into each."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from small import make_models, small_config

from peertune.aggregate import AGGREGATORS
from peertune.arms import make_method, make_run
from peertune.assemble import Spec, build_agents
from peertune.config.schema import Config
from peertune.engines.base import Resident
from peertune.engines.local import LocalEngine
from peertune.federation import Federation
from peertune.methods.base import State
from peertune.methods.shared import SharedAdapter
from peertune.payloads import Texts

FAMILIES = ("llama", "gpt2")  # nn.Linear, and Conv1D, which has its weight transposed
RULES = sorted(AGGREGATORS)
EXACT = [name for name in RULES if AGGREGATORS[name].exact]
Deltas = dict[str, np.ndarray]


def models_and_questions(folder: Path) -> dict[str, str]:
    """Tiny models, and beside them a file of questions."""
    rows = [
        {"prompt": f"{kind} {index}: say it", "completion": f" it is {index}", "category": kind}
        for kind in ("one", "two", "three")
        for index in range(24)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**make_models(folder), "questions": str(folder / "questions.jsonl")}


def config_of(
    models: dict[str, str], family: str = "llama", ranks: Sequence[int] = (4, 4, 4), **changes: Any
) -> Config:
    """Agents of one family, with unequal numbers of examples."""
    sizes = {"train": 44, "validation": 20, "transfer": 0, "probe": 0, "test": 4}
    task = {"type": "answers", "path": models["questions"], **sizes, "partition": {"type": "dirichlet", "alpha": 0.5}}
    agents = [
        {"model": models[family], "adapter": {"rank": rank, "alpha": 2 * rank}, "release": {"weights": "coordinator"}}
        for rank in ranks
    ]
    return small_config(models, **{"agents": agents, "task": task, "method": "fedavg", "rounds": 3, **changes})


CAST: dict[str, Any] = {}


def build(raw: bytes, names: list[str]) -> tuple[dict[str, Resident], list[dict[str, Any]]]:
    agents, facts = build_agents(raw, names)
    CAST.update(agents)
    return agents, facts


class Agents:
    """The agents of a configuration in this process, as they were after two steps, and before."""

    def __init__(self, folder: Path, config: Config) -> None:
        CAST.clear()
        spec = msgspec.json.encode(Spec(config.model_dump_json(), str(folder)))
        names = config.agent_names()
        self.engine = LocalEngine("fedavg_parts:build", spec, [names], inline=True)
        self.fed, self.cast = Federation(self.engine, names), dict(CAST)
        self.new = self._stored()
        for agent in self.fed.everyone:
            agent.fit(2)
        self.warm = self._stored()

    def _stored(self) -> dict[str, Any]:
        kept = Texts(tuple(receipt.digest for receipt in getattr(self, "new", {}).values()))
        receipts = {agent.name: self.fed.fetch(agent.checkpoint(kept)) for agent in self.fed.everyone}
        self.fed.end_round()
        return receipts


class Group:
    """A federation in this process, without a run around it."""

    def __init__(self, agents: Agents, config: Config, warm: bool = True) -> None:
        self.fed, self.cast = agents.fed, agents.cast
        self.facts = {facts["name"]: facts for facts in agents.engine.facts}
        self.method: Any = make_method(make_run(config, ([], []), agents.engine.facts, None), config.method)
        for name, receipt in (agents.warm if warm else agents.new).items():
            self.fed[name].restore(receipt)
        self.fed.end_round()
        self.state: State = self.method.init(self.fed)
        self.begun = self.fed.end_round().rows

    def round(self, t: int) -> list[Any]:
        """The ledger's rows of one round; before it the agents are what they were after the last one."""
        self.fed.begin_round(t)
        self.state = self.method.round(self.state, self.fed, t)
        return self.fed.end_round().rows

    def deploy(self) -> list[Any]:
        self.method.deploy(self.state, self.fed)
        return self.fed.end_round().rows

    @property
    def shared(self) -> SharedAdapter:
        return SharedAdapter.of(self.state)

    def delta(self, name: str) -> Deltas:
        """What the adapter of an agent, with its frozen parts, adds to the weights."""
        lm = self.cast[name]._lm
        tensors = {**lm.adapter_state(name), **lm.frozen(name)}
        return dense({path: tensor.double().numpy() for path, tensor in tensors.items()}, self.facts[name]["scale"])

    def average(self) -> Deltas:
        """sum p_k dW_k of all agents."""
        examples = {name: facts["train"] for name, facts in self.facts.items()}
        deltas = {name: self.delta(name) for name in examples}
        total = sum(examples.values())
        return {path: sum(n / total * deltas[name][path] for name, n in examples.items()) for path in deltas["a0"]}

    def adapter(self, name: str) -> dict[str, torch.Tensor]:
        return self.cast[name]._lm.adapter_state(name)


Make = Callable[..., Group]


def maker(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Agents are built once for all tests that want the same ones."""
    known: dict[str, Agents] = {}

    def made(warm: bool = True, **changes: Any) -> Group:
        config = config_of(models, **changes)
        key = repr(config.agents)
        if key not in known:
            known[key] = Agents(tmp_path_factory.mktemp("agents"), config)
        return Group(known[key], config, warm)

    return made


def fedavg(rule: str, **changes: Any) -> dict[str, Any]:
    return {"type": "fedavg", "aggregator": rule, **changes}


def dense(tensors: Mapping[str, np.ndarray], scale: float) -> Deltas:
    """s B R A + F_B F_A of each matrix."""
    found: Deltas = {}
    for path in {name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_A." in name}:
        a, b = (tensors[f"{path}.lora_{side}.weight"].astype(np.float64) for side in "AB")
        found[path] = scale * b @ tensors.get(f"{path}.lora_R.weight", np.eye(len(a))) @ a
        if f"{path}.frozen_A.weight" in tensors:
            down, up = (tensors[f"{path}.frozen_{side}.weight"].astype(np.float64) for side in "AB")
            found[path] += up @ down
    return found


def distance(found: Deltas, wanted: Deltas) -> float:
    """Relative, over all matrices."""
    missed = np.sqrt(sum(((found[path] - wanted[path]) ** 2).sum() for path in wanted))
    return float(missed / np.sqrt(sum((each**2).sum() for each in wanted.values())))


def of_kind(rows: list[Any], kind: str) -> list[dict[str, Any]]:
    return [row.body for row in rows if row.kind == kind]
