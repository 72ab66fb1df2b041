"""The verbs with which models of different tokenizers teach each other public problems (FedMKT, arXiv:2406.02224).

Each says what it expects at the answers and what it loses on them; who is taught chooses its teachers (DualMinCE).
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from peertune.agent.core import AgentCore, verb
from peertune.agent.teachers import Problems, Teachers, lesson
from peertune.divergences import absolute, jensen_shannon
from peertune.errors import PayloadError
from peertune.lm.batches import batches
from peertune.lm.teach import Taught, TaughtRow
from peertune.lm.train import Groups
from peertune.losses import Loss
from peertune.payloads import Alignment, Assessed, Bits, Lexicon, Picks, Tally, Teaching
from peertune.profiles import AgentRecord

PRECISIONS: dict[int, Bits] = {16: "fp16", 8: "int8"}


class MutualVerbs(AgentCore):
    """What the agent expects and what it loses, and lessons from those who lose less."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._teachers = Teachers(self._learner, self._settings.folder / "vocabularies")

    @verb
    def spell(self) -> Lexicon:
        """The agent's vocabulary: what its tokens are in bytes."""
        return Lexicon.of(self._teachers.vocabulary)

    @verb
    def meet(self, lexicon: Lexicon, how: Alignment) -> None:
        """Get to know the vocabulary of another, who can be heard from then on."""
        self._teachers.meet(lexicon, how)

    @verb
    def assess(self, which: Picks, k: int, mass: float, bits: int) -> Assessed:
        """What the agent expects at each token of the answers of these public problems, and what it loses on them.

        The `k` most probable tokens, and of those no more than it takes to have `mass` together, in 16 or 8 `bits`.
        """
        if bits not in PRECISIONS or k < 1:
            raise PayloadError(f"expected 16 or 8 bits a number and k of 1 or more, found {bits} and {k}")
        found = self._teachers.assess(self._problems(which), k)
        known = found.known if mass >= 1 else found.known.trim(mass)
        return Assessed.of(replace(found, known=known), PRECISIONS[bits])

    @verb
    def hear(self, source: int, which: Picks, known: Assessed, how: Alignment) -> None:
        """What a source knows of these problems, put into the agent's vocabulary, for the next `study`."""
        self._teachers.hear(source, known.assessment(), self._problems(which), how)

    @verb
    def study(self, which: Picks, how: Teaching) -> Tally:
        """(1 - w) * cross-entropy of the answers, or of own data, + w * divergence from those who were heard and are
        chosen, where there is somebody; mixed in every step.
        """
        sources, problems = self._teachers.take(), self._problems(which)
        items, tally = lesson(self._teachers.assess(problems, how.top_k), sources, problems, how)
        if how.kd_weight == 1 or how.beside == "own":
            items = [item for item in items if len(item.teacher.logp)]
        if items:
            with self._undone_if_failing():
                loss = self._train_on(items, how)
            self._metrics += [("exchange_loss", loss), ("exchange_updates", float(how.steps))]
        return tally

    @verb
    def renew(self) -> None:
        """Forget what the optimiser knows, and begin its warm-up again."""
        self._learner.trainer.renew()

    def _take_more(self, tensors: Mapping[str, Tensor]) -> None:
        self._teachers.take()
        super()._take_more(tensors)

    def _problems(self, which: Picks) -> Problems:
        return self._teachers.read(self._desk.public(which))

    def _train_on(self, items: list[TaughtRow], how: Teaching) -> float:
        """The mean loss of the steps."""
        size, losses = min(self._settings.training.batch_size, len(items)), []
        for batch in islice(batches(items, size, self._learner.seed("study", self._record.steps)), how.steps):
            losses.append(self._learner.step(*self._mixed(batch, how)))
        return float(np.mean(losses))

    def _mixed(self, batch: list[TaughtRow], how: Teaching) -> tuple[Groups, AgentRecord, Taught]:
        """What a step is made of; without own data nothing stands beside it."""
        if how.beside == "answers":
            return [], self._record, Taught(batch, how.kd_weight, _loss(how), 1 - how.kd_weight)
        weight = how.kd_weight if self._train else 1.0
        own = self._learner.own_batch(self._train, self._record) if weight < 1 else []
        return [(own, 1 - weight)] if own else [], self._record, Taught(batch, weight, _loss(how))


def _loss(how: Teaching) -> Loss:
    match how.loss:
        case "uld":
            return Loss(how.temperature, absolute, ranked=True)
        case "gjsd":
            return Loss(how.temperature, jensen_shannon(how.beta))
    return Loss(how.temperature)
