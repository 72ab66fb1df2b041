"""One agent's model at work: optimiser steps, completions, losses, and the arithmetic that they cost.

Every random draw is a function of the run's seed, the agent, a purpose and a count, so nothing depends on what else
ran before.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from peertune.aggregate import fold
from peertune.knowledge import Knowledge
from peertune.lm.batches import batch_at
from peertune.lm.calibrate import costs_of
from peertune.lm.classify import encode_labelled
from peertune.lm.encode import Row, encode
from peertune.lm.frozen import cores, letter, overlay
from peertune.lm.generate import Sampling, generate
from peertune.lm.model import LanguageModel, check_tensors
from peertune.lm.score import losses
from peertune.lm.seeding import derived
from peertune.lm.settings import TrainingSettings
from peertune.lm.teach import Taught, assess, expectations
from peertune.lm.train import Groups, Trainer, TrainingDiverged
from peertune.payloads import Change
from peertune.profiles import AgentRecord
from peertune.tasks.base import Example

MOST_REPEATS = 8  # of one text in one exchange


class Learner:
    """Final."""

    def __init__(self, name: str, seed: int, lm: LanguageModel, training: TrainingSettings) -> None:
        self._name, self._seed, self.lm, self._settings = name, seed, lm, training
        self.trainer = Trainer(lm, name, training)

    def seed(self, purpose: str, number: int) -> int:
        """A seed that depends on nothing but the run's seed, the agent, the purpose and a count."""
        return derived(self._seed, self._name, purpose, number)

    def encode(self, prompt: str, completion: str, chat: bool = False) -> Row:
        if self.lm.labels:
            return encode_labelled(self.lm, prompt, completion, self._settings.max_length)
        return encode(self.lm.tokenizer, prompt, completion, self._settings.max_length, chat)

    def encode_all(self, examples: Sequence[Example]) -> list[Row]:
        return [self.encode(example.prompt, example.completion, example.chat) for example in examples]

    def step(self, groups: Groups, record: AgentRecord, taught: Taught | None = None) -> float:
        """One optimiser step on groups of rows and their weights, and rows with a teacher; returns the loss (nats)."""
        record.steps += 1
        return self.trainer.step(groups, self.seed("step", record.steps), taught)

    @property
    def width(self) -> int:
        """How many tokens, or classes, the model chooses from."""
        return self.lm.width

    def expectations(self, rows: Sequence[Row], k: int) -> Knowledge:
        """What the model expects of these rows: the `k` most probable, or all where that takes fewer bytes."""
        return expectations(self.lm, self._name, rows, k if 0 < 2 * k < self.width else None)

    def assess(self, rows: Sequence[Row], k: int) -> tuple[Knowledge, np.ndarray]:
        """The `k` most probable tokens at each position of these rows, and what the model loses on each row (nats)."""
        return assess(self.lm, self._name, rows, k)

    def fitting(self, adapter: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Another's adapter as tensors. Raises `PayloadError` if names or shapes differ from the own one's."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in adapter.items()}
        check_tensors(tensors, self.lm.adapter_state(self._name))
        return tensors

    def move(self, towards: Mapping[str, torch.Tensor], share: float) -> None:
        """The adapter becomes (1 - share) * own + share * `towards`, factor by factor."""
        own = self.lm.adapter_state(self._name)
        self.lm.load_adapter(self._name, {name: torch.lerp(own[name], towards[name].float(), share) for name in own})

    def named(self, letters: str) -> list[str]:
        """The adapter's tensors that are one of these factors, A, B or R, or none: a classification head."""
        return [name for name in self.lm.trainable(self._name) if letter(name) in letters]

    def take(self, adapter: Mapping[str, np.ndarray], since: bool, seed: int) -> None:
        """Put tensors in the place of the adapter's own, in as many ranks as they have; the others start anew.

        Frozen parts are folded into those that there are (`since`), or replace them. Raises `PayloadError`, and
        changes nothing, if a name or shape is not the own one's.
        """
        frozen = {name: array for name, array in adapter.items() if ".frozen_" in name}
        factors = {name: torch.from_numpy(array.copy()) for name, array in adapter.items() if name not in frozen}
        own = self.lm.adapter_state(self._name)
        if any(letter(name) == "R" for name in factors):
            own = cores(own) | own
        whole = overlay(own, factors, seed)
        if since:
            frozen = fold({name: part.numpy() for name, part in self.lm.frozen(self._name).items()}, frozen)
        self.lm.freeze(self._name, {name: torch.from_numpy(array.copy()) for name, array in frozen.items()})
        self.trainer.put({name: whole[name] for name in factors})

    def own_batch(self, rows: Sequence[Row], record: AgentRecord) -> list[Row]:
        """The next batch of the agent's own data: without replacement, epoch after epoch."""
        size, start = self._settings.batch_size, record.cursor
        record.cursor += size
        return batch_at(rows, start, size, lambda epoch: self.seed("epoch", epoch))

    def taught_rows(self, texts: int, steps: int) -> int:
        """How many of `texts` join each of `steps` batches: as many as of the own data, and no text too often."""
        return min(self._settings.batch_size, texts, math.ceil(MOST_REPEATS * texts / steps)) if steps else 0

    def share_of_batch(self, rows: int) -> float:
        return rows / self._settings.batch_size

    def complete(self, examples: Sequence[Example], sampling: Sampling) -> list[str]:
        """One completion an example; rendered chats and plain prompts are generated apart."""
        texts = [""] * len(examples)
        for chat in (False, True):
            chosen = [index for index, example in enumerate(examples) if example.chat is chat]
            prompts = [examples[index].prompt for index in chosen]
            for index, text in zip(
                chosen, generate(self.lm, self._name, prompts, sampling, template=chat), strict=True
            ):
                texts[index] = text
        return texts

    def losses(self, rows: Sequence[Row]) -> np.ndarray:
        """Summed nats and number of tokens of each row's completion, float64 [rows, 2].

        Raises `TrainingDiverged` if one is not a number.
        """
        found = np.array(losses(self.lm, self._name, rows), dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(found).all():
            raise TrainingDiverged("expected finite losses on held-out data; lower learning_rate.")
        return found

    def take_costs(self) -> list[tuple[str, float]]:
        """What the model ran since the last call: `flops`, and the largest `memory` (bytes) if it was trained."""
        ran = self.lm.take_passes(self._name)
        if not ran:
            return []
        costs = {one: costs_of(self.lm, self._name, one.still) for one in ran}
        metrics = [("flops", float(sum(times * costs[one].flops(one) for one, times in ran.items())))]
        if trained := [costs[one].memory(one) for one in ran if one.kind == "training"]:
            metrics.append(("memory", float(max(trained))))
        return metrics


def mean_loss(losses: np.ndarray) -> float:
    """Nats a token of rows' `losses` [rows, 2]."""
    return float(losses[:, 0].sum() / losses[:, 1].sum())


def change(before: np.ndarray, after: np.ndarray) -> Change:
    """The change of the mean loss on the same rows, with its standard error over rows."""
    differences = before[:, 0] - after[:, 0]
    spread = differences.std(ddof=1) * math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return Change(mean_loss(before), mean_loss(after), float(spread / before[:, 1].sum()))
