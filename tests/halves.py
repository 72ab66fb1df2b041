"""Tiny models in two halves, client and server, that learn together in one process."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from peertune.codecs import Codec, bytes_of, decode_array, encode_array
from peertune.lm.cut import ENCODERS, Cut, Parts
from peertune.lm.encode import Row
from peertune.lm.model import LanguageModel
from peertune.lm.ragged import Sample
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.lm.split import ClientHalf, ServerHalf
from peertune.lm.train import Trainer

LAYERS, WIDTH, VOCABULARY, CLASSES, PAD = 4, 16, 50, 5, 1
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": PAD}
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
FULL = SIZES | {"intermediate_size": 24, "max_position_embeddings": 64, "tie_word_embeddings": True}
GPT2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": FULL,
    "mistral": FULL | {"num_key_value_heads": 1, "sliding_window": 4},
    # windows in the upper blocks alone: a block must get the mask of its own number
    "qwen2": FULL | {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2},
    "qwen3": FULL | {"num_key_value_heads": 1, "head_dim": 8},
    "gpt2": GPT2 | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gpt_neox": FULL,
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 2, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    **dict.fromkeys(ENCODERS, FULL | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}),
}
CAUSAL = [family for family in FAMILIES if family not in ENCODERS]
U_SHAPES = [Cut(first, last) for first in range(1, LAYERS) for last in range(first + 1, LAYERS + 1)]
PLAIN = [Cut(first, plain=True) for first in range(1, LAYERS)]
SETTINGS = TrainingSettings(learning_rate=1e-2, clip_norm=1e9, warmup_steps=1)
NAMES = ("whole", "client", "server")
FP32 = Codec("fp32")


def model(family: str, labels: bool = False, dropout: float = 0.0, **more: Any) -> LanguageModel:
    """A model with the same random adapter for each of `NAMES`."""
    config = AutoConfig.for_model(family, **FAMILIES[family], **COMMON, num_labels=CLASSES, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = (AutoModelForSequenceClassification if labels else AutoModelForCausalLM).from_config(config)
        for parameter in base.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    base.generation_config = GenerationConfig(eos_token_id=[0])
    lm = LanguageModel(f"tiny {family}", base.requires_grad_(False).eval(), SimpleNamespace(pad_token_id=PAD))
    for name in NAMES:
        lm.add_adapter(name, AdapterSettings(rank=2, dropout=dropout), seed=0)
    reset(lm)
    return lm


def reset(lm: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(1)
    state = {
        key: torch.randn(value.shape, generator=generator) * 0.2 for key, value in lm.adapter_state("whole").items()
    }
    for name in NAMES:
        lm.load_adapter(name, state)


def client_of(lm: LanguageModel, cut: Cut, name: str = "client") -> ClientHalf:
    return ClientHalf(Trainer(lm, name, SETTINGS), cut)


def server_of(lm: LanguageModel, cut: Cut, name: str = "server", clients: str = "c") -> ServerHalf:
    return ServerHalf(Trainer(lm, name, SETTINGS), dict.fromkeys(clients, cut))


def texts(rows: int = 5, seed: int = 0) -> list[Row]:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(4, 15, rows)
    return [Row(tuple(draw.integers(2, VOCABULARY, n).tolist()), int(draw.integers(1, n)), False) for n in lengths]


def labelled(lm: LanguageModel, rows: Sequence[Row]) -> list[Sample]:
    pooled = Parts(lm, "whole", Cut(1)).pooled
    return [Sample(row.ids, (pooled(row.ids),), (number % CLASSES,)) for number, row in enumerate(rows)]


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """What its optimiser gets at the last step; filled in when it steps."""
    seen: dict[str, torch.Tensor] = {}

    def note(*_: object) -> None:
        for name, parameter in trainer._parameters.items():
            if parameter.grad is not None:
                seen[name] = parameter.grad.clone()

    trainer._optimizer.register_step_pre_hook(note)
    return seen


class Pair:
    """Client and server of one split model; what passes between them goes through `codec`."""

    def __init__(self, lm: LanguageModel, cut: Cut, codec: Codec = FP32) -> None:
        self.client, self.server = client_of(lm, cut), server_of(lm, cut)
        self.plain, self.codec = cut.plain, codec
        self.seen = [gradients(half.trainer) for half in (self.client, self.server)]
        self.bytes = 0

    def send(self, array: np.ndarray) -> np.ndarray:
        self.bytes += bytes_of(self.codec, *array.shape)
        return decode_array(encode_array(array, self.codec), self.codec, *array.shape)

    def step(self, samples: Sequence[Sample]) -> float:
        smashed = self.client.lower(samples, seed=1)
        smashed = replace(smashed, hidden=self.send(smashed.hidden))
        if self.plain:
            loss, gradient = self.server.loss("c", smashed, seed=2)
        else:
            hidden = self.send(self.server.middle("c", smashed, seed=2))
            loss, gradient = self.client.loss(hidden, seed=3)
            gradient = self.server.back("c", self.send(gradient))
        self.client.back(self.send(gradient))
        return loss

    def gradients(self) -> dict[str, torch.Tensor]:
        assert not self.seen[0].keys() & self.seen[1].keys()
        return self.seen[0] | self.seen[1]

    def state(self, lm: LanguageModel) -> dict[str, torch.Tensor]:
        server = lm.adapter_state("server")
        return lm.adapter_state("client") | {name: server[name] for name in self.server.parts["c"].owned(client=False)}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    differences = {name: float((found[name] - expected[name]).abs().max()) for name in found}
    assert max(differences.values()) == 0.0, differences
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.values())
