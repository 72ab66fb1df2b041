"""One model with frozen base weights, and the LoRA adapters of the agents that share it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from peertune.errors import ConfigError, PayloadError
from peertune.lm.flops import Costs, Pass
from peertune.lm.frozen import as_lora, extras_of, freeze, frozen_of, has_core, ranks_of, set_core
from peertune.lm.load import context_of, first_line, head_of, load_base, load_classifier, load_tokenizer
from peertune.lm.lora import AdaptedLinear
from peertune.lm.quiet import quiet
from peertune.lm.seeding import seeded
from peertune.lm.settings import AdapterSettings
from peertune.lm.source import local_folder, resolve


class LanguageModel:
    """A base model, its tokenizer and named adapters. Final; made by `load`.

    The base is fp32 on a CPU and bf16 on a GPU and is never trained; adapters are always fp32.
    `labels`: the names of the classes that it chooses from; empty if it writes text. The head of a classifier belongs
    to each adapter. `parameters` counts the base. `max_length` is the context in tokens. `costs`: what is known of
    them, by adapter's settings, and its extras if it has any.
    """

    def __init__(self, source: str, base: Any, tokenizer: Any, labels: Sequence[str] = ()) -> None:
        self.source = source
        self.labels = tuple(labels)
        self.tokenizer = tokenizer
        self.device: torch.device = base.device
        self.family: str = base.config.model_type
        self.parameters = sum(parameter.numel() for parameter in base.parameters())
        self.max_length = context_of(base)
        self.pad_token: int = tokenizer.pad_token_id
        self.costs: dict[Any, Costs] = {}
        self.end_tokens: frozenset[int] = frozenset(() if labels else base.generation_config.eos_token_id)
        self._base = base
        self._head = head_of(base) if labels else None
        self._peft: PeftModel | None = None
        self._active = ""
        self._keys: dict[str, str] = {}  # agent's name -> peft's name, so that an agent may have any name
        self._settings: dict[str, AdapterSettings] = {}
        self._ran: dict[str, Counter[Pass]] = {}

    @classmethod
    def load(cls, source: str, device: str = "cpu", labels: Sequence[str] = (), seed: int = 0) -> "LanguageModel":
        """Read safetensors weights and the tokenizer; code that comes with a model is never run.

        With `labels` an encoder or causal model becomes a classifier. All its adapters start from the same new head,
        that of `seed`. Raises `ConfigError`: no such model, corrupt or incomplete weights, a tokenizer that does not
        fit.
        """
        place, _ = resolve(source)
        folder = local_folder(source)
        with quiet():
            tokenizer = load_tokenizer(folder, source, writes=not labels)
            if labels:
                base = load_classifier(folder, source, tokenizer, device, len(labels), seed)
            else:
                base = load_base(folder, source, tokenizer, device)
        return cls(place, base, tokenizer, labels)

    def add_adapter(self, name: str, settings: AdapterSettings, seed: int) -> None:
        """Give agent `name` a new adapter; its start depends on `settings` and `seed` only, and B = 0.

        Raises `ConfigError` if the name is taken or no layer is named as in `target_modules`.
        """
        if name in self._keys:
            raise ConfigError(f"{self.source}: an adapter {name!r} exists already; give each agent its own name.")
        key = f"adapter{len(self._keys)}"
        try:
            with quiet(), seeded(seed, self.device):
                self._insert(key, self._lora(settings))
        except ValueError as error:
            raise ConfigError(f"{self.source} ({self.family}): {first_line(error)}") from error
        self._keys[name], self._settings[name], self._ran[name] = key, settings, Counter()
        self._model().eval()

    def has_adapter(self, name: str) -> bool:
        return name in self._keys

    @property
    def width(self) -> int:
        """How many tokens, or classes, it chooses from."""
        return len(self.labels) or self._base.get_output_embeddings().weight.shape[0]

    def trainable(self, name: str) -> dict[str, torch.nn.Parameter]:
        """The parameters of an adapter themselves; names sorted, as in a PEFT file, equal for all agents."""
        part = f".{self._key(name)}."
        parameters = self._model().named_parameters()
        own = ((path.replace(part, "."), parameter) for path, parameter in parameters if part in path)
        return dict(sorted((path.replace(".modules_to_save.", "."), parameter) for path, parameter in own))

    def adapter_state(self, name: str) -> dict[str, torch.Tensor]:
        """CPU fp32 copies of an adapter's tensors, names sorted."""
        return {
            path: parameter.detach().to("cpu", torch.float32, copy=True)
            for path, parameter in self.trainable(name).items()
        }

    def load_adapter(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite an adapter. Raises `PayloadError`, and changes nothing, unless names and shapes fit."""
        own = self.trainable(name)
        check_tensors(tensors, own)
        with torch.no_grad():
            for path, parameter in own.items():
                parameter.copy_(tensors[path])

    def frozen(self, name: str) -> dict[str, torch.Tensor]:
        """What was added to the base for good with this adapter, CPU: ....frozen_A.weight and ....frozen_B.weight."""
        return frozen_of(self._model(), self._key(name))

    def freeze(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace that. Raises `PayloadError`, and changes nothing, unless all fit the layers of the model."""
        freeze(self._model(), self._key(name), tensors)

    def has_core(self, name: str) -> bool:
        """Does the adapter have a core R between B and A?"""
        return has_core(self._model(), self._key(name))

    def extras(self, name: str) -> tuple[tuple[int, int], ...]:
        """The ranks of the core and the frozen part of each layer; empty if there are none."""
        return extras_of(self._model(), self._key(name))

    def set_core(self, name: str, wanted: bool) -> None:
        """Give the adapter a core R = 0, or take it away. `trainable` has other parameters then."""
        set_core(self._model(), self._key(name), wanted)

    def save_adapter(self, name: str, folder: Path) -> None:
        """Write a standard PEFT folder: adapter_config.json and adapter_model.safetensors; labels.json for classes.

        A core is multiplied into B; a frozen part raises the rank of its layers.
        """
        folder.mkdir(parents=True, exist_ok=True)
        config = cast(Any, self._model().peft_config[self._key(name)])
        scale = config.lora_alpha / config.r
        tensors = as_lora(self.adapter_state(name), self.frozen(name), scale)
        ranks = {path.removeprefix("base_model.model."): rank for path, rank in ranks_of(tensors).items()}
        raised = {path: rank for path, rank in ranks.items() if rank != config.r}
        patterns = {"rank_pattern": raised, "alpha_pattern": {path: scale * rank for path, rank in raised.items()}}
        written = replace(config, base_model_name_or_path=self.source, inference_mode=True, **patterns)
        with quiet():
            written.save_pretrained(str(folder))
        _sort_targets(folder / "adapter_config.json")
        if self.labels:
            (folder / "labels.json").write_text(json.dumps(self.labels, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    @contextmanager
    def using(self, name: str, train: bool = False) -> Iterator[Any]:
        """In the block the model answers with the adapter of `name`, with (`train`) or without dropout."""
        model, key = self._model(), self._key(name)
        if key != self._active:  # both walk through all modules, which takes as long as a tenth of a small step
            model.set_adapter(key)
            self._active = key
        if train != model.training:
            model.train(train)
        yield model

    def settings(self, name: str) -> AdapterSettings:
        return self._settings[name]

    def note(self, name: str, ran: Pass) -> None:
        """A batch went through the model with this adapter."""
        self._ran[name][ran] += 1

    def take_passes(self, name: str) -> Counter[Pass]:
        """What was noted of this adapter since the last call."""
        taken, self._ran[name] = self._ran[name], Counter()
        return taken

    def _insert(self, key: str, config: LoraConfig) -> None:
        if self._peft is None:
            self._peft = PeftModel(self._base, config, adapter_name=key)
        else:
            self._peft.add_adapter(key, config)
        self._active = ""

    def _lora(self, settings: AdapterSettings) -> LoraConfig:
        # peft's "all-linear" leaves the head out; gpt2's Conv1D stores its weight transposed
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS if self.labels else TaskType.CAUSAL_LM,
            modules_to_save=self._head,
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=list(settings.target_modules) if settings.target_modules else "all-linear",
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in self._base.modules()),
        )
        config._register_custom_module({torch.nn.Linear: AdaptedLinear, Conv1D: AdaptedLinear})
        return config

    def _model(self) -> PeftModel:
        if self._peft is None:
            raise ConfigError(f"{self.source}: expected an adapter, found none; call add_adapter first.")
        return self._peft

    def _key(self, name: str) -> str:
        if name not in self._keys:
            known = ", ".join(self._keys) or "none"
            raise ConfigError(f"{self.source}: no adapter named {name!r}; there are: {known}.")
        return self._keys[name]


def check_tensors(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise `PayloadError` unless both have the same names and, under each, shape and kind of number."""
    if missing := sorted(expected.keys() - tensors.keys()):
        raise PayloadError(f"expected {len(expected)} tensors; {len(missing)} missing, the first {missing[0]!r}")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise PayloadError(f"expected {len(expected)} tensors; {len(extra)} unknown, the first {extra[0]!r}")
    for name, tensor in expected.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.is_floating_point() != tensor.is_floating_point():
            expected_type = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise PayloadError(f"{name}: expected {expected_type}, found {found.dtype} {tuple(found.shape)}")


def _sort_targets(path: Path) -> None:
    """Sort the target modules (peft keeps a set): the same adapter then always gives the same file."""
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
