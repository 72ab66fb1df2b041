"""Models without weights: the same shapes and costs as with them, to the last unit, and nothing is read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_tiny_encoder, make_tiny_model

from peertune.errors import ConfigError
from peertune.lm import model as models
from peertune.lm.blueprint import ADAPTER, Blueprint
from peertune.lm.calibrate import costs_of
from peertune.lm.model import LanguageModel
from peertune.lm.settings import AdapterSettings

SETTINGS = AdapterSettings(rank=3)
LABELS = ("a", "b", "c")


def loaded(source: str, settings: AdapterSettings = SETTINGS, labels: tuple[str, ...] = ()) -> LanguageModel:
    lm = LanguageModel.load(source, labels=labels)
    lm.add_adapter(ADAPTER, settings, seed=0)
    return lm


def shapes(lm: LanguageModel) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in lm.trainable(ADAPTER).items()}


def without_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return str(folder)


@pytest.mark.parametrize(
    ("source", "labels", "settings"),
    [
        ("bundled/gpt2", (), SETTINGS),
        ("bundled/qwen2", LABELS, SETTINGS),
        ("bundled/gpt2", (), AdapterSettings(target_modules=("0.attn.c_attn", "2.mlp.c_fc"))),  # no two blocks alike
    ],
    ids=["writer", "classifier", "uneven"],
)
def test_costs_and_shapes_are_those_of_the_model(
    source: str, labels: tuple[str, ...], settings: AdapterSettings
) -> None:
    """The bundled models have three blocks, of which two are measured where they are alike."""
    true, found = loaded(source, settings, labels), Blueprint.of(source, settings, labels=labels)
    assert (found.short is found.lm) == (settings is not SETTINGS)
    assert found.costs() == costs_of(true, ADAPTER)
    assert shapes(found.lm) == shapes(true)
    assert (found.lm.parameters, found.lm.max_length, found.lm.width) == (true.parameters, true.max_length, true.width)


def test_costs_of_an_encoder_are_those_of_the_model(tmp_path: Path) -> None:
    source = str(make_tiny_encoder(tmp_path, "bert"))
    assert Blueprint.of(source, SETTINGS, labels=LABELS).costs() == costs_of(loaded(source, labels=LABELS), ADAPTER)


def test_cores_and_frozen_parts_cost_what_they_do_in_the_model() -> None:
    true, found = loaded("bundled/gpt_neox"), Blueprint.of("bundled/gpt_neox", SETTINGS)
    paths = [name.removesuffix(".lora_A.weight") for name in shapes(true) if name.endswith(".lora_A.weight")]
    ranks = {path: 5 for path in paths}
    sides = {
        path: (shapes(true)[f"{path}.lora_A.weight"][1], shapes(true)[f"{path}.lora_B.weight"][0]) for path in paths
    }
    plain = found.costs()
    true.set_core(ADAPTER, True)
    true.freeze(
        ADAPTER,
        {f"{path}.frozen_A.weight": torch.ones(5, d_in) for path, (d_in, _) in sides.items()}
        | {f"{path}.frozen_B.weight": torch.ones(d_out, 5) for path, (_, d_out) in sides.items()},
    )
    assert found.costs(core=True, frozen=ranks) == costs_of(true, ADAPTER) != plain
    assert found.costs(True, ranks, "AB") == costs_of(true, ADAPTER, "AB") != costs_of(true, ADAPTER)
    assert found.costs() == plain  # nothing is left behind


def test_no_weights_are_read_or_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("weights were asked for")

    for loader in ("load_base", "load_classifier", "local_folder"):
        monkeypatch.setattr(models, loader, refuse)
    lm = Blueprint.of(without_weights(make_tiny_model(tmp_path, "llama")), SETTINGS).lm
    with lm.using(ADAPTER) as model:
        tensors = [*model.parameters(), *model.buffers()]
    assert tensors and {type(tensor).__name__ for tensor in tensors} == {"FakeTensor"}


def test_a_large_model_takes_no_memory(tmp_path: Path) -> None:
    """70 billion parameters; its blocks are alike, so two are measured."""
    make_tiny_model(tmp_path, "llama")
    sizes = {"hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672, "num_attention_heads": 64}
    config = json.loads((tmp_path / "config.json").read_text())
    more = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config | sizes | more))
    found = Blueprint.of(without_weights(tmp_path), AdapterSettings(target_modules=("q_proj",)))
    assert found.lm.parameters == 70_553_706_496
    rows, width = 1, 100
    matrices = 2 * rows * width * (found.lm.parameters - 128256 * 8192 - 161 * 8192)  # no embeddings, no norms
    assert found.costs().forward_flops(rows, width, rows * width) == pytest.approx(matrices, rel=0.01)


@pytest.mark.parametrize(
    ("config", "expected"),
    [('{"model_type": "nothing"}', "a config.json that transformers can read"), ("{", "config.json")],
)
def test_a_config_that_cannot_be_read_is_refused(tmp_path: Path, config: str, expected: str) -> None:
    make_tiny_model(tmp_path, "gpt2")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match=expected):
        Blueprint.of(str(tmp_path), SETTINGS)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="no_such_layer"):
        Blueprint.of("bundled/gpt2", AdapterSettings(target_modules=("no_such_layer",)))


def test_of_the_hub_only_the_description_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[str]] = {}

    def snapshot(place: str, allow_patterns: list[str]) -> str:
        asked[place] = allow_patterns
        return without_weights(make_tiny_model(tmp_path, "gpt2"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert Blueprint.of("somebody/gpt2", SETTINGS).lm.parameters > 0
    assert "config.json" in asked["somebody/gpt2"] and not any("safetensors" in each for each in asked["somebody/gpt2"])
