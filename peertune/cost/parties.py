"""All that a configuration says of its agents before a run: models without weights, and the rows of their data."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from peertune import assemble
from peertune.config.schema import Config
from peertune.lm.batches import batch_at
from peertune.lm.blueprint import ADAPTER, Blueprint
from peertune.lm.classify import encode_labelled
from peertune.lm.encode import Row, cut_left, encode, encode_prompt
from peertune.lm.flops import Costs, Pass
from peertune.lm.model import LanguageModel
from peertune.lm.seeding import derived
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.lm.train import micro_batch
from peertune.tasks.base import Example

Models = dict[tuple[str, AdapterSettings, str, tuple[str, ...]], Blueprint]  # by source, device and labels, too
BATCH = 64  # rows of a batch without gradients, as in `lm.score` and `lm.generate`


@dataclass(slots=True)
class Position:
    """How far an agent has come: what it has drawn of its own data, and its optimiser steps."""

    cursor: int = 0
    steps: int = 0


@dataclass(frozen=True, eq=False)
class Party:
    """An agent, or the server. `settings`: of its adapter. `seed`: the run's. `examples`: its own, to train on;
    `held_out`: to validate.
    """

    name: str
    blueprint: Blueprint
    settings: AdapterSettings
    training: TrainingSettings
    seed: int
    examples: Sequence[Example]
    held_out: Sequence[Example]
    _rows: dict[Example, Row] = field(default_factory=dict, init=False)
    _heads: dict[Example, list[int]] = field(default_factory=dict, init=False)

    @cached_property
    def train(self) -> list[Row]:
        return self.encode_all(self.examples)

    @cached_property
    def validation(self) -> list[Row]:
        return self.encode_all(self.held_out)

    @property
    def lm(self) -> LanguageModel:
        """Without weights."""
        return self.blueprint.lm

    @cached_property
    def costs(self) -> Costs:
        return self.blueprint.costs()

    @cached_property
    def hidden(self) -> int:
        """The width of hidden states."""
        with self.lm.using(ADAPTER) as model:
            return int(model.config.get_text_config().hidden_size)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the adapter's tensors, by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.lm.trainable(ADAPTER).items()}

    def encode_all(self, examples: Iterable[Example]) -> list[Row]:
        """As the agent does, what it learns from and is measured on."""
        found = list(examples)
        self._rows.update((each, self._encode(each)) for each in found if each not in self._rows)
        return [self._rows[each] for each in found]

    def answered(self, examples: Iterable[Example], new_tokens: int) -> list[Row]:
        """The same problems with answers of so many tokens."""
        if self.lm.labels:
            return self.encode_all(examples)
        length, rows = self.training.max_length, []
        for prompt in self._prompts(examples, length - new_tokens - 1):
            rows.append(Row((*prompt, *[0] * (new_tokens + 1))[:length], len(prompt), False))
        return rows

    def draw(self, rows: Sequence[Row], position: Position) -> list[Row]:
        """The next batch of its own data, as in the run."""
        start, size = position.cursor, self.training.batch_size
        position.cursor += size
        return batch_at(rows, start, size, lambda epoch: derived(self.seed, self.name, "epoch", epoch))

    def fit(self, position: Position, steps: int, pooled: Sequence[Row] = ()) -> list[Pass]:
        """What local training runs: `steps` batches, and a look at validation data that the last step did no harm."""
        if steps == 0:
            return []
        rows = [*self.train, *pooled]
        position.steps += steps
        passes = [one for _ in range(steps) for one in self.step(self.draw(rows, position))]
        return [*passes, *self.score(self.validation[: self.training.batch_size])]

    def step(self, rows: Sequence[Row]) -> list[Pass]:
        """One optimiser step on these rows: micro-batches of like length, each padded to its longest row."""
        return _padded("training", rows, micro_batch(len(rows), self.training.accumulate, self.lm.device))

    def score(self, rows: Sequence[Row]) -> list[Pass]:
        """Losses of rows, or logits for them."""
        return _padded("forward", rows, BATCH)

    def answer(self, examples: Sequence[Example], new_tokens: int) -> list[Pass]:
        """A text of so many tokens for each problem, or its class."""
        if self.lm.labels:
            return self.score(self.encode_all(examples))
        passes = []
        for chat in (False, True):
            prompts = self._prompts((each for each in examples if each.chat is chat), self.lm.max_length - new_tokens)
            for rows, width in _batches(list(map(len, prompts)), BATCH):
                passes.append(Pass("generation", len(rows), width, new_tokens))
        return passes

    def _encode(self, example: Example) -> Row:
        length = self.training.max_length
        if self.lm.labels:
            return encode_labelled(self.lm, example.prompt, example.completion, length)
        return encode(self.lm.tokenizer, example.prompt, example.completion, length, example.chat)

    def _prompts(self, examples: Iterable[Example], room: int) -> list[list[int]]:
        tokenizer, heads = self.lm.tokenizer, []
        for each in examples:
            if each not in self._heads:
                self._heads[each] = encode_prompt(tokenizer, each.prompt, each.chat)
            heads.append(cut_left(tokenizer, self._heads[each], max(1, room)))
        return heads


def _batches(lengths: Sequence[int], size: int) -> Iterator[tuple[list[int], int]]:
    """Rows of like length together, by their numbers, and how wide each batch is."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for start in range(0, len(order), size):
        yield order[start : start + size], lengths[order[start : start + size][-1]]


def _padded(kind: Literal["forward", "training"], rows: Sequence[Row], size: int) -> list[Pass]:
    return [
        Pass(kind, len(part), width, sum(rows[number].loss_tokens for number in part))
        for part, width in _batches([len(row.ids) for row in rows], size)
    ]


@dataclass(frozen=True, eq=False)
class World:
    """The parties of a configuration, and the public problems that all of them hold."""

    config: Config
    agents: list[Party]
    server: Party | None
    transfer: list[Example]
    probe: list[Example]

    @property
    def parties(self) -> list[Party]:
        """The agents, and the server if there is one."""
        return [*self.agents, *([self.server] if self.server else [])]

    def positions(self) -> dict[str, Position]:
        """Where every party stands after the warm start of the agents, from which all arms begin."""
        steps, size = self.config.budget.warm_start_steps, self.config.training.batch_size
        server = {self.server.name: Position()} if self.server else {}
        return {agent.name: Position(steps * size, steps) for agent in self.agents} | server

    def graded(self, t: int) -> bool:
        """Is there an evaluation after round `t`?"""
        return t == self.config.rounds or t % self.config.evaluation.every == 0


def world_of(config: Config, models: Models | None = None) -> World:
    """Read the data and the models' shapes. Nothing is trained, no weights are read. `models`: known from others.

    Raises `ConfigError`: a model or data set that is not there or cannot be read.
    """
    task = assemble.make_task(config.task, config.seed, None)
    dealt, (transfer, probe) = assemble.dealt_examples(config, task), assemble.public_examples(config)
    device = assemble.device_of(config)
    models, parties = {} if models is None else models, []
    for name, party in config.parties().items():
        settings = assemble.adapter_settings(party.adapter or config.adapter)
        key = party.model, settings, device, task.labels
        model = models[key] = models.get(key) or Blueprint.of(party.model, settings, device, task.labels)
        own = dealt.get(name) or assemble.own_examples(party, config.seed, model.lm.tokenizer)
        training = assemble.training_settings(config.training, model.lm.max_length)
        parties.append(Party(name, model, settings, training, config.seed, *own))
    server = parties.pop() if config.server else None
    return World(config, parties, server, transfer, probe)
