"""Configurations that parse but cannot work: refused before anything is loaded, with the reason and the cure."""

import importlib.util
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from peertune.aggregate import AGGREGATORS
from peertune.config.asynchrony import check_asynchrony
from peertune.config.mutual import check_aligned, check_mutual
from peertune.config.splitting import check_split
from peertune.matchmakers import Pairwise, Router
from peertune.methods.fedavg import MIXED
from peertune.methods.fedmkt import AVERAGING
from peertune.partition import MIN_TRAIN, MIN_VALIDATION
from peertune.tasks.codelets import Codelets
from peertune.tasks.mbpp import MBPP

if TYPE_CHECKING:
    from peertune.config.schema import Config, MethodConfig


RESERVED = {"coordinator", "server", "start"}  # names that the ledger gives to others
DEALT = ("answers", "intent")  # tasks of a user's file that is dealt to all agents
CATEGORIES = {task.name: len(task.categories) for task in (Codelets, MBPP)}
NEEDS = {"scores": "coordinator", "receipt": "coordinator"}  # what any method must be able to pull, and who pulls it
_SCALARS = dict.fromkeys(("claims", "verdicts", "gain"), "coordinator")
EXCHANGES: dict[str, dict[str, str]] = {  # methods whose agents learn from each other's texts, and what they must pull
    "knexa": {"profile": "coordinator", **_SCALARS, "texts": "agents"},
    "central_text": {**_SCALARS, "texts": "everyone"},
}
_OF_PAIRS = {"protocols": ("text",), "max_pairs": None, "matchmaker": {"type": "pairwise", **asdict(Pairwise())}}
_OF_PROMPTS = {"retries": 1, "agreed": False, "router": {"type": "beta", **asdict(Router())}}
TO = {"coordinator": "the coordinator", "agents": "other agents", "everyone": "the coordinator and other agents"}


def check_combinations(config: "Config") -> None:
    """Raise `ValueError` naming the keys that do not fit each other."""
    for check in (_names, _data, _partition, _methods, _unused, _evaluation, _availability, check_asynchrony):
        check(config)


def _names(config: "Config") -> None:
    names = config.agent_names()
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"agents: the name {repeated[0]!r} stands more than once; give every agent its own")
    for section, given in (("agents", names), ("baselines", config.baselines)):
        if taken := sorted(RESERVED & set(given)):
            raise ValueError(f"{section}: the name {taken[0]!r} is reserved; choose another one")
    if config.method.type in config.baselines:
        raise ValueError(
            f"baselines: {config.method.type!r} is the name of the method itself; name the baseline otherwise"
        )


def _data(config: "Config") -> None:
    task = config.task
    without = [name for name, agent in zip(config.agent_names(), config.agents, strict=True) if agent.data is None]
    if task.type in ("humaneval", "records") and without:
        raise ValueError(
            f"task {task.type!r} has no training data of its own; give {', '.join(without)} a `data: {{path: ...}}`"
        )
    if task.type in DEALT and len(without) < len(config.agents):
        raise ValueError(
            f"task {task.type!r} deals its examples to all agents; remove their `data`, or use task 'records'"
        )
    if task.type in ("codelets", "mbpp") and len(without) not in (0, len(config.agents)):
        raise ValueError(
            f"task {task.type!r} deals its examples to all agents or to none; {', '.join(without)} have "
            f"no `data`, the others do"
        )
    if (task.type == "codelets" or task.type == "mbpp") and not without:
        defaults = type(task)()
        for key in ("partition", "train", "validation"):
            if getattr(task, key, None) != getattr(defaults, key, None):
                raise ValueError(f"task.{key} is not used, because every agent has `data` of its own; remove it")


def _partition(config: "Config") -> None:
    task, agents = config.task, len(config.agents)
    if task.type == "humaneval" or task.type == "records" or config.agents[0].data is not None:
        return
    if task.type != "mbpp":
        for key, least in (("train", MIN_TRAIN), ("validation", MIN_VALIDATION)):
            if (getattr(task, key) or least * agents) < least * agents:  # null: whatever there is
                raise ValueError(
                    f"task.{key} is {getattr(task, key)}, but {agents} agents need at least {least} examples each; "
                    f"set it to {least * agents} or more"
                )
    partition = task.partition
    if partition.type == "experts" and partition.experts >= agents:
        raise ValueError(f"partition: {partition.experts} experts need more than {agents} agents; lower `experts`")
    if task.type == "answers" or task.type == "intent":  # their categories stand in a file, which is not read here
        return
    categories = CATEGORIES[task.type]
    if partition.type == "by_category" and agents > categories:
        raise ValueError(
            f"partition: by_category gives each category to one agent, and {agents} agents are more than the "
            f"{categories} categories of {task.type!r}; use another partition or fewer agents"
        )
    if partition.type == "experts" and partition.experts > categories:
        raise ValueError(
            f"partition: {partition.experts} experts cannot share the {categories} categories of {task.type!r}; "
            f"lower `experts` or use another partition"
        )


