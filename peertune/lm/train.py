"""One agent's optimiser over its adapter."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from peertune.errors import PeertuneError
from peertune.lm.encode import Row, collate
from peertune.lm.flops import Pass
from peertune.lm.model import LanguageModel, check_tensors
from peertune.lm.score import completion_losses
from peertune.lm.seeding import seeded
from peertune.lm.settings import TrainingSettings

ROWS_ON_CPU = 8  # of a micro-batch at most: more rows need more padding and leave the cache; fewer, more Python
MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingDiverged(PeertuneError):
    """The loss or its gradient is not a number; the step was not taken."""


class Trainer:
    """AdamW on one adapter: linear warm-up, gradient clipping, micro-batches. Final.

    `names`: which of its parameters, as in `lm.trainable`, are trained, clipped and in `state`; None = all.
    """

    def __init__(
        self, lm: LanguageModel, adapter: str, settings: TrainingSettings, names: Collection[str] | None = None
    ) -> None:
        self.lm, self.adapter, self.settings = lm, adapter, settings
        trainable = lm.trainable(adapter)
        self._parameters = trainable if names is None else {name: trainable[name] for name in sorted(names)}
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._steps = 0

    def step(self, groups: Sequence[tuple[Sequence[Row], float]], seed: int) -> float:
        """One optimiser step on sum_g weight_g * (mean token cross-entropy of group g); returns it (nats).

        KNEXA-FL, Eq. 2: groups = [(own rows, 1 - a), (rows of the teacher's text, a)]. The rows of all groups,
        by length, are cut into `accumulate` or more micro-batches, which give the same gradient as the whole.
        A group of weight 0 is left out. `seed` decides dropout. Raises `TrainingDiverged` before anything changes.
        """
        weighted = _with_factors(groups)
        self.discard()
        loss = 0.0
        with self.lm.using(self.adapter, train=True) as model, seeded(seed, self.lm.device):
            for part in self._micro_batches(weighted):
                batch = collate([row for row, _ in part], self.lm.pad_token, self.lm.device)
                factors = torch.tensor([factor for row, factor in part for _ in range(row.loss_tokens)])
                self.lm.note(self.adapter, Pass("training", len(batch.ids), batch.ids.shape[1], len(factors)))
                share = completion_losses(model, batch) @ factors.to(self.lm.device)
                share.backward()
                loss += share.item()
        self.apply(loss)
        return loss

    def apply(self, loss: float | None = None) -> None:
        """One optimiser step with the gradients that are there, of `loss` (nats; None = somebody else knows it).

        Raises `TrainingDiverged` before anything changes.
        """
        self._check_finite(loss)
        self._update()

    def discard(self) -> None:
        """Forget the gradients of a step that was not taken."""
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """Adapter, AdamW moments and step counter as CPU tensors; `load_state` restores the same bits."""
        tensors = {"steps": torch.tensor(self._steps)}
        for name, parameter in self._parameters.items():
            tensors[f"adapter/{name}"] = parameter.detach().to("cpu", copy=True)
            for moment in MOMENTS:
                # before the first step AdamW has no moments; it starts from zeros
                value = self._optimizer.state[parameter].get(moment) if self._steps else torch.zeros_like(parameter)
                tensors[f"{moment}/{name}"] = value.detach().to("cpu", copy=True)
        return tensors

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state()`. Raises `PayloadError`, and changes nothing, if names or shapes differ."""
        check_tensors(tensors, self.state())
        self._steps = int(tensors["steps"])
        for name, parameter in self._parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"adapter/{name}"])
            kept = {moment: tensors[f"{moment}/{name}"].to(parameter.device, copy=True) for moment in MOMENTS}
            step = torch.tensor(float(self._steps), device=parameter.device)
            self._optimizer.state[parameter] = {"step": step, **kept}

    def _micro_batches(self, weighted: list[tuple[Row, float]]) -> Iterator[list[tuple[Row, float]]]:
        """Rows of similar length together, so that there is little padding."""
        ordered = sorted(weighted, key=lambda item: len(item[0].ids))
        size = micro_batch(len(ordered), self.settings.accumulate, self.lm.device)
        for start in range(0, len(ordered), size):
            yield ordered[start : start + size]

    def _check_finite(self, loss: float | None) -> None:
        norm = torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), self.settings.clip_norm)
        if (loss is None or math.isfinite(loss)) and bool(torch.isfinite(norm)):
            return
        self.discard()
        known = "" if loss is None else f"loss {loss:g} and "
        raise TrainingDiverged(
            f"step {self._steps + 1} of {self.lm.source}: expected a finite loss and gradient, found {known}"
            f"gradient norm {float(norm):g}; the adapter is unchanged. Lower learning_rate."
        )

    def _update(self) -> None:
        warm = min(1.0, (self._steps + 1) / max(1, self.settings.warmup_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * warm
        self._optimizer.step()
        self.discard()
        self._steps += 1


def micro_batch(rows: int, accumulate: int, device: torch.device) -> int:
    """How many of `rows` go through the model at once."""
    size = math.ceil(rows / accumulate)
    return min(size, ROWS_ON_CPU) if device.type == "cpu" else size


def _with_factors(groups: Sequence[tuple[Sequence[Row], float]]) -> list[tuple[Row, float]]:
    """All rows of groups with a weight, each with the factor for the *sum* of its token losses."""
    if not any(weight for _, weight in groups):
        raise ValueError(f"expected a group with a weight, found {len(groups)} groups without")
    weighted = []
    for rows, weight in groups:
        tokens = sum(row.loss_tokens for row in rows)
        if weight and not tokens:
            raise ValueError(f"a group of weight {weight} has {len(rows)} rows but no token with loss")
        weighted += [(row, weight / tokens) for row in rows if weight]
    return weighted
