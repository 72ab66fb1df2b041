"""One round of split learning at one party: its half of the model, what it sends and takes, what that costs."""

from collections.abc import Mapping, Sequence

import numpy as np

from peertune.agent.learner import Learner
from peertune.codecs import Codec, layout
from peertune.errors import PayloadError
from peertune.lm.calibrate import costs_of
from peertune.lm.cut import Cut
from peertune.lm.encode import Row
from peertune.lm.flops import Pass
from peertune.lm.ragged import Smashed
from peertune.lm.split import ClientHalf, ServerHalf, samples_of
from peertune.lm.train import Trainer
from peertune.payloads import Activations, Gradient, Labelled, SplitPlan


class ClientSide:
    """Final. Raises `PayloadError`: a plan without this client, an answer to another step; else as `ClientHalf`."""

    def __init__(self, learner: Learner, name: str, plan: SplitPlan) -> None:
        if name not in plan.cuts:
            raise PayloadError(f"split: expected a plan for {name!r}, found one for {min(plan.cuts)!r}")
        self.half = ClientHalf(learner.trainer, cuts_of(plan)[name])
        self._codec = codec_of(plan, self.half.parts.width)
        self._learner, self._step, self._memory = learner, 0, 0
        self._loss = np.nan
        self.losses: list[float] = []

    def lower(self, rows: Sequence[Row], step: int) -> Activations:
        """The hidden states of these rows, of optimiser step number `step`."""
        smashed = self._lower(rows, step)
        return Activations.of(step, smashed.hidden, self._codec, lengths=smashed.lengths, reads=smashed.reads)

    def labelled(self, rows: Sequence[Row], step: int) -> Labelled:
        """The same with their labels."""
        smashed = self._lower(rows, step)
        beside = {"lengths": smashed.lengths, "reads": smashed.reads, "labels": smashed.targets}
        return Labelled.of(step, smashed.hidden, self._codec, **beside)

    def loss(self, answer: Activations) -> Gradient:
        """What the server's hidden states are worth here: their gradient."""
        self._check(answer.step)
        hidden = answer.numbers(self._codec, self.half.returned, self.half.parts.width)
        self._loss, gradient = self.half.loss(hidden, self._learner.seed("split loss", self._step))
        self._note(self.half.peak)
        return Gradient.of(self._step, gradient, self._codec)

    def back(self, gradient: Gradient) -> None:
        """End the step."""
        self._check(gradient.step)
        self.half.back(gradient.numbers(self._codec, self.half.tokens, self.half.parts.width))
        self.losses += gradient.other("loss").tolist() if self.half.parts.cut.plain else [self._loss]

    def end(self) -> list[tuple[str, float]]:
        """What to note of the round."""
        _charge(self._learner, [self.half])
        mean = [("train_loss", float(np.mean(self.losses)))] if self.losses else []
        return [*mean, ("exchange_updates", float(len(self.losses))), *_largest(self._memory)]

    def _lower(self, rows: Sequence[Row], step: int) -> Smashed:
        self._step, self._loss = step, np.nan
        smashed = self.half.lower(samples_of(self.half.parts, rows), self._learner.seed("split lower", step))
        self._note(self.half.peak)
        return smashed

    def _note(self, together: Sequence[Pass]) -> None:
        self._memory = max(self._memory, costs_of(self._learner.lm, self._learner.trainer.adapter).memory(*together))

    def _check(self, step: int) -> None:
        if step != self._step:
            raise PayloadError(f"split: expected an answer to step {self._step}, found one to step {step}")


class ServerSide:
    """`trainers`: for each client of the plan the one that steps for it. Final.

    Raises `PayloadError`: what a client sent cannot be; else as `ServerHalf`.
    """

    def __init__(self, learner: Learner, plan: SplitPlan, trainers: Mapping[str, Trainer]) -> None:
        self._learner, self._names = learner, list(plan.cuts)
        served: dict[Trainer, dict[str, Cut]] = {trainer: {} for trainer in trainers.values()}
        for name, cut in cuts_of(plan).items():
            served[trainers[name]][name] = cut
        self._all = [ServerHalf(trainer, cuts) for trainer, cuts in served.items()]
        self._halves = {name: half for half in self._all for name in half.parts}
        self._width = self._all[0].parts[self._names[0]].width
        self._codec = codec_of(plan, self._width)
        self._steps: dict[str, int] = {}
        self._memory = 0

    def middle(self, client: int, sent: Activations, seed: int) -> Activations:
        """The hidden states for a client's head."""
        name, half = self._of(client)
        hidden = half.middle(name, self._smashed(half, sent), seed)
        self._steps[name] = sent.step
        self._note(half)
        return Activations.of(sent.step, hidden, self._codec)

    def back(self, client: int, gradient: Gradient) -> Gradient:
        """Step with a client's gradient; that of what it sent before."""
        name, half = self._of(client)
        rows = half.returned(name)
        if gradient.step != self._steps[name]:
            raise PayloadError(f"split: expected the gradient of step {self._steps[name]}, found {gradient.step}")
        back = half.back(name, gradient.numbers(self._codec, rows, self._width))
        return Gradient.of(gradient.step, back, self._codec)

    def score(self, client: int, sent: Labelled, seed: int) -> Gradient:
        """Step with a client's labels; the gradient of what it sent, and the loss."""
        name, half = self._of(client)
        loss, gradient = half.loss(name, self._smashed(half, sent), seed)
        self._note(half)
        return Gradient.of(sent.step, gradient, self._codec, loss=np.array([loss], np.float32))

    def end(self) -> list[tuple[str, float]]:
        """What to note of the round."""
        _charge(self._learner, self._all)
        return _largest(self._memory)

    def _of(self, client: int) -> tuple[str, ServerHalf]:
        if not 0 <= client < len(self._names):
            raise PayloadError(f"split: expected a client from 0 to {len(self._names) - 1}, found {client}")
        return self._names[client], self._halves[self._names[client]]

    def _smashed(self, half: ServerHalf, sent: Activations | Labelled) -> Smashed:
        lengths, reads, labels = (sent.other(name) for name in ("lengths", "reads", "labels"))
        half.check(lengths, reads, labels)  # before memory is taken for so many tokens
        return Smashed(sent.numbers(self._codec, int(lengths.sum()), self._width), lengths, reads, labels)

    def _note(self, half: ServerHalf) -> None:
        others = (one for other in self._all if other is not half for one in other.held)
        costs = costs_of(self._learner.lm, self._learner.trainer.adapter)
        copies = 4 * costs.adapter * (len(self._all) - 1)
        self._memory = max(self._memory, costs.memory(*half.peak, *others) + copies)


def cuts_of(plan: SplitPlan) -> dict[str, Cut]:
    """Where the model of each client is cut."""
    return {name: Cut(first, plan.last, plan.plain) for name, first in plan.cuts.items()}


def codec_of(plan: SplitPlan, width: int) -> Codec:
    """Raises `ConfigError`: a codec that cannot be, or not with such a width."""
    codec = Codec(plan.codec, plan.outliers, plan.keep)
    layout(codec, 1, width)
    return codec


def _charge(learner: Learner, halves: Sequence[ClientHalf | ServerHalf]) -> None:
    for half in halves:
        for one in half.ran.elements():
            learner.lm.note(learner.trainer.adapter, one)


def _largest(memory: int) -> list[tuple[str, float]]:
    return [("memory", float(memory))] if memory else []
