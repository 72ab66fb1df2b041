"""Configuration -> the agents of one worker: task, data, models, adapters, rules. Runs where the agents live."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from peertune.agent import Agent, AgentSettings
from peertune.agent.desk import AgentData
from peertune.agent.faults import Liar, shuffled
from peertune.clock import Availability, Clock
from peertune.config.asynchrony import AsynchronyConfig, patience_among
from peertune.config.guarding import Guarding
from peertune.config.schema import (
    Adapter,
    AgentConfig,
    AnswersTask,
    CodeletsTask,
    Config,
    HumanEvalTask,
    IntentTask,
    MBPPTask,
    Party,
    RecordsTask,
    TaskConfig,
    Training,
)
from peertune.engines.base import Engine, Resident
from peertune.engines.local import Listener, LocalEngine
from peertune.errors import ConfigError
from peertune.guard.outgoing import Rules
from peertune.lm.cut import layers_of
from peertune.lm.encode import render_example
from peertune.lm.model import LanguageModel
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.lm.source import fingerprint
from peertune.machine import check_memory, seating
from peertune.partition import PARTITIONS, deal, hold_out
from peertune.payloads import Weights
from peertune.profiles import AgentRecord, category_histogram, static_features
from peertune.realtime import Asynchrony, RealClock
from peertune.tasks.answers import ORDER, Answers
from peertune.tasks.base import CODE_TASKS, Example, Task
from peertune.tasks.codelets import Codelets
from peertune.tasks.disjoint import check_disjoint
from peertune.tasks.humaneval import HumanEval
from peertune.tasks.intent import Intent
from peertune.tasks.mbpp import MBPP
from peertune.tasks.records import Records, read_examples
from peertune.tasks.sandbox import Sandbox

BUILDER = "peertune.assemble:build_agents"

Facts = dict[str, Any]
Private = tuple[list[Example], list[Example]]  # an agent's examples to train and to validate


class Spec(msgspec.Struct, frozen=True):
    """What a worker is told: the resolved configuration as JSON, and the run's folder."""

    config: str
    folder: str


def start_engine(config: Config, folder: Path, listener: Listener) -> LocalEngine:
    """The local engine with all agents of a run. Raises `ConfigError`."""
    groups, environments = seating(config)
    check_memory(config, groups)
    return LocalEngine(
        BUILDER,
        msgspec.json.encode(Spec(config.model_dump_json(), str(folder))),
        groups,
        inline=config.engine.workers == 0,
        deadline=config.engine.deadline,
        patience=patience_among(config),
        environments=environments,
        listener=listener,
    )


def build_agents(raw: bytes, names: list[str]) -> tuple[dict[str, Resident], list[Facts]]:
    """The named agents of a run, and the facts that describe each. Raises `ConfigError`."""
    spec = msgspec.json.decode(raw, type=Spec)
    config = Config.model_validate_json(spec.config)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    sandbox = Sandbox(allow_unsafe=config.sandbox == "unsafe") if config.task.type in CODE_TASKS else None
    task = make_task(config.task, config.seed, sandbox)
    dealt = dealt_examples(config, task)
    (transfer, probe), test = public_examples(config), task.examples("test")
    models: dict[str, LanguageModel] = {}
    agents: dict[str, Resident] = {}
    facts = []
    for name, party in config.parties().items():
        if name not in names:
            continue
        lm = models.get(party.model) or LanguageModel.load(party.model, device_of(config), task.labels, config.seed)
        models[party.model] = lm
        own = dealt.get(name) or own_examples(party, config.seed, lm.tokenizer)
        splits = {"train": own[0], "validation": own[1], "transfer": transfer, "probe": probe, "test": test}
        check_disjoint(_whose(name, party), **splits)
        data = AgentData(*own, transfer, probe, test, task)
        agent = _agent(config, party, lm, data, Path(spec.folder) / "agents" / name)
        agents[name] = agent
        isolation = sandbox.isolation if sandbox else ""
        facts.append(_facts(agent, party, party.adapter or config.adapter, lm, data) | {"isolation": isolation})
    return agents, facts


