"""An agent: one organisation's model, adapter, data and rules.

Its verbs are all that can be called from outside; payloads come in, payloads go out. It never knows which method
is running.
The maths is in `lm`; an agent decides what is trained on what, remembers what its profile needs, and keeps its own
state.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from peertune.agent.desk import AgentData, Desk
from peertune.agent.learner import Learner, mean_loss
from peertune.checkpoint import Blobs
from peertune.errors import PayloadError
from peertune.evaluate import codebleu
from peertune.guard.outgoing import GROUPS, Guard, Rules
from peertune.ledger import COORDINATOR
from peertune.lm.encode import Row
from peertune.lm.model import LanguageModel
from peertune.lm.settings import Sampling, TrainingSettings
from peertune.lm.train import TrainingDiverged
from peertune.payloads import (
    ALL_FACTORS,
    Factors,
    Number,
    Payload,
    Receipt,
    Record,
    Records,
    Scores,
    Texts,
    Weights,
)
from peertune.profiles import AgentRecord

Verb = TypeVar("Verb", bound=Callable[..., Payload | None])
VERBS: set[str] = set()
MORE = "more/"  # before the names of tensors of `_more` in a checkpoint


def verb(function: Verb) -> Verb:
    """Mark a method as callable from outside."""
    VERBS.add(function.__name__)
    return function


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Everything an agent needs besides model and data.

    `release` maps a payload kind to who may pull it: coordinator, agents, everyone or (also if not named) nobody.
    `guard` maps one to its rules.
    """

    name: str
    seed: int
    folder: Path
    training: TrainingSettings
    max_new_tokens: int
    codebleu: bool
    release: dict[str, str]
    guard: dict[str, Rules]