def _methods(config: "Config") -> None:
    _released(config, "every method", NEEDS)
    for name, method in config.arms().items():
        if method.type in EXCHANGES:
            _exchange(config, name, method)
            _released(config, f"{name} ({method.type})", EXCHANGES[method.type])
        if getattr(method, "server_model", False) and config.server is None:
            raise ValueError(f"{name}: `server_model` needs a server; add a section `server: {{model: ...}}`")
        if check := _OF_METHODS.get(method.type):
            check(config, name, method)


def _exchange(config: "Config", name: str, method: "MethodConfig") -> None:
    if len(config.agents) < 2:
        raise ValueError(
            f"{name}: {method.type} needs at least 2 agents, which learn from each other; add agents or use "
            f"`method: local`"
        )
    if not config.task.transfer:
        raise ValueError(
            f"{name}: {method.type} needs public prompts that agents answer for each other; set `task.transfer`"
        )


def _shared_logits(config: "Config", name: str, method: "MethodConfig") -> None:
    if not config.task.transfer:
        raise ValueError(f"{name}: kd needs public problems that all agents hold; set `task.transfer`")
    aligned = method.vocabularies == "aligned"
    _released(config, f"{name} (kd)", check_aligned(config, name, method) if aligned else {"logits": "coordinator"})


def _pairing(config: "Config", name: str, method: "MethodConfig") -> None:
    students = getattr(method.matchmaker, "max_students", 1)  # a policy without that field pairs two by two
    most = len(config.agents) // (2 if students == 1 else 1)
    if method.max_pairs and method.max_pairs > most:
        raise ValueError(f"{name}: max_pairs is {method.max_pairs}, but {len(config.agents)} agents form {most} pairs")
    sections = {key: getattr(method, key).model_dump() for key in ("matchmaker", "router")}
    given = sections | {key: getattr(method, key) for key in ("protocols", "max_pairs", "retries", "agreed")}
    if method.route == "prompt":
        _routable(config, name)
        if unused := [key for key, usual in _OF_PAIRS.items() if given[key] != usual]:
            raise ValueError(f"{name}: `{unused[0]}` is about pairs, and `route: prompt` makes none; set `route: set`")
    elif unused := [key for key, usual in _OF_PROMPTS.items() if given[key] != usual]:
        raise ValueError(
            f"{name}: `{unused[0]}` is about single prompts, and `route: set` gives a pair all of them; "
            f"set `route: prompt`"
        )
    for protocol, kind in (("adapter", "weights"), ("logits", "logits")):
        if protocol in method.protocols:
            _released(config, f"{name} (protocols: {protocol})", {kind: "agents"})
    if method.matchmaker.type == "hetero_greedy" and config.task.type == "mbpp" and not config.agents[0].data:
        raise ValueError(f"{name}: hetero_greedy compares categories, task 'mbpp' has one; use another matchmaker")


def _pooling(config: "Config", name: str, method: "MethodConfig") -> None:
    _released(config, f"{name} (centralised)", {"records": "agents"})


def _splitting(config: "Config", name: str, method: "MethodConfig") -> None:
    _released(config, f"{name} (split)", check_split(config, name, method))


def _mutual(config: "Config", name: str, method: "MethodConfig") -> None:
    _released(config, f"{name} (fedmkt)", check_mutual(config, name, method))
    if method.setting == "homogeneous":
        _one_adapter(config, name, "`setting: homogeneous`", AVERAGING)


def _averaging(config: "Config", name: str, method: "MethodConfig") -> None:
    _one_adapter(config, name, "fedavg", method.aggregator)


