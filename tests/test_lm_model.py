import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, TEXTS, make_tiny_model, make_tokenizer, randomise_adapter
from transformers import AutoModelForCausalLM

from peertune.errors import ConfigError, PayloadError
from peertune.lm.encode import encode
from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet
from peertune.lm.score import losses
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.lm.source import fingerprint, resolve
from peertune.lm.train import Trainer

LINEAR = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "bloom": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "opt": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
}
DROPOUT = AdapterSettings(rank=2, dropout=0.3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(root / family, family) for family in FAMILIES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of its own, for tests that damage it."""
    return make_tiny_model(tmp_path / "model", "llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_default_adapter_covers_all_linear_layers_but_the_head(folders: dict[str, Path], family: str) -> None:
    lm = LanguageModel.load(str(folders[family]))
    lm.add_adapter("a", AdapterSettings(rank=4), seed=0)
    names = list(lm.trainable("a"))
    assert {name.split(".")[-3] for name in names} == LINEAR[family]
    layers = 2 * (2 + 2 if family in ("gpt2", "gpt_neox", "bloom") else len(LINEAR[family]))  # gpt2 has two c_proj
    assert len(names) == 2 * layers and names == sorted(names)
    assert lm.family == family and not any(parameter.requires_grad for parameter in lm._base.lm_head.parameters())


def test_load_reports_the_model(folders: dict[str, Path]) -> None:
    lm = LanguageModel.load(str(folders["llama"]))
    stored = load_file(folders["llama"] / "model.safetensors")
    assert lm.parameters == sum(tensor.numel() for tensor in stored.values())
    assert (lm.max_length, lm.source, lm.device.type) == (96, str(folders["llama"]), "cpu")
    assert lm.end_tokens == {0} and lm.pad_token == 1


def test_tokenizer_is_read_as_it_is_written(folders: dict[str, Path]) -> None:
    """AutoTokenizer would give a qwen2 model the pre-tokenizer and normaliser of the Qwen2 family."""
    text = "e\u0301  def add(a, b): 1234"
    expected = make_tokenizer().encode(text)
    assert LanguageModel.load(str(folders["qwen2"])).tokenizer.encode(text) == expected


def test_adapter_start_depends_on_its_seed_only(folders: dict[str, Path]) -> None:
    alone, shared = LanguageModel.load(str(folders["qwen2"])), LanguageModel.load(str(folders["qwen2"]))
    before = torch.get_rng_state()
    shared.add_adapter("other", AdapterSettings(rank=4), seed=9)
    shared.add_adapter("a.b adapter0", DROPOUT, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    alone.add_adapter("a", DROPOUT, seed=1)
    first, second = alone.adapter_state("a"), shared.adapter_state("a.b adapter0")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert all((tensor == 0).all() for name, tensor in first.items() if "lora_B" in name)
    alone.add_adapter("c", DROPOUT, seed=2)
    assert not torch.equal(*(alone.adapter_state(name)[min(first)] for name in ("a", "c")))


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_agents_that_share_a_base_equal_agents_alone(folders: dict[str, Path], family: str) -> None:
    def agent(lm: LanguageModel, name: str) -> Trainer:
        lm.add_adapter(name, DROPOUT, seed=ord(name))
        return Trainer(lm, name, TrainingSettings(warmup_steps=2))

    def rows(lm: LanguageModel, name: str) -> list:
        texts = TEXTS[:3] if name == "a" else TEXTS[2:]
        return [encode(lm.tokenizer, text[:9], text[9:], 64) for text in texts]

    together = LanguageModel.load(str(folders[family]))
    trainers = {name: agent(together, name) for name in "ab"}
    mixed = {name: [] for name in "ab"}
    for step in range(3):
        for name in "ab":
            mixed[name].append(trainers[name].step([(rows(together, name), 1.0)], seed=step))
            losses(together, "a", rows(together, "b"))
    for name in "ab":
        lm = LanguageModel.load(str(folders[family]))
        trainer = agent(lm, name)
        assert [trainer.step([(rows(lm, name), 1.0)], seed=step) for step in range(3)] == mixed[name]
        expected, found = trainer.state(), trainers[name].state()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        assert losses(lm, name, rows(lm, "b")) == losses(together, name, rows(together, "b"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom"])
def test_exported_adapter_is_a_peft_adapter(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    lm = LanguageModel.load(str(folders[family]))
    for index, name in enumerate(("a", "b")):
        lm.add_adapter(name, AdapterSettings(rank=3), seed=index)
        randomise_adapter(lm, name, seed=index)
    lm.save_adapter("b", tmp_path / "b")
    lm.save_adapter("b", tmp_path / "again")
    ids = torch.arange(4, 20)[None]
    with quiet():
        base = AutoModelForCausalLM.from_pretrained(folders[family])
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "b")).eval()
    with lm.using("b") as model, torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, loaded(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "b/adapter_config.json").read_text())["base_model_name_or_path"] == lm.source
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_load_adapter_is_exact_or_refused(folders: dict[str, Path]) -> None:
    lm = LanguageModel.load(str(folders["llama"]))
    lm.add_adapter("a", AdapterSettings(rank=2), seed=0)
    lm.add_adapter("b", AdapterSettings(rank=4), seed=0)
    before = lm.adapter_state("a")
    name = min(before)
    wrong = [
        {key: value for key, value in before.items() if key != name},
        before | {"extra": torch.zeros(1)},
        before | {name: before[name][:1]},
        before | {name: before[name].int()},
        lm.adapter_state("b"),
    ]
    for tensors in wrong:
        with pytest.raises(PayloadError):
            lm.load_adapter("a", tensors)
    assert all(torch.equal(value, lm.adapter_state("a")[key]) for key, value in before.items())
    doubled = {key: value * 2 + 1 for key, value in before.items()}
    lm.load_adapter("a", doubled)
    assert all(torch.equal(value, lm.adapter_state("a")[key]) for key, value in doubled.items())


def test_adapter_names_and_layers_are_checked(folders: dict[str, Path]) -> None:
    lm = LanguageModel.load(str(folders["gpt2"]))
    with pytest.raises(ConfigError, match="no adapter named 'a'"):
        lm.trainable("a")
    with pytest.raises(ConfigError, match=r"gpt2.*q_proj"):
        lm.add_adapter("a", AdapterSettings(target_modules=("q_proj",)), seed=0)
    lm.add_adapter("a", AdapterSettings(target_modules=("c_attn",)), seed=0)
    assert {name.split(".")[-3] for name in lm.trainable("a")} == {"c_attn"}
    with pytest.raises(ConfigError, match="exists already"):
        lm.add_adapter("a", AdapterSettings(), seed=0)


def test_resolve(folders: dict[str, Path], tmp_path: Path) -> None:
    assert resolve(str(folders["opt"])) == (str(folders["opt"]), "folder")
    assert resolve("org/name-1.5B") == ("org/name-1.5B", "hub")
    for source, message in {
        str(tmp_path / "absent"): "no such folder",
        "gpt2": "no such folder",
        "../x/y": "no such folder",
        str(tmp_path): "expected config.json",
        "bundled/nonsense": "no bundled model 'bundled/nonsense'; nearest",
        "bundled/../lm": "no bundled model",
    }.items():
        with pytest.raises(ConfigError, match=message):
            resolve(source)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pickle files, which can run code.*save_pretrained"):
        resolve(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ConfigError, match=r"expected \*.safetensors weights"):
        resolve(str(folder))


def test_unavailable_hub_model_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ConfigError, match=r"'org/name': .* the hub did not give it.*hf download org/name"):
        LanguageModel.load("org/name")


def test_hub_download_takes_no_code_and_no_pickle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, allow_patterns: asked.extend(allow_patterns) or str(folder),
    )
    assert LanguageModel.load("org/name").source == "org/name"
    assert asked and not any(
        Path(name).match(pattern) for name in ("a.bin", "modeling.py", "a.pt") for pattern in asked
    )


def test_corrupt_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[: len(content) // 2], b"\xff" * 100, b""):
        weights.write_bytes(damaged)
        with pytest.raises(ConfigError, match="copy or download it again"):
            LanguageModel.load(str(folder))


def test_incomplete_weights_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for changed in ({key: value for key, value in tensors.items() if key != name}, tensors | {name: torch.ones(3, 3)}):
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigError, match="opy or download it again"):
            LanguageModel.load(str(folder))


def test_code_that_comes_with_a_model_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ConfigError, match="expected a causal language model"):
        LanguageModel.load(str(folder))


def test_tokenizer_must_fit_the_model(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<new{index}>" for index in range(5)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"ids up to 324, the model only up to 319.*belongs to the model"):
        LanguageModel.load(str(folder))


def test_tokenizer_without_end_token_is_refused(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        LanguageModel.load(str(folder))


def test_broken_or_missing_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"expected a tokenizer \(tokenizer.json\)"):
        LanguageModel.load(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match="tokenizer"):
        LanguageModel.load(str(folder))


def test_fingerprint_is_of_contents(folder: Path, tmp_path: Path) -> None:
    twin = make_tiny_model(tmp_path / "twin", "llama")
    assert fingerprint(str(folder)) == fingerprint(str(twin))
    (twin / "README.md").write_text("notes")
    assert fingerprint(str(folder)) == fingerprint(str(twin))
    other = make_tiny_model(tmp_path / "other", "llama", seed=1)
    assert fingerprint(str(folder)) != fingerprint(str(other))
    (twin / "tokenizer_config.json").write_text("{}")
    assert fingerprint(str(folder)) != fingerprint(str(twin))


def test_loading_is_silent_and_leaves_settings_alone(
    folder: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.get_rng_state()
    capfd.readouterr()
    LanguageModel.load(str(folder)).add_adapter("a", AdapterSettings(), seed=0)
    assert capfd.readouterr() == ("", "") and not recwarn.list
    assert before[:2] == (logging.get_verbosity(), logging.is_progress_bar_enabled())
    assert torch.equal(before[2], torch.get_rng_state())
