"""One agent's model at work: optimiser steps, completions, losses, and the arithmetic that they cost.

Every random draw is a function of the run's seed, the agent, a purpose and a count, so nothing depends on what else
ran before.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from peertune.lm.batches import batch_at
from peertune.lm.calibrate import costs_of
from peertune.lm.encode import Row, encode
from peertune.lm.generate import Sampling, generate
from peertune.lm.model import LanguageModel, check_tensors
from peertune.lm.score import losses
from peertune.lm.settings import TrainingSettings
from peertune.lm.train import Trainer, TrainingDiverged
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
        words = [self._seed, *self._name.encode(), *purpose.encode(), number]
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    def encode(self, prompt: str, completion: str, chat: bool = False) -> Row:
        return encode(self.lm.tokenizer, prompt, completion, self._settings.max_length, chat)

    def encode_all(self, examples: Sequence[Example]) -> list[Row]:
        return [self.encode(example.prompt, example.completion, example.chat) for example in examples]

    def step(self, groups: Sequence[tuple[Sequence[Row], float]], record: AgentRecord) -> float:
        """One optimiser step on groups of rows and their weights; returns the loss (nats a token)."""
        record.steps += 1
        return self.trainer.step(groups, self.seed("step", record.steps))

    def fitting(self, adapter: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Another's adapter as tensors. Raises `PayloadError` if names or shapes differ from the own one's."""
        tensors = {name: torch.from_numpy(array.copy()) for name, array in adapter.items()}
        check_tensors(tensors, self.lm.adapter_state(self._name))
        return tensors

    def move(self, towards: Mapping[str, torch.Tensor], share: float) -> None:
        """The adapter becomes (1 - share) * own + share * `towards`, factor by factor."""
        own = self.lm.adapter_state(self._name)
        self.lm.load_adapter(self._name, {name: torch.lerp(own[name], towards[name].float(), share) for name in own})

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
        costs = costs_of(self.lm, self._name)
        metrics = [("flops", float(sum(times * costs.flops(one) for one, times in ran.items())))]
        if trained := [costs.memory(one) for one in ran if one.kind == "training"]:
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
