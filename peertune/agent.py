"""An agent: one organisation's model, adapter, data and rules.

Its verbs are all that can be called from outside; payloads come in, payloads go out. It never knows which method
is running.
The maths is in `lm`; an agent decides what is trained on what, remembers what its profile needs, and keeps its own
state.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from peertune.checkpoint import Blobs
from peertune.errors import AgentError, PayloadError
from peertune.evaluate import codebleu
from peertune.ledger import COORDINATOR
from peertune.lm.batches import batch_at, batches
from peertune.lm.encode import Row, encode
from peertune.lm.generate import Sampling, generate
from peertune.lm.model import LanguageModel
from peertune.lm.score import losses
from peertune.lm.settings import TrainingSettings
from peertune.lm.train import Trainer, TrainingDiverged
from peertune.payloads import Gain, Number, Payload, Profile, Receipt, Scores, Texts, Weights
from peertune.profiles import AgentRecord, build_profile
from peertune.tasks.base import Example, Task

Verb = TypeVar("Verb", bound=Callable[..., Payload | None])
VERBS: dict[str, Callable[..., Payload | None]] = {}


def verb(function: Verb) -> Verb:
    """Mark a method as callable from outside."""
    VERBS[function.__name__] = function
    return function


@dataclass(frozen=True, slots=True)
class AgentData:
    """What an agent trains and is measured on; `train` and `validation` never leave it."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    task: Task


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Everything an agent needs besides model and data.

    `release` maps a payload kind to who may pull it: coordinator, agents, everyone or (also if not named) nobody.
    """

    name: str
    seed: int
    folder: Path
    training: TrainingSettings
    max_new_tokens: int
    codebleu: bool
    release: dict[str, str]


class Agent:
    """One agent. Raises `ConfigError` through its model and data; verbs raise `PeertuneError`s, which stay its own."""

    def __init__(self, settings: AgentSettings, lm: LanguageModel, data: AgentData, record: AgentRecord) -> None:
        self.name = settings.name
        self._settings, self._lm, self._data = settings, lm, data
        self._release = settings.release
        self._trainer = Trainer(lm, self.name, settings.training)
        self._train = self._encode_examples(data.train)
        self._validation = self._encode_examples(data.validation)
        self._test = self._encode_examples(data.test)
        self._record = record
        self._blobs = Blobs(settings.folder / "checkpoints")
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
        return VERBS[verb](self, *(arg.value if isinstance(arg, Number) else arg for arg in args))

    def may_pull(self, kind: str, caller: str) -> bool:
        """May `caller` have this agent's payloads of `kind`?"""
        who = self._release.get(kind, "nobody")
        if who in ("coordinator", "agents"):
            return (caller == COORDINATOR) == (who == "coordinator")
        return who == "everyone"

    def take_metrics(self) -> list[tuple[str, float]]:
        """Numbers noted since the last call, by name."""
        metrics, self._metrics = self._metrics, []
        return metrics

    def log_path(self) -> Path:
        return self._settings.folder / "errors.log"

    @verb
    def fit(self, steps: int) -> None:
        """Train on the agent's own data."""
        if steps == 0:
            return
        with self._undone_if_failing():
            loss = self._mean(self._step([(self._own_batch(), 1.0)]) for _ in range(steps))
            self._mean_loss(self._validation[: self._settings.training.batch_size])  # the last step may have diverged
        self._record.trained(loss)
        self._metrics.append(("train_loss", loss))

    @verb
    def learn(self, prompts: Texts, answers: Texts, kd_weight: float, steps: int) -> Gain:
        """KNEXA-FL Eq. 2: (1 - w) * own cross-entropy + w * cross-entropy of the teacher's text, mixed in every
        step.
        """
        rows = self._encode_answers(prompts, answers)
        before = self._validation_loss()
        taught = batches(rows, self._settings.training.batch_size, self._seed("exchange", self._record.received))
        with self._undone_if_failing():
            loss = self._mean(
                self._step([(self._own_batch(), 1.0 - kd_weight), (next(taught), kd_weight)]) for _ in range(steps)
            )
            after = self._validation_loss()
        gain = Gain(before, after, sum(len(text.encode()) for text in answers.items) / 1000)
        self._record.learned(gain)
        self._metrics.append(("exchange_loss", loss))
        return gain

    @verb
    def answer(self, prompts: Texts, temperature: float) -> Texts:
        """Complete every prompt; greedy at temperature 0."""
        self._record.given += 1
        seed = self._seed("answer", self._record.given)
        texts = self._generate(prompts.items, temperature, seed)
        return Texts(tuple(self._data.task.clean(text) for text in texts))

    @verb
    def profile(self) -> Profile:
        """Measure the agent on its validation data and describe it in 32 numbers."""
        texts = self._complete(self._data.validation, 0.0, seed=0)
        grades = self._data.task.grade(self._data.validation, texts)
        loss = self._validation_loss()
        self._metrics.append(("validation_loss", loss))
        self._metrics.append(("validation_score", float(np.mean(grades))))
        return build_profile(self._record, loss, float(np.mean(grades)))

    @verb
    def grade(self, samples: int, temperature: float) -> Scores:
        """Complete and grade the test problems `samples` times."""
        test = self._data.test
        correct = np.zeros(len(test))
        texts: list[str] = []
        for sample in range(samples):
            texts = self._complete(test, temperature, self._seed("grade", sample))
            correct += self._data.task.grade(test, texts)
        metrics = {"validation_loss": self._validation_loss(), "test_loss": self._mean_loss(self._test)}
        if self._settings.codebleu:
            metrics["codebleu"] = codebleu(
                [example.completion for example in test], [self._data.task.clean(text) for text in texts]
            )
        return Scores(tuple(float(count) for count in correct), samples, metrics)

    @verb
    def adapter(self) -> Weights:
        """The adapter's arrays, fp32."""
        state = self._lm.adapter_state(self.name)
        return Weights({name: tensor.numpy() for name, tensor in state.items()}, len(self._train))

    @verb
    def load(self, adapter: Weights) -> None:
        """Replace the adapter. Raises `PayloadError` if names or shapes differ from the agent's own."""
        self._lm.load_adapter(
            self.name, {name: torch.from_numpy(array.copy()) for name, array in adapter.tensors.items()}
        )

    @verb
    def checkpoint(self, keep: Texts) -> Receipt:
        """Store adapter, optimiser, cursor and history on the agent's own disk."""
        memory = torch.frombuffer(bytearray(msgspec.msgpack.encode(self._record)), dtype=torch.uint8)
        digest = self._blobs.put(save_safetensors({**self._trainer.state(), "record": memory}))
        self._blobs.keep({digest, *keep.items})
        return Receipt(digest)

    @verb
    def restore(self, receipt: Receipt) -> None:
        """Return to a stored state. Raises `StorageError` if it is missing or damaged."""
        tensors = load_safetensors(self._blobs.get(receipt.digest))
        self._record = msgspec.msgpack.decode(tensors.pop("record").numpy().tobytes(), type=AgentRecord)
        self._trainer.load_state(tensors)

    # Training: batches are drawn without replacement, epoch after epoch, from the agent's own seed.

    def _step(self, groups: list[tuple[Sequence[Row], float]]) -> float:
        self._record.steps += 1
        return self._trainer.step(groups, self._seed("step", self._record.steps))

    def _own_batch(self) -> list[Row]:
        size, start = self._settings.training.batch_size, self._record.cursor
        self._record.cursor += size
        return batch_at(self._train, start, size, lambda epoch: self._seed("epoch", epoch))

    @contextmanager
    def _undone_if_failing(self) -> Iterator[None]:
        """Whatever stops a training verb half-way undoes the whole of it: the agent goes on from where it was."""
        state, record = self._trainer.state(), msgspec.structs.replace(self._record)
        try:
            yield
        except Exception as error:
            self._trainer.load_state(state)
            self._record = record
            if isinstance(error, TrainingDiverged):
                raise TrainingDiverged(f"{error} The agent was put back to where it was.") from None
            raise

    def _seed(self, purpose: str, number: int) -> int:
        """A seed that depends on nothing but the run's seed, the agent, the purpose and a count."""
        words = [self._settings.seed, *self.name.encode(), *purpose.encode(), number]
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    # Measuring and completing.

    def _complete(self, examples: Sequence[Example], temperature: float, seed: int) -> list[str]:
        """One completion an example; rendered chats and plain prompts are generated apart."""
        texts = [""] * len(examples)
        for chat in (False, True):
            chosen = [index for index, example in enumerate(examples) if example.chat is chat]
            prompts = [examples[index].prompt for index in chosen]
            for index, text in zip(chosen, self._generate(prompts, temperature, seed, chat), strict=True):
                texts[index] = text
        return texts

    def _generate(self, prompts: Sequence[str], temperature: float, seed: int, chat: bool = False) -> list[str]:
        sampling = Sampling(max_new_tokens=self._settings.max_new_tokens, temperature=temperature, seed=seed)
        return generate(self._lm, self.name, prompts, sampling, template=chat)

    def _encode_examples(self, examples: Sequence[Example]) -> list[Row]:
        return [self._encode(example.prompt, example.completion, example.chat) for example in examples]

    def _encode(self, prompt: str, completion: str, chat: bool = False) -> Row:
        return encode(self._lm.tokenizer, prompt, completion, self._settings.training.max_length, chat)

    def _encode_answers(self, prompts: Texts, answers: Texts) -> list[Row]:
        if len(prompts.items) != len(answers.items):
            raise PayloadError(f"{len(prompts.items)} prompts were answered with {len(answers.items)} texts")
        pairs = zip(prompts.items, answers.items, strict=True)
        rows = [self._encode(prompt, answer) for prompt, answer in pairs if answer.strip()]
        if not rows:
            raise AgentError(self.name, "learn", "every answer it was given is empty")
        return rows

    def _validation_loss(self) -> float:
        return self._mean_loss(self._validation)

    def _mean_loss(self, rows: Sequence[Row]) -> float:
        """Nats a token. Raises `TrainingDiverged` if that is not a number."""
        pairs = losses(self._lm, self.name, rows)
        loss = math.fsum(nats for nats, _ in pairs) / sum(tokens for _, tokens in pairs)
        if not math.isfinite(loss):
            raise TrainingDiverged(f"expected a finite loss on held-out data, found {loss:g}; lower learning_rate.")
        return loss

    def _mean(self, values: Iterator[float]) -> float:
        collected = list(values)
        return math.fsum(collected) / max(1, len(collected))