class AgentCore:
    """What every agent can do, whatever the method: train alone, be graded, hand out and take an adapter, store itself.

    Raises `ConfigError` through its model and data; verbs raise `PeertuneError`s, which stay its own.
    """

    def __init__(self, settings: AgentSettings, lm: LanguageModel, data: AgentData, record: AgentRecord) -> None:
        self.name = settings.name
        self._settings, self._lm, self._data = settings, lm, data
        self._release = settings.release
        self._learner = Learner(self.name, settings.seed, lm, settings.training)
        splits = (data.train, data.validation, data.probe, data.test)
        self._train, self._validation, self._probe, self._test = map(self._learner.encode_all, splits)
        self._guard = Guard(settings.guard, *data.texts())
        self._desk = Desk(self._learner, data, partial(self._guard.passes, Texts.kind))
        self._record = record
        self._blobs = Blobs(settings.folder / "checkpoints")
        self._pooled: list[Row] = []  # others' examples, for the next `fit`
        self._metrics: list[tuple[str, float]] = []

    @property
    def truncated(self) -> int:
        """How many private examples are longer than the context and were cut from the left."""
        return sum(row.truncated for row in (*self._train, *self._validation))

    @property
    def first_row(self) -> Row:
        return self._train[0]

    def call(self, verb: str, args: list[Payload]) -> Payload | None:
        """Run the verb of that name. Raises `PayloadError` if the agent has no such verb."""
        if verb not in VERBS:
            raise PayloadError(f"agents have no verb {verb[:40]!r}")
        return getattr(self, verb)(*(arg.value if isinstance(arg, Number) else arg for arg in args))

    def may_pull(self, kind: str, caller: str) -> bool:
        """May `caller` have this agent's payloads of `kind`?"""
        who = self._release.get(kind, "nobody")
        if who in ("coordinator", "agents"):
            return (caller == COORDINATOR) == (who == "coordinator")
        return who == "everyone"

    def outgoing(self, payload: Payload) -> tuple[Payload, str]:
        """What may leave of an answer, and the guard's verdict. Raises `Blocked` if nothing may."""
        guarded, verdict = self._guard.check(payload)
        found = {f"{group}_redacted": verdict.of(group) for group in GROUPS}
        self._metrics += [(name, float(count)) for name, count in found.items() if count]
        return guarded, str(verdict)

    def take_metrics(self) -> list[tuple[str, float]]:
        """Numbers noted since the last call, by name."""
        metrics, self._metrics = [*self._metrics, *self._learner.take_costs()], []
        return metrics

    def log_path(self) -> Path:
        return self._settings.folder / "errors.log"

    @verb
    def fit(self, steps: int, factors: Factors = ALL_FACTORS, proximal: float = 0.0) -> None:
        """Train on the agent's own data, and on what was pooled with it since the last time.

        `factors`: only these, and what is no factor. `proximal`: the mu of FedProx, which holds to the start.
        """
        pooled, self._pooled = self._pooled, []
        if steps == 0:
            return
        rows = [*self._train, *pooled]
        moving = self._learner.named(factors.letters)
        with self._undone_if_failing(), self._learner.trainer.only(moving, proximal):
            groups = ([(self._learner.own_batch(rows, self._record), 1.0)] for _ in range(steps))
            loss = float(np.mean([self._learner.step(group, self._record) for group in groups]))
            self._learner.losses(self._validation[: self._settings.training.batch_size])  # the last step may diverge
        self._record.trained(loss)
        self._metrics.append(("train_loss", loss))
        if pooled:
            self._metrics.append(("exchange_updates", float(steps)))

    @verb
    def records(self) -> Records:
        """The agent's training examples."""
        return Records(tuple(Record(example.prompt, example.completion) for example in self._data.train))

    @verb
    def pool(self, records: Records) -> None:
        """Put others' examples beside the agent's own, for the next `fit`."""
        self._pooled += [self._learner.encode(item.prompt, item.completion) for item in records.items]

    @verb
    def grade(self, samples: int, temperature: float) -> Scores:
        """Complete and grade the test problems `samples` times."""
        test = self._data.test
        correct = np.zeros(len(test))
        texts: list[str] = []
        for sample in range(samples):
            texts = self._learner.complete(test, self._sampling(temperature, self._learner.seed("grade", sample)))
            correct += self._data.task.grade(test, texts)
        measured = {"validation_loss": self._validation, "test_loss": self._test}
        metrics = {name: mean_loss(self._learner.losses(rows)) for name, rows in measured.items() if rows}
        if self._settings.codebleu:
            references = [example.completion for example in test]
            metrics["codebleu"] = codebleu(references, [self._data.task.clean(text) for text in texts])
        return Scores(tuple(float(count) for count in correct), samples, metrics)

    @verb
    def adapter(self, factors: Factors = ALL_FACTORS) -> Weights:
        """The adapter's arrays, fp32: these factors, and what is no factor."""
        state, wanted = self._lm.adapter_state(self.name), self._learner.named(factors.letters)
        return Weights({name: state[name].numpy() for name in wanted}, len(self._train))

    @verb
    def load(self, adapter: Weights, since: int = 0, upto: int = 0) -> None:
        """Take a shared adapter: of version `upto` whatever came, or what changed of it after version `since`.

        Raises `PayloadError` if a name or shape is not the agent's own, or if it does not have version `since`.
        """
        held = self._record.version
        folds = any(".frozen_" in name for name in adapter.tensors)
        # what changed since an older version is enough for who has a newer one, unless it would be folded in twice
        if since and (held < since or (folds and held not in (since, upto))):
            raise PayloadError(f"expected what changed after version {held}, found it after version {since}")
        tensors = adapter.tensors
        if since and held == upto:  # it has been told before, but has trained since
            tensors = {name: array for name, array in tensors.items() if ".frozen_" not in name}
        self._learner.take(tensors, bool(since), self._learner.seed("adapter", self._record.steps))
        self._record.version = upto

    @verb
    def checkpoint(self, keep: Texts) -> Receipt:
        """Store adapter, optimiser, cursor and history on the agent's own disk."""
        memory = torch.frombuffer(bytearray(msgspec.msgpack.encode(self._record)), dtype=torch.uint8)
        more = {MORE + name: tensor for name, tensor in self._more().items()}
        digest = self._blobs.put(save_safetensors({**self._learner.trainer.state(), **more, "record": memory}))
        self._blobs.keep({digest, *keep.items})
        return Receipt(digest)

    @verb
    def restore(self, receipt: Receipt) -> None:
        """Return to a stored state. Raises `StorageError` if it is missing or damaged."""
        tensors = load_safetensors(self._blobs.get(receipt.digest))
        self._record = msgspec.msgpack.decode(tensors.pop("record").numpy().tobytes(), type=AgentRecord)
        self._take_more({name.removeprefix(MORE): tensors.pop(name) for name in list(tensors) if name.startswith(MORE)})
        self._learner.trainer.load_state(tensors)
        self._desk.clear()
        self._pooled = []

    def _more(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds beside the trainer's state and the record."""
        return {}

    def _take_more(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Return to what `_more` gave, or where it gave nothing, to the beginning."""

    @contextmanager
    def _undone_if_failing(self) -> Iterator[dict[str, torch.Tensor]]:
        """Whatever stops a training verb half-way undoes the whole of it: the agent goes on from where it was."""
        state, record = self._learner.trainer.state(), msgspec.msgpack.encode(self._record)
        try:
            yield state
        except Exception as error:
            self._learner.trainer.load_state(state)
            self._record = msgspec.msgpack.decode(record, type=AgentRecord)
            if isinstance(error, TrainingDiverged):
                raise TrainingDiverged(f"{error} The agent was put back to where it was.") from None
            raise

    def _sampling(self, temperature: float, seed: int) -> Sampling:
        return Sampling(max_new_tokens=self._settings.max_new_tokens, temperature=temperature, seed=seed)
