"""The verbs with which agents learn from each other's logits for public problems (KD-FedLLM, FedMKT)."""

from itertools import islice

import numpy as np

from peertune.agent.core import AgentCore, verb
from peertune.agent.drafts import fitting
from peertune.agent.learner import mean_loss
from peertune.errors import PayloadError
from peertune.lm.batches import batches
from peertune.lm.encode import Row
from peertune.lm.teach import Taught, TaughtRow, with_teacher
from peertune.losses import Loss
from peertune.payloads import Distillation, Logits, Picks, Precision

PRECISIONS: dict[int, Precision] = {32: "fp32", 16: "fp16", 8: "int8"}


class KnowledgeVerbs(AgentCore):
    """What the agent expects, and lessons from what others do."""

    @verb
    def know(self, which: Picks, k: int, mass: float, bits: int) -> Logits:
        """What the agent expects at each token of the answers of these public problems, or of their class.

        The `k` most probable tokens, and of those no more than it takes to have `mass` together; all of them where that
        is shorter (no ids travel then). `bits` of a number: 32, 16 or 8.
        """
        if bits not in PRECISIONS:
            raise PayloadError(f"expected 32, 16 or 8 bits a number, found {bits}")
        known = self._learner.expectations(self._public(which), k)
        return Logits.of(known if known.ids is None or mass >= 1 else known.trim(mass), PRECISIONS[bits])

    @verb
    def distil(self, which: Picks, logits: Logits, lesson: Distillation) -> None:
        """(1 - w) * own cross-entropy + w * T^2 KL(logits || the agent), mixed in every step; without own data, w = 1.

        If the private validation loss rises by more than `tolerance`, the agent goes back to where it was.
        """
        try:
            rows = with_teacher(self._public(which), fitting(logits, which, self._learner.width))
        except ValueError as error:
            raise PayloadError(f"logits: {error}") from None
        if not rows:
            return
        before = mean_loss(self._learner.losses(self._validation)) if self._validation else None
        with self._undone_if_failing() as start:
            loss = self._train_taught(rows, lesson)
            after = mean_loss(self._learner.losses(self._validation)) if self._validation else None
        kept = before is None or after is None or after <= before + lesson.tolerance
        if not kept:
            self._learner.trainer.load_state(start)
        self._metrics += [("exchange_loss", loss), ("exchange_updates", float(lesson.steps)), ("kept", float(kept))]

    def _train_taught(self, rows: list[TaughtRow], lesson: Distillation) -> float:
        """The mean loss of the steps."""
        size = min(self._settings.training.batch_size, len(rows))
        weight = lesson.kd_weight if self._train else 1.0
        losses = []
        for batch in islice(batches(rows, size, self._learner.seed("distil", self._record.steps)), lesson.steps):
            own = self._learner.own_batch(self._train, self._record) if weight < 1 else []
            taught = Taught(batch, weight, Loss(lesson.temperature))
            losses.append(self._learner.step([(own, 1 - weight)] if own else [], self._record, taught))
        return float(np.mean(losses))

    def _public(self, which: Picks) -> list[Row]:
        return self._learner.encode_all(self._desk.public(which))
