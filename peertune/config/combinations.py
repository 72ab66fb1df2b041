"""Configurations that parse but cannot work: refused before anything is loaded, with the reason and the cure."""

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peertune.config.schema import Config


def check_combinations(config: "Config") -> None:
    """Raise `ValueError` naming the keys that do not fit each other."""
    for check in (_agents, _data, _methods, _evaluation):
        check(config)


def _agents(config: "Config") -> None:
    names = config.agent_names()
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"agents: the name {repeated[0]!r} stands more than once; give every agent its own")
    if {"coordinator", "server"} & set(names):
        raise ValueError("agents: 'coordinator' and 'server' are reserved; choose other names")


def _data(config: "Config") -> None:
    task, without = (
        config.task,
        [name for name, agent in zip(config.agent_names(), config.agents, strict=True) if agent.data is None],
    )
    if task.type in ("humaneval", "records") and without:
        raise ValueError(
            f"task {task.type!r} has no training data of its own; give {', '.join(without)} a `data: {{path: ...}}`"
        )
    if task.type in ("codelets", "mbpp") and len(without) not in (0, len(config.agents)):
        raise ValueError(
            f"task {task.type!r} deals its examples to all agents or to none; {', '.join(without)} have "
            f"no `data`, the others do"
        )
    partition = getattr(task, "partition", None)
    if partition is not None and partition.type == "experts" and partition.experts >= len(config.agents):
        raise ValueError(
            f"partition: {partition.experts} experts need more than {len(config.agents)} agents; lower `experts`"
        )


def _methods(config: "Config") -> None:
    for name, method in config.arms().items():
        if method.type != "knexa":
            continue
        if len(config.agents) < 2:
            raise ValueError(f"{name}: knexa pairs agents and needs at least 2; add agents or use `method: local`")
        if not config.task.transfer:
            raise ValueError(
                f"{name}: knexa needs public prompts that agents answer for each other; set `task.transfer`"
            )
        if method.max_pairs and method.max_pairs > len(config.agents) // 2:
            raise ValueError(
                f"{name}: max_pairs is {method.max_pairs}, but {len(config.agents)} agents form "
                f"{len(config.agents) // 2} pairs"
            )
        silent = [
            agent_name
            for agent_name, agent in zip(config.agent_names(), config.agents, strict=True)
            if agent.release.texts not in ("agents", "everyone")
        ]
        if silent:
            raise ValueError(
                f"{name}: knexa exchanges texts, but {', '.join(silent)} releases them to nobody; set "
                f"`release.texts: agents`"
            )
    if config.method.type in config.baselines:
        raise ValueError(
            f"baselines: {config.method.type!r} is the name of the method itself; name the baseline otherwise"
        )


def _evaluation(config: "Config") -> None:
    evaluation = config.evaluation
    if evaluation.codebleu and config.task.type == "records":
        raise ValueError("evaluation: CodeBLEU compares programs, task 'records' holds any text; remove `codebleu`")
    if evaluation.codebleu and not importlib.util.find_spec("codebleu"):
        raise ValueError("evaluation: `codebleu` needs a library: pip install 'peertune[metrics]', or remove it")
    if max(evaluation.k) > evaluation.samples:
        raise ValueError(
            f"evaluation: Pass@{max(evaluation.k)} needs at least {max(evaluation.k)} samples, there are "
            f"{evaluation.samples}"
        )
    if evaluation.samples > 1 and evaluation.temperature == 0:
        raise ValueError(
            "evaluation: greedy decoding makes all samples the same; set `temperature` above 0 or `samples: 1`"
        )
