"""The verbs with which agents learn from each other's texts for public problems."""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from peertune.agent.core import AgentCore, verb
from peertune.agent.learner import change, mean_loss
from peertune.lm.batches import batches
from peertune.lm.encode import Row
from peertune.lm.teach import Taught, TaughtRow
from peertune.losses import Loss
from peertune.payloads import Claims, Gain, Logits, Picks, Profile, Texts, Verdicts, Weights
from peertune.profiles import build_profile


class TextVerbs(AgentCore):
    """Drafts at home, texts to whoever is sent for them, lessons from what passed."""

    @verb
    def draft(self, which: Picks, temperature: float, confident: int, tested: int) -> Claims:
        """Answer public problems at home, greedily at temperature 0, and say which of the texts others may have.

        `confident`: withhold what the agent itself finds too improbable, by a threshold learnt on public answers.
        `tested`: run the public tests; withhold what fails, and learn from what passes.
        """
        self._record.given += 1
        sampling = self._sampling(temperature, self._learner.seed("draft", self._record.given))
        return self._desk.draft(self._record, which, sampling, (bool(confident), bool(tested)))

    @verb
    def share(self, which: Picks) -> Texts:
        """The drafts of these problems; empty where there is none or it is withheld."""
        return self._desk.share(which)

    @verb
    def accept(self, which: Picks, texts: Texts, tested: int, agreed: int = 0) -> Verdicts:
        """Keep texts to learn from. `tested`: run the public tests first, where there are some, and drop what fails.
        `agreed`: of the others keep what another text of this round says, too, the agent's own draft included.
        """
        return self._desk.accept(self._record, which, texts, (bool(tested), bool(agreed)))

    @verb
    def blend(self, adapter: Weights) -> Verdicts:
        """Take the adapter of an agent with the same base: `learn` starts by moving towards it, by its `kd_weight`.
        Raises `PayloadError` if names or shapes differ from the agent's own.
        """
        self._desk.take(adapter)
        return Verdicts((1,))

    @verb
    def express(self, which: Picks, k: int) -> Logits:
        """What the agent expected at each token of the texts that it shares: the `k` most probable."""
        return self._desk.express(which, k)

    @verb
    def soften(self, which: Picks, logits: Logits) -> Verdicts:
        """Learn the texts just accepted with what their author expected at each token, and not as they are."""
        return self._desk.soften(self._record, which, logits)

    @verb
    def inspect(self, which: Picks, texts: Texts) -> Verdicts:
        """Grade texts for public problems whose answers are known; keep nothing."""
        return self._desk.inspect(which, texts)

    @verb
    def learn(self, kd_weight: float, steps: int, tolerance: float, keep: int) -> Gain:
        """KNEXA-FL Eq. 2: (1 - w) * own cross-entropy + w * cross-entropy of the accepted texts, mixed in every step.

        With few texts their part of the batch, and w, are smaller. If the private validation loss rises by more than
        `tolerance` (nats a token), the agent goes back to where it was. `keep`: remember the texts for later lessons.
        """
        if (accuracy := self._desk.accuracy(self._record)) is not None:
            self._metrics.append(("text_accuracy", accuracy))
        rows, held_out = self._desk.rows(self._record), self._validation or self._probe  # a server has no validation
        own, probe = self._learner.losses(held_out), self._learner.losses(self._probe)
        with self._undone_if_failing() as start:
            if self._desk.adapter:
                self._learner.move(self._desk.adapter, kd_weight)
            loss = self._train_mixed(rows, kd_weight, steps)
            private = change(own, self._learner.losses(held_out))
            public = change(probe, self._learner.losses(self._probe)) if self._probe else None
        kept = private.after <= private.before + tolerance
        if not kept:
            self._learner.trainer.load_state(start)
            self._desk.undo(self._record)
        gain = Gain(private, public, self._desk.pulled / 1000, kept)
        self._desk.settle()
        self._record.learned(gain)
        if not keep:
            self._record.lessons.clear()
        self._metrics += [("exchange_loss", loss), ("exchange_updates", float(steps))]
        return gain

    @verb
    def profile(self) -> Profile:
        """Measure the agent on its validation data and describe it in 32 numbers."""
        texts = self._learner.complete(self._data.validation, self._sampling(0.0, 0))
        score = float(np.mean(self._data.task.grade(self._data.validation, texts)))
        loss = mean_loss(self._learner.losses(self._validation))
        self._metrics += [("validation_loss", loss), ("validation_score", score)]
        return build_profile(self._record, loss, score)

    def _train_mixed(self, rows: Sequence[Row], kd_weight: float, steps: int) -> float:
        """`steps` on own rows and, as far as there are any, on these; the mean loss."""
        size = self._learner.taught_rows(len(rows), steps)
        weight = kd_weight * self._learner.share_of_batch(size) if self._train else 1.0
        endless = batches(rows, size, self._learner.seed("exchange", self._record.received)) if rows else iter(())
        taught = [*islice(endless, steps)] or [[]] * steps
        own = (self._learner.own_batch(self._train, self._record) if self._train else [] for _ in taught)
        lessons = (self._lesson(batch, weight) for batch in taught)
        steps_made = (
            self._learner.step([(mine, 1.0 - weight), plain], self._record, soft)
            for mine, (plain, soft) in zip(own, lessons, strict=True)
        )
        return float(np.mean(list(steps_made)))

    def _lesson(self, batch: list[Row], weight: float) -> tuple[tuple[list[Row], float], Taught | None]:
        """The rows of a batch that are learnt as they are, and those with what their author expected."""
        views = self._desk.views
        soft = [TaughtRow(row, views[row]) for row in batch if row in views]
        if not soft:
            return (batch, weight), None
        plain, share = [row for row in batch if row not in views], weight / len(batch)
        return (plain, share * len(plain)), Taught(soft, share * len(soft), Loss())