def _whose(name: str, party: Party) -> str:
    """The name of an agent and where its data came from, for messages."""
    data = party.data if isinstance(party, AgentConfig) else None
    return f"agent {name} ({data.path})" if data else f"agent {name}"


def make_clock(config: Config, engine: Engine) -> Clock | RealClock:
    """The virtual time of the configured availability, or the real time of asynchrony; else one that stands still."""
    names, rules = config.agent_names(), config.availability
    if config.asynchrony and config.asynchrony != AsynchronyConfig():
        return RealClock(names, engine, Asynchrony(**config.asynchrony.model_dump()), config.rounds)
    return Clock(names, Availability(**rules.model_dump()) if rules else None, config.seed)


def make_task(config: TaskConfig, seed: int, sandbox: Sandbox | None) -> Task:
    """The task that `config` describes. Raises `ConfigError` if its files are missing or malformed."""
    match config:
        case CodeletsTask():
            sizes = {"train": config.train, "validation": config.validation, "transfer": config.transfer}
            return Codelets(seed, **sizes, probe=config.probe, test=config.test, sandbox=sandbox)
        case MBPPTask():
            return MBPP(config.path, sandbox, public=config.transfer if isinstance(config.transfer, int) else 0)
        case HumanEvalTask():
            return HumanEval(config.path, sandbox)
        case RecordsTask():
            return Records(test=config.test, transfer=config.transfer)
        case AnswersTask():
            return Answers(config.path, seed, {split: getattr(config, split) for split in ORDER})
        case IntentTask():
            sizes = {split: getattr(config, split) for split in ORDER}
            return Intent(config.path, config.test_path, seed, sizes, as_text=config.output == "text")


def public_examples(config: Config) -> tuple[list[Example], list[Example]]:
    """The problems that everybody holds: those to learn from each other's answers, and the probe, whose answers are
    known. Raises `ConfigError` if their file cannot be read.
    """
    task = config.task
    if isinstance(task, CodeletsTask | AnswersTask | IntentTask):
        made = make_task(task, config.seed, None)
        return made.examples("transfer"), made.examples("probe")
    if isinstance(task.transfer, int):
        return make_task(task, config.seed, None).examples("transfer"), []
    return (read_examples(task.transfer, completions=False) if task.transfer else []), []


def dealt_examples(config: Config, task: Task) -> dict[str, Private]:
    """What the task deals to each agent, to train and to validate; nothing where agents bring their own."""
    if not isinstance(config.task, CodeletsTask | MBPPTask | AnswersTask | IntentTask) or config.agents[0].data:
        return {}
    pools = (task.examples("train"), task.examples("validation"))
    section = config.task.partition
    partition = PARTITIONS[section.type](**section.model_dump(exclude={"type"}))
    dealt = deal(pools, task.categories, len(config.agents), partition, config.seed)
    both = zip(config.agents, dealt, strict=True)
    found = [_faulty(agent, examples, config.seed) for agent, examples in both]
    return dict(zip(config.agent_names(), found, strict=True))


def own_examples(party: Party, seed: int, tokenizer: Any) -> Private:
    """What a party brings, to train and to validate; a server nothing. Raises `ConfigError`."""
    if not isinstance(party, AgentConfig) or party.data is None:
        return [], []
    examples = read_examples(party.data.path, tokenizer)
    return _faulty(party, hold_out(party.data.path, examples, party.data.validation, seed), seed)


def _faulty(config: AgentConfig, examples: Private, seed: int) -> Private:
    train, validation = examples
    return (shuffled(train, seed), shuffled(validation, seed)) if config.fault else examples


