"""A model without its weights: all shapes are there and its costs are known, and nothing was loaded.

Its tensors are torch's fake ones: they have a shape, a type and a device, and no memory. What runs on them takes the
same kernels as on true ones, so what `lm.calibrate` counts is the same to the last unit.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from peertune.errors import ConfigError
from peertune.lm.calibrate import blocks, costs_of
from peertune.lm.flops import Costs, Monomials
from peertune.lm.load import as_classifier, as_writer, first_line, load_tokenizer, precision
from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet
from peertune.lm.settings import AdapterSettings
from peertune.lm.source import description

ADAPTER = "plan"  # the name of a blueprint's adapter
_MEASURED = 2  # blocks that tell what more of the same shape cost; only the lowest is unlike the others


@dataclass(frozen=True, eq=False)
class Blueprint:
    """`lm`: the whole model with one adapter, `ADAPTER`; `short`: its twin with few blocks, or itself. Final."""

    lm: LanguageModel
    short: LanguageModel

    @classmethod
    def of(
        cls, source: str, settings: AdapterSettings, device: str = "cpu", labels: tuple[str, ...] = ()
    ) -> "Blueprint":
        """Read the configuration and the tokenizer of a model.

        Raises `ConfigError`: no such model, a config.json that cannot be read, no tokenizer, no layers of these names.
        """
        folder = description(source)
        with quiet():
            tokenizer = load_tokenizer(folder, source, writes=not labels)
            try:
                config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
                lm = _made(source, config, tokenizer, labels, device)
            except Exception as error:  # a damaged config.json raises anything
                raise ConfigError(
                    f"model {source!r}: expected a config.json that transformers can read; copy or download it again "
                    f"({first_line(error)})"
                ) from error
            _adapt(lm, settings, device)
            short = lm
            if _alike(lm):
                short = _made(source, _shortened(config), tokenizer, labels, device)
                _adapt(short, settings, device)
        return cls(lm, short)

    def costs(self, core: bool = False, frozen: Mapping[str, int] | None = None, still: str = "") -> Costs:
        """Of the model with the adapter; with a core; with frozen parts of these ranks, by the paths of layers.

        `still`: letters of the factors that are not trained.
        """
        self._dress(core, frozen or {})
        found = costs_of(self.short, ADAPTER, still)
        if self.short is not self.lm:
            found = _lengthened(found, self.lm)
        self._dress(False, {})
        return found

    def _dress(self, core: bool, frozen: Mapping[str, int]) -> None:
        with _fakes():
            for lm in {self.lm, self.short}:
                lm.set_core(ADAPTER, core)
                lm.freeze(ADAPTER, _parts(lm, frozen))


def _made(source: str, config: Any, tokenizer: Any, labels: tuple[str, ...], device: str) -> LanguageModel:
    config = copy.deepcopy(config)  # the model writes into it
    loader: Any = AutoModelForCausalLM
    if labels:
        loader, config.num_labels = AutoModelForSequenceClassification, len(labels)
    with torch.device("meta"):
        base = loader.from_config(config, dtype=precision(device))
    as_classifier(base, tokenizer, 0) if labels else as_writer(base, tokenizer)
    return LanguageModel(source, base.requires_grad_(False).eval(), tokenizer, labels)


def _adapt(lm: LanguageModel, settings: AdapterSettings, device: str) -> None:
    """Add the adapter, and move everything from the meta device to `device`."""
    with torch.device("meta"):
        lm.add_adapter(ADAPTER, settings, seed=0)
    with lm.using(ADAPTER) as model:
        _fake(model, device)
    lm.device = torch.device(device)


def _fake(model: torch.nn.Module, device: str) -> None:
    """Fake tensors on `device` in the place of those on the meta device; tied weights stay one."""
    made: dict[int, tuple[Any, torch.Tensor]] = {}  # by the id of a tensor, which must live as long
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.device.type == "meta":
                    if id(tensor) not in made:
                        made[id(tensor)] = _like(tensor, device), tensor
                    tensors[name] = made[id(tensor)][0]


def _like(tensor: torch.Tensor, device: str) -> torch.Tensor:
    with _fakes():
        fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return torch.nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_parameter else fake


def _alike(lm: LanguageModel) -> bool:
    """Are there blocks to leave out: have all the same shapes and kind of attention?"""
    with lm.using(ADAPTER) as model:
        stack = blocks(model)
        kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    shapes = {tuple((name, part.shape) for name, part in block.named_parameters()) for block in stack}
    return len(stack) > _MEASURED and len(shapes) == 1 and len(kinds) < 2


def _shortened(config: Any) -> Any:
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = _MEASURED
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:_MEASURED]
    return short


@cache
def _fakes() -> FakeTensorMode:
    """In the block all tensors are made fake. One for all: the fakes of two do not go together."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def _parts(lm: LanguageModel, ranks: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Frozen parts of those ranks in the layers that there are."""
    found = {}
    for name, tensor in lm.trainable(ADAPTER).items():
        path, _, side = name.partition(".lora_")
        if side == "A.weight" and path in ranks:
            found[f"{path}.frozen_A.weight"] = torch.empty(ranks[path], tensor.shape[1])
        elif side == "B.weight" and path in ranks:
            found[f"{path}.frozen_B.weight"] = torch.empty(tensor.shape[0], ranks[path])
    return found


def _lengthened(short: Costs, lm: LanguageModel) -> Costs:
    """The costs of `lm` from those of its twin with `_MEASURED` blocks."""
    with lm.using(ADAPTER) as model:
        more = len(blocks(model)) - _MEASURED
        embedded = model.get_input_embeddings().weight

    def repeated(parts: tuple[Monomials, ...]) -> tuple[Monomials, ...]:
        return (*parts[:-1], *[parts[-2]] * more, parts[-1])

    frozen = sum(part.nbytes for part in lm.frozen(ADAPTER).values())
    return Costs(
        forward=repeated(short.forward),
        backward=repeated(short.backward),
        saved=repeated(short.saved),
        base=lm.parameters * embedded.element_size() + frozen,
        adapter=sum(parameter.nbytes for parameter in lm.trainable(ADAPTER).values()),
    )
