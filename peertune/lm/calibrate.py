"""Measure what a model costs: FLOPs by torch's own counter, bytes by what autograd saves, on five tiny batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from peertune.lm.encode import Batch, Row, collate
from peertune.lm.flops import SHAPES, Costs, Monomials, fit
from peertune.lm.frozen import letter
from peertune.lm.model import LanguageModel
from peertune.lm.score import completion_losses
from peertune.lm.seeding import seeded

ATEN: Any = torch.ops.aten
UNCOUNTED = {  # operations that torch has no formula for: another with the same arguments
    ATEN.addmm_: ATEN.addmm,
    ATEN._scaled_dot_product_flash_attention_for_cpu: ATEN._scaled_dot_product_flash_attention,
    ATEN._scaled_dot_product_flash_attention_for_cpu_backward: ATEN._scaled_dot_product_flash_attention_backward,
}


def flop_counter() -> FlopCounterMode:
    """Torch's counter of matrix products, which here also knows those that this package's training is made of."""
    counter = FlopCounterMode(display=False)
    counter.flop_registry |= {operation: flop_registry[twin] for operation, twin in UNCOUNTED.items()}
    return counter


def costs_of(lm: LanguageModel, adapter: str, still: str = "") -> Costs:
    """The costs of `lm` with that adapter; measured once for all adapters with the same settings and extras.

    `still`: letters of the factors that are not trained, as of a `Pass`.
    """
    key = lm.settings(adapter), lm.extras(adapter), still
    if key not in lm.costs:
        lm.costs[key] = calibrate(lm, adapter, still)
    return lm.costs[key]


def calibrate(lm: LanguageModel, adapter: str, still: str = "") -> Costs:
    """The costs of `lm` with an adapter like that of `adapter`, from five training passes that leave no trace.

    Not to be called inside a block of `lm.using`.
    """
    trained = lm.trainable(adapter)
    frozen = sum(part.nbytes for part in lm.frozen(adapter).values())
    with lm.using(adapter, train=True) as model, seeded(0, lm.device), _held(trained, still) as moving:
        base = lm.parameters * model.get_input_embeddings().weight.element_size() + frozen
        costs = measure(model, moving, base, lambda rows, width: completion_losses(model, _batch(lm, rows, width)))
    return replace(costs, adapter=sum(parameter.nbytes for parameter in trained.values()))


@contextmanager
def _held(trained: Mapping[str, torch.nn.Parameter], still: str) -> Iterator[list[torch.nn.Parameter]]:
    """In the block only the factors that are not `still`, and what is none, get gradients."""
    kept = [parameter for name, parameter in trained.items() if letter(name) and letter(name) in still]
    for parameter in kept:
        parameter.requires_grad_(False)
    try:
        yield [parameter for parameter in trained.values() if parameter.requires_grad]
    finally:
        for parameter in kept:
            parameter.requires_grad_(True)


def measure(
    model: Any, trained: list[torch.nn.Parameter], base: int, losses: Callable[[int, int], torch.Tensor]
) -> Costs:
    """The costs of any transformer. `losses(rows, width)` runs it on any tokens of that shape, with a label a row.

    `base`: bytes of the weights that are not `trained`.
    """
    probes = [_Probe(model, trained, partial(losses, rows, width)) for rows, width, _ in SHAPES]
    return Costs(
        forward=_fit([probe.forward for probe in probes]),
        backward=_fit([probe.backward for probe in probes]),
        saved=_fit([probe.saved for probe in probes]),
        base=base,
        adapter=sum(parameter.nbytes for parameter in trained),
    )


def blocks(model: Any) -> list[torch.nn.Module]:
    """The transformer's blocks, lowest first; none where they are not in one list: all of it is one part then."""
    layers = model.config.get_text_config().num_hidden_layers
    lists = (list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return next((found for found in lists if len(found) == layers), [])


class _Probe:
    """One training pass. `forward`, `backward` and `saved` are FLOPs, FLOPs and bytes of its parts, from below."""

    def __init__(self, model: Any, trained: list[torch.nn.Parameter], losses: Callable[[], torch.Tensor]) -> None:
        self._counter = flop_counter()
        self._fixed = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._kept: dict[int, int] = {}  # storage -> bytes
        self._reached: list[tuple[int, int]] = []  # FLOPs and bytes at each border between parts, from below
        self._returned: dict[int, int] = {}  # border -> FLOPs when the gradient of the hidden states there is known
        with self._counter:
            with saved_tensors_hooks(self._keep, lambda tensor: tensor), self._at_borders(blocks(model)):
                loss = losses().sum()
            top = self._now()
            torch.autograd.grad(loss, trained)
        self._conclude(top, self._counter.get_total_flops())

    def _conclude(self, top: tuple[int, int], end: int) -> None:
        flops, saved = zip((0, 0), *self._reached, top, strict=True)
        self.forward, self.saved = _steps(flops), _steps(saved)
        # where no gradient comes to, there was nothing left to do
        returned = [self._returned.get(border, end) for border in range(len(self._reached))]
        self.backward = [-step for step in _steps([end, *returned, top[0]])]

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in self._fixed:
            self._kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    def _now(self) -> tuple[int, int]:
        return self._counter.get_total_flops(), sum(self._kept.values())

    def _pass_border(self, hidden: torch.Tensor) -> None:
        border = len(self._reached)
        self._reached.append(self._now())
        if hidden.requires_grad:
            hidden.register_hook(lambda _: self._returned.update({border: self._counter.get_total_flops()}))

    @contextmanager
    def _at_borders(self, stack: list[torch.nn.Module]) -> Iterator[None]:
        hooks = [block.register_forward_pre_hook(lambda _, inputs: self._pass_border(inputs[0])) for block in stack]
        for last in stack[-1:]:
            hooks.append(last.register_forward_hook(lambda _, inputs, output: self._pass_border(_first(output))))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _fit(measured: list[list[int]]) -> tuple[Monomials, ...]:
    """`measured` [shape, part] -> a polynomial a part."""
    return tuple(fit(part) for part in zip(*measured, strict=True))


def _steps(totals: Sequence[int]) -> list[int]:
    return [after - before for before, after in pairwise(totals)]


def _first(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # a fake one has no data


def _batch(lm: LanguageModel, rows: int, width: int) -> Batch:
    """Any tokens; the last of each row has loss, or its class. One row of a classifier is shorter: its mask costs."""
    if not lm.labels:
        return collate([Row((0,) * width, width - 1, False)] * rows, lm.pad_token, lm.device)
    lengths = [width - 1, *[width] * (rows - 1)]
    return collate([Row((0,) * length, length, False, label=0) for length in lengths], lm.pad_token, lm.device)