def _agent(config: Config, party: Party, lm: LanguageModel, data: AgentData, folder: Path) -> Agent:
    name = folder.name
    adapter = party.adapter or config.adapter
    seed = int(np.random.SeedSequence([config.seed, *name.encode()]).generate_state(1)[0])
    lm.add_adapter(name, adapter_settings(adapter), seed)
    trainable = sum(parameter.numel() for parameter in lm.trainable(name).values())
    record = AgentRecord(
        static=static_features(lm.family, lm.parameters, trainable, len(data.train)),
        histogram=category_histogram((example.category for example in data.train), data.task.categories),
    )
    settings = AgentSettings(
        name=name,
        seed=config.seed,
        folder=folder,
        training=training_settings(config.training, lm.max_length),
        max_new_tokens=config.evaluation.max_new_tokens,
        codebleu=config.evaluation.codebleu,
        release=party.release.model_dump(),
        guard=rules_of(party.guard or config.guard),
    )
    liar = isinstance(party, AgentConfig) and party.fault == "liar"
    return (Liar if liar else Agent)(settings, lm, data, record)


def rules_of(section: Guarding) -> dict[str, Rules]:
    """What the guard does, by payload kind."""
    return {kind: Rules(**rules) for kind, rules in section.model_dump().items()}


def adapter_settings(section: Adapter) -> AdapterSettings:
    return AdapterSettings(section.rank, section.alpha, section.dropout, section.target_modules)


def training_settings(section: Training, context: int) -> TrainingSettings:
    """`context`: of the model, in tokens."""
    return TrainingSettings(
        learning_rate=section.learning_rate,
        batch_size=section.batch_size,
        warmup_steps=section.warmup_steps,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
        accumulate=section.accumulate,
        max_length=min(section.max_length, context),
    )


def _facts(agent: Agent, config: Party, adapter: Adapter, lm: LanguageModel, data: AgentData) -> Facts:
    """What the ledger says of an agent; `preview` is only shown to the agent's owner."""
    train, validation, test = data.train, data.validation, data.test
    return {
        "name": agent.name,
        "model": config.model,
        "fingerprint": fingerprint(config.model),
        "adapter": _kind_of_adapter(config.model, agent.adapter()),
        "rank": adapter.rank,
        "scale": adapter.alpha / adapter.rank,
        "family": lm.family,
        "layers": layers_of(lm, agent.name),
        "vocabulary": vocabulary(lm),
        "parameters": lm.parameters,
        "trainable": sum(parameter.numel() for parameter in lm.trainable(agent.name).values()),
        "train": len(train),
        "validation": len(validation),
        "test": len(test),
        "truncated": agent.truncated,
        "chats": sum(example.chat for example in train),
        "data": _digest((*train, *validation, *test)),
        "histogram": list(category_histogram((example.category for example in train), data.task.categories)),
        "preview": render_example(agent.first_row, lm.tokenizer, lm.labels) if train else "",
    }


def _kind_of_adapter(model: str, adapter: Weights) -> str:
    """Equal for agents that could take each other's adapter: one base, and the same arrays by name and shape."""
    shapes = sorted((name, array.shape) for name, array in adapter.tensors.items())
    return hashlib.sha256(msgspec.json.encode([fingerprint(model), shapes])).hexdigest()[:16]


def vocabulary(lm: LanguageModel) -> str:
    """Equal for models whose logits are about the same tokens, or classes."""
    chosen = list(lm.labels) or sorted(lm.tokenizer.get_vocab().items())
    return hashlib.sha256(msgspec.json.encode([lm.width, chosen])).hexdigest()[:16]


def _digest(examples: Sequence[Example]) -> str:
    """SHA-256 of what an agent trains and is measured on: other data, another run."""
    texts = [[example.prompt, example.completion, *example.tests] for example in examples]
    return hashlib.sha256(msgspec.json.encode(texts)).hexdigest()


def device_of(config: Config) -> str:
    """Where models run. Raises `ConfigError` if it is not there."""
    if config.engine.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.engine.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "engine.device is 'cuda', but torch sees no CUDA device; use `device: auto` or run `peertune doctor`"
        )
    return config.engine.device