def _one_adapter(config: "Config", name: str, user: str, aggregator: str) -> None:
    """Adapters of one base, with the same layers, and of one shape where the aggregator cannot do with several."""
    (first, one), *others = zip(config.agent_names(), config.agents, strict=True)
    for other, agent in others:
        own, its = one.adapter or config.adapter, agent.adapter or config.adapter
        if agent.model != one.model:
            raise ValueError(
                f"{name}: {user} needs one base model for all agents; {other} ({agent.model}) differs from {first} "
                f"({one.model}). Give all the same `model`, or use knexa, which mixes models"
            )
        if its.target_modules != own.target_modules:
            raise ValueError(f"{name}: {user} needs adapters of the same layers; give all the same `target_modules`")
        if not AGGREGATORS[aggregator].mixed_ranks and (its.rank, its.alpha) != (own.rank, own.alpha):
            raise ValueError(
                f"{name}: {aggregator} needs one adapter shape for all agents; {other} (rank {its.rank}, alpha "
                f"{its.alpha}) differs from {first} (rank {own.rank}, alpha {own.alpha}). Give all the same `adapter`, "
                f"or set `aggregator` to one that takes several: {', '.join(MIXED)}"
            )
    _released(config, f"{name} ({user})", {"weights": "coordinator"})


_OF_METHODS = {
    "kd": _shared_logits,
    "centralised": _pooling,
    "knexa": _pairing,
    "fedavg": _averaging,
    "fedmkt": _mutual,
    "split": _splitting,
}


def _routable(config: "Config", name: str) -> None:
    """Routing learns whose texts are right: from public tests, or from audits on a probe."""
    task = config.task
    tested = task.type == "codelets" or (task.type == "mbpp" and isinstance(task.transfer, int))
    if not tested and not getattr(task, "probe", 0):
        raise ValueError(
            f"{name}: `route: prompt` learns from public tests or a probe whose texts are right, and task "
            f"{task.type!r} has neither here; set `route: set`"
        )


def _unused(config: "Config") -> None:
    """What is given and would be ignored; a default does no harm."""
    task, engine = config.task, config.engine
    transfers = any(method.type in (*EXCHANGES, "kd", "fedmkt") for method in config.arms().values())
    if not transfers and task.transfer and task.transfer != type(task).model_fields["transfer"].default:
        raise ValueError("task.transfer is not used, because here no agent answers prompts for another; remove it")
    if engine.workers == 0 and engine.deadline != type(engine).model_fields["deadline"].default:
        raise ValueError("engine.deadline is not used, because `workers: 0` has no process to wait for; remove it")
    evaluation = config.evaluation
    written = type(evaluation).model_fields["max_new_tokens"].default
    if task.type == "intent" and task.output == "classes" and evaluation.max_new_tokens != written:
        raise ValueError("evaluation.max_new_tokens is not used, because models choose a class; remove it")


def _released(config: "Config", user: str, needs: dict[str, str]) -> None:
    """Every agent must release what is needed; who may pull it is the agent's own decision."""
    for name, agent in zip(config.agent_names(), config.agents, strict=True):
        for kind, who in needs.items():
            if getattr(agent.release, kind) not in (who, "everyone"):
                raise ValueError(
                    f"{user} needs {kind} released to {TO[who]}, but {name} does not; set its `release.{kind}: {who}`"
                )


def _evaluation(config: "Config") -> None:
    evaluation = config.evaluation
    if evaluation.codebleu and config.task.type in ("records", *DEALT):
        raise ValueError(
            f"evaluation: CodeBLEU compares programs, task {config.task.type!r} holds any text; remove `codebleu`"
        )
    if evaluation.codebleu and not importlib.util.find_spec("codebleu"):
        raise ValueError(
            "evaluation: `codebleu` needs a library: pip install -e '.[metrics]' in the checkout; or remove it"
        )
    for each in (evaluation, evaluation.final):
        if each and max(each.k) > each.samples:
            raise ValueError(
                f"evaluation: Pass@{max(each.k)} needs at least {max(each.k)} samples, there are {each.samples}"
            )
    if evaluation.samples > 1 and evaluation.temperature == 0:
        raise ValueError(
            "evaluation: greedy decoding makes all samples the same; set `temperature` above 0 or `samples: 1`"
        )


def _availability(config: "Config") -> None:
    rules = config.availability
    if rules is None:
        return
    if unknown := sorted(set(rules.present) - set(config.agent_names())):
        raise ValueError(
            f"availability.present: there is no agent {unknown[0]!r}; the agents are {', '.join(config.agent_names())}"
        )
    for name, stays in rules.present.items():
        if not all(first <= min(last or first, config.rounds) for first, last in stays):
            raise ValueError(
                f"availability.present.{name}: expected [first, last] rounds of {config.rounds}, found "
                f"{json.dumps(stays)}; null as the last round means the end"
            )
    if not rules.stragglers and rules.slowdown != type(rules).model_fields["slowdown"].default:
        raise ValueError("availability.slowdown is not used, because nobody is slow; set `stragglers` or remove it")
