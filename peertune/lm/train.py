"""One agent's optimiser over its adapter."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from peertune.errors import PeertuneError
from peertune.lm.encode import Row, collate
from peertune.lm.flops import Pass
from peertune.lm.frozen import letter
from peertune.lm.model import LanguageModel, check_tensors
from peertune.lm.score import completion_losses
from peertune.lm.seeding import seeded
from peertune.lm.settings import TrainingSettings
from peertune.lm.teach import Taught, backward

ROWS_ON_CPU = 8  # of a micro-batch at most: more rows need more padding and leave the cache; fewer, more Python
MOMENTS = ("exp_avg", "exp_avg_sq")
FROZEN = "frozen/"


class TrainingDiverged(PeertuneError):
    """The loss or its gradient is not a number; the step was not taken."""


Groups = Sequence[tuple[Sequence[Row], float]]  # rows, and the weight of their mean loss


class Trainer:
    """AdamW on one adapter: linear warm-up, gradient clipping, micro-batches. Final.

    `names`: which of its parameters, as in `lm.trainable`, are trained, clipped and in `state`; None = all.
    """

    def __init__(
        self, lm: LanguageModel, adapter: str, settings: TrainingSettings, names: Collection[str] | None = None
    ) -> None:
        self.lm, self.adapter, self.settings = lm, adapter, settings
        self._names, self._steps = names, 0
        self._moving: Collection[str] | None = None
        self._still = ""
        self._anchors: dict[str, torch.Tensor] = {}
        self._proximal = 0.0
        self._begin()

    @contextmanager
    def only(self, names: Collection[str], proximal: float = 0.0) -> Iterator[None]:
        """In the block steps move these parameters alone. `proximal`: the mu of FedProx (arXiv:1812.06127, Eq. 2),
        which adds mu / 2 ||theta - theta_0||^2 to what is minimised; theta_0 is where they are now.
        """
        self._moving, self._proximal = names, proximal
        self._still = "".join(sorted({letter(name) for name in self._parameters if name not in names}))
        self._anchors = {name: self._parameters[name].detach().clone() for name in names} if proximal else {}
        try:
            yield
        finally:
            self._moving, self._still, self._anchors = None, "", {}
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite these parameters, of the right shapes. AdamW begins anew on them; the warm-up is not repeated."""
        if any(letter(name) == "R" for name in tensors):
            self._set_core(True)
        with torch.no_grad():
            for name, tensor in tensors.items():
                self._parameters[name].copy_(tensor)
                self._optimizer.state.pop(self._parameters[name], None)

    def step(self, groups: Groups, seed: int, taught: Taught | None = None) -> float:
        """One optimiser step on sum_g weight_g * (mean token cross-entropy of group g); returns it (nats).

        KNEXA-FL, Eq. 2: groups = [(own rows, 1 - a), (rows of the teacher's text, a)]. The rows of all groups,
        by length, are cut into `accumulate` or more micro-batches, which give the same gradient as the whole.
        A group of weight 0 is left out. `taught`: rows with a teacher, whose part of the sum is added. `seed` decides
        dropout. Raises `TrainingDiverged` before anything changes.
        """
        weighted = _with_factors(groups, taught)
        self.discard()
        loss = 0.0
        with self.lm.using(self.adapter, train=True) as model, seeded(seed, self.lm.device):
            self._mark()
            for part in self._micro_batches(weighted):
                batch = collate([row for row, _ in part], self.lm.pad_token, self.lm.device)
                factors = torch.tensor([factor for row, factor in part for _ in range(row.loss_tokens)])
                shape = len(batch.ids), batch.ids.shape[1], len(factors)
                self.lm.note(self.adapter, Pass("training", *shape, still=self._still))
                share = completion_losses(model, batch) @ factors.to(self.lm.device)
                share.backward()
                loss += share.item()
            if taught:
                size = micro_batch(len(taught.rows), self.settings.accumulate, self.lm.device)
                loss += backward(self.lm, self.adapter, model, taught, size)
        self._pull_back()
        self.apply(loss)
        return loss

    def renew(self) -> None:
        """Forget the moments of AdamW, and begin the warm-up again."""
        self._steps = 0
        self._begin()

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
        """Adapter, frozen parts, AdamW moments and step counter as CPU tensors; `load_state` restores the same bits.

        `counts`: the steps that AdamW has made on each parameter, where it has not made all on all.
        """
        tensors = {"steps": torch.tensor(self._steps)}
        counts = [int(self._moments(parameter).get("step", 0)) for parameter in self._parameters.values()]
        if any(count != self._steps for count in counts):
            tensors["counts"] = torch.tensor(counts)
        for name, parameter in self._parameters.items():
            tensors[f"adapter/{name}"] = parameter.detach().to("cpu", copy=True)
            for moment in MOMENTS:
                # before the first step AdamW has no moments; it starts from zeros
                value = self._moments(parameter).get(moment, torch.zeros_like(parameter))
                tensors[f"{moment}/{name}"] = value.detach().to("cpu", copy=True)
        return tensors | {FROZEN + name: tensor for name, tensor in self.lm.frozen(self.adapter).items()}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state()`. Raises `PayloadError` if names or shapes differ; nothing has changed then but that
        the adapter has a core if, and only if, they have one.
        """
        self._set_core(any(letter(name) == "R" for name in tensors))
        check_tensors(_own(tensors), _own(self.state()))
        self.lm.freeze(
            self.adapter, {name.removeprefix(FROZEN): tensors[name] for name in tensors if name.startswith(FROZEN)}
        )
        self._steps = int(tensors["steps"])
        counts = tensors.get("counts", tensors["steps"]).expand(len(self._parameters)).tolist()
        for (name, parameter), count in zip(self._parameters.items(), counts, strict=True):
            with torch.no_grad():
                parameter.copy_(tensors[f"adapter/{name}"])
            kept = {moment: tensors[f"{moment}/{name}"].to(parameter.device, copy=True) for moment in MOMENTS}
            step = torch.tensor(float(count), device=parameter.device)
            self._optimizer.state[parameter] = {"step": step, **kept}

    def _begin(self) -> None:
        trainable = self.lm.trainable(self.adapter)
        names = trainable if self._names is None else sorted(self._names)
        self._parameters = {name: trainable[name] for name in names}
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()),
            lr=self.settings.learning_rate,
            betas=self.settings.betas,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )

    def _set_core(self, wanted: bool) -> None:
        if wanted != self.lm.has_core(self.adapter):
            self.lm.set_core(self.adapter, wanted)
            self._begin()

    def _moments(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        return self._optimizer.state.get(parameter, {})

    def _mark(self) -> None:
        """Autograd leaves out what is not to move. Within `using`, which marks all parameters of the adapter."""
        if self._moving is not None:
            for name, parameter in self._parameters.items():
                parameter.requires_grad_(name in self._moving)

    def _pull_back(self) -> None:
        for name, start in self._anchors.items():
            parameter = self._parameters[name]
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self._proximal)

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


def _own(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a state what every one with these parameters has."""
    return {name: tensor for name, tensor in tensors.items() if name != "counts" and not name.startswith(FROZEN)}


def micro_batch(rows: int, accumulate: int, device: torch.device) -> int:
    """How many of `rows` go through the model at once."""
    size = max(1, math.ceil(rows / accumulate))
    return min(size, ROWS_ON_CPU) if device.type == "cpu" else size


def _with_factors(groups: Groups, taught: Taught | None) -> list[tuple[Row, float]]:
    """All rows of groups with a weight, each with the factor for the *sum* of its token losses."""
    if not taught and not any(weight for _, weight in groups):
        raise ValueError(f"expected a group with a weight, found {len(groups)} groups without")
    weighted = []
    for rows, weight in groups:
        tokens = sum(row.loss_tokens for row in rows)
        if weight and not tokens:
            raise ValueError(f"a group of weight {weight} has {len(rows)} rows but no token with loss")
        weighted += [(row, weight / tokens) for row in rows if weight]
    return weighted
