"""Hand out an agent's adapter as an ordinary PEFT folder, and prove that it is the one that was evaluated."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from peertune.assemble import make_task
from peertune.checkpoint import Blobs
from peertune.config.schema import AgentConfig, Config, IntentTask
from peertune.errors import ConfigError, PeertuneError, StorageError
from peertune.experiment import START
from peertune.ledger import Ledger
from peertune.lm.encode import encode_message, encode_prompt
from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.lm.source import fingerprint
from peertune.lm.train import Trainer
from peertune.runs import LEDGER, stored_config

TOLERANCE = 1e-4  # of a logit, fp32: the arrays are the same, the order of additions need not be
PROBE = 'def total(values):\n    """Return the sum of values plus 3."""'
NEW_TOKENS = 24


def export_adapter(folder: Path, agent: str, to: Path, arm: str | None = None) -> str:
    """Write the adapter, load it with PEFT as anyone would, compare logits and a greedy text. Returns what to print.

    Raises `ConfigError` for unknown names or a taken folder, `PeertuneError` if they differ; then nothing is left.
    """
    config = stored_config(folder)
    arm = arm or str(config.method.type)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} exists and is not an empty folder; name another one")
    lm = model_of(folder, agent, arm)
    target = to.resolve()
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")  # an adapter appears whole or not at all
    try:
        with _storage(to):
            lm.save_adapter(agent, unfinished)
        difference = _compare(lm, agent, unfinished)
        if not difference <= TOLERANCE:
            raise PeertuneError(
                f"the exported adapter does not behave like the run's (logits differ by {difference:.2g}); "
                "nothing was kept"
            )
        with _storage(to):
            unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return (
        f"OK: {agent} after {arm} is in {to}; loaded again, its logits agree within {difference:.0e} "
        f"and its {'answer' if lm.labels else 'greedy text'} is the same"
    )


def model_of(folder: Path, agent: str, arm: str) -> LanguageModel:
    """An agent's model, with its adapter as it was after the last round of `arm`. Raises `ConfigError`: unknown names,
    another model than it was; `StorageError`: a checkpoint that cannot be read.
    """
    config = stored_config(folder)
    digest = _digest(folder, config, agent, arm)
    agent_config = config.agents[config.agent_names().index(agent)]
    return _restored(config, agent_config, agent, _checkpoint(folder, agent, digest))


@contextmanager
def _storage(to: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{to} cannot be written ({reason}); free space or check the rights") from error


def _checkpoint(folder: Path, agent: str, digest: str) -> bytes:
    try:
        return Blobs(folder / "agents" / agent / "checkpoints").get(digest)
    except StorageError as error:
        raise StorageError(f"{error}; put the file back, or export another --arm") from None


def _digest(folder: Path, config: Config, agent: str, arm: str) -> str:
    if agent not in config.agent_names():
        raise ConfigError(
            f"the run {folder.name!r} has no agent {agent!r}; its agents: {', '.join(config.agent_names())}"
        )
    if arm not in (START, *config.arms()):
        raise ConfigError(f"the run {folder.name!r} has no arm {arm!r}; its arms: {START}, {', '.join(config.arms())}")
    ledger = Ledger.read(folder / LEDGER)
    checkpoints = list(ledger.events("checkpoint", arm))
    run = next(ledger.events("run"), None)
    ledger.close()
    if not checkpoints:
        raise ConfigError(f"{arm} has no complete round yet; continue with `peertune resume {folder.name}`")
    assert run  # the first event, before any checkpoint
    model = config.agents[config.agent_names().index(agent)].model
    (recorded,) = [facts["fingerprint"] for facts in run.body["agents"] if facts["name"] == agent]
    if fingerprint(model) != recorded:
        raise ConfigError(f"the model {model!r} is not the one that {agent} was trained on; put it back to export")
    return checkpoints[-1].body["agents"][agent]


def _restored(config: Config, agent_config: AgentConfig, name: str, blob: bytes) -> LanguageModel:
    """The agent's model with the adapter of a checkpoint."""
    adapter = agent_config.adapter or config.adapter
    labels = make_task(config.task, config.seed, None).labels if isinstance(config.task, IntentTask) else ()
    lm = LanguageModel.load(agent_config.model, labels=labels)
    lm.add_adapter(name, AdapterSettings(adapter.rank, adapter.alpha, adapter.dropout, adapter.target_modules), seed=0)
    tensors = load_safetensors(blob)
    tensors.pop("record")
    Trainer(lm, name, TrainingSettings()).load_state(tensors)
    return lm


def _compare(lm: LanguageModel, agent: str, folder: Path) -> float:
    """Largest difference of a logit on a fixed prompt and its greedy continuation; infinite if the texts differ.

    Of a classifier the logits of the classes alone.
    """
    exported = _as_anyone_would(lm, folder)
    framed = encode_message(lm.tokenizer, PROBE, lm.max_length)
    ids = list(framed.ids) if lm.labels else encode_prompt(lm.tokenizer, PROBE)
    difference = 0.0
    with torch.inference_mode(), lm.using(agent) as live:
        for _ in range(1 if lm.labels else NEW_TOKENS):
            batch = torch.tensor([ids])
            ours = live(input_ids=batch.to(lm.device)).logits.flatten(0, -2).float().cpu()
            theirs = exported(input_ids=batch).logits.flatten(0, -2)
            if ours[-1].argmax() != theirs[-1].argmax():
                return float("inf")
            difference = max(difference, (ours - theirs).abs().max().item())
            ids.append(int(ours[-1].argmax()))
    return difference


def _as_anyone_would(lm: LanguageModel, folder: Path) -> PeftModel:
    """The exported adapter on its base, with transformers and PEFT alone."""
    loader: Any = AutoModelForSequenceClassification if lm.labels else AutoModelForCausalLM
    options = {"num_labels": len(lm.labels), "ignore_mismatched_sizes": True} if lm.labels else {}
    with quiet():
        base = loader.from_pretrained(lm.source, torch_dtype=torch.float32, use_safetensors=True, **options)
        return PeftModel.from_pretrained(base, str(folder)).eval()
