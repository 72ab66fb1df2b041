"""Sequence classifiers with LoRA, against the same model in plain transformers and PEFT."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import (
    CONTEXT,
    TEXTS,
    make_tiny_encoder,
    make_tiny_model,
    make_tokenizer,
    make_word_tokenizer,
    randomise_adapter,
)
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from peertune.errors import ConfigError
from peertune.lm import load
from peertune.lm.calibrate import blocks, costs_of, flop_counter
from peertune.lm.classify import class_logits, classify, encode_labelled
from peertune.lm.encode import Row, collate, encode_message, render_example
from peertune.lm.flops import Pass
from peertune.lm.generate import generate
from peertune.lm.lora import AdaptedLinear, _LowRankSum
from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet
from peertune.lm.score import completion_losses, losses
from peertune.lm.settings import AdapterSettings, Sampling, TrainingSettings
from peertune.lm.train import Trainer

ENCODERS = ("bert", "roberta", "distilbert")
CAUSAL = ("llama", "gpt2", "qwen2", "gpt_neox", "bloom", "opt")
LABELS = ("code", "english", "question")
HEADS = {
    "roberta": {"classifier.dense", "classifier.out_proj"},
    "bert": {"bert.pooler.dense", "classifier"},
    "llama": {"score"},
}
MESSAGES = (*TEXTS, "fox", "")
each_family = pytest.mark.parametrize("family", (*ENCODERS, *CAUSAL))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    encoders = {family: make_tiny_encoder(root / family, family) for family in ENCODERS}
    return encoders | {family: make_tiny_model(root / family, family) for family in CAUSAL}


def classifier(folder: Path, seed: int = 0, **settings: Any) -> LanguageModel:
    lm = LanguageModel.load(str(folder), labels=LABELS, seed=seed)
    lm.add_adapter("a", AdapterSettings(rank=2, **settings), seed=0)
    return lm


def randomised(folder: Path, **settings: Any) -> LanguageModel:
    lm = classifier(folder, **settings)
    randomise_adapter(lm, "a")
    return lm


def labelled(lm: LanguageModel) -> list[Row]:
    return [encode_labelled(lm, text, LABELS[at % 3], 64) for at, text in enumerate(MESSAGES)]


@each_family
def test_an_adapter_is_lora_on_the_backbone_and_a_head(folders: dict[str, Path], family: str) -> None:
    lm = classifier(folders[family])
    names = [name.removeprefix("base_model.model.") for name in lm.trainable("a")]
    lora = [name for name in names if "lora_" in name]
    head = {name.rpartition(".")[0] for name in names if "lora_" not in name}
    assert names == sorted(names) and len(lora) >= 2 * 2 * 2 and not any(name in part for name in head for part in lora)
    assert head == HEADS.get(family, {"pre_classifier", "classifier"} if family == "distilbert" else {"score"})
    assert lm.labels == LABELS and lm.max_length == (2048 if family == "bloom" else CONTEXT)


@each_family
def test_logits_are_those_of_transformers_without_padding(folders: dict[str, Path], family: str) -> None:
    """Padding on the right, batches by length: as each text alone."""
    lm = randomised(folders[family])
    found = class_logits(lm, "a", MESSAGES, batch_size=3)
    with lm.using("a") as model, torch.no_grad():
        rows = [torch.tensor([encode_message(lm.tokenizer, text, 64).ids]) for text in MESSAGES]
        alone = torch.cat([model(input_ids=ids).logits for ids in rows])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    assert len({tuple(row) for row in found.tolist()}) == len(MESSAGES)


@each_family
def test_the_loss_is_the_cross_entropy_of_the_class(folders: dict[str, Path], family: str) -> None:
    lm = randomised(folders[family])
    rows = labelled(lm)
    expected = cross_entropy(
        class_logits(lm, "a", MESSAGES), torch.arange(len(MESSAGES)) % 3,
        reduction="none",
    )  # fmt: skip
    found = losses(lm, "a", rows, batch_size=2)
    assert [tokens for _, tokens in found] == [1] * len(rows)
    np.testing.assert_allclose([nats for nats, _ in found], expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama", "gpt2"])
def test_an_exported_adapter_is_a_peft_adapter(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    lm = randomised(folders[family])
    lm.add_adapter("b", AdapterSettings(rank=3), seed=1)
    randomise_adapter(lm, "b", seed=1)
    for name in ("once", "again"):
        lm.save_adapter("b", tmp_path / name)
    with quiet():
        base = AutoModelForSequenceClassification.from_pretrained(folders[family], num_labels=3)
        base.config.pad_token_id = lm.pad_token
        loaded = PeftModel.from_pretrained(base, str(tmp_path / "once")).eval()
    rows = [encode_message(lm.tokenizer, text, 64).ids for text in MESSAGES]
    with torch.no_grad():
        theirs = torch.cat([loaded(input_ids=torch.tensor([row])).logits for row in rows])
    torch.testing.assert_close(class_logits(lm, "b", MESSAGES), theirs, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "once" / "labels.json").read_text()) == list(LABELS)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama"])
def test_agents_that_share_a_base_have_heads_of_their_own(folders: dict[str, Path], family: str) -> None:
    def agent(lm: LanguageModel, name: str) -> Trainer:
        lm.add_adapter(name, AdapterSettings(rank=2), seed=ord(name))
        return Trainer(lm, name, TrainingSettings(warmup_steps=2))

    def load_it() -> LanguageModel:
        return LanguageModel.load(str(folders[family]), labels=LABELS)

    together = load_it()
    trainers = {name: agent(together, name) for name in "ab"}
    parts = {"a": labelled(together)[:4], "b": labelled(together)[3:]}
    mixed = {name: [] for name in "ab"}
    for step in range(3):
        for name in "ab":
            mixed[name].append(trainers[name].step([(parts[name], 1.0)], seed=step))
    for name in "ab":
        lm = load_it()
        trainer = agent(lm, name)
        assert [trainer.step([(parts[name], 1.0)], seed=step) for step in range(3)] == mixed[name]
        expected, found = trainer.state(), trainers[name].state()
        assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    heads = {
        name: [value for key, value in together.adapter_state(name).items() if "lora_" not in key] for name in "ab"
    }
    assert not any(torch.equal(one, other) for one, other in zip(heads["a"], heads["b"], strict=True))


def test_the_head_is_new_and_the_seed_s(folders: dict[str, Path], tmp_path: Path) -> None:
    def head(lm: LanguageModel, name: str = "a") -> torch.Tensor:
        return lm.adapter_state(name)["base_model.model.classifier.weight"]

    before = torch.get_rng_state()
    lm = classifier(folders["bert"], seed=7)
    lm.add_adapter("b", AdapterSettings(rank=4), seed=5)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(head(lm), head(lm, "b")) and torch.equal(head(lm), head(classifier(folders["bert"], seed=7)))
    assert not torch.equal(head(lm), head(classifier(folders["bert"], seed=8)))
    with quiet():  # a model that somebody made a classifier, of five classes and of three
        for classes in (5, 3):
            folder = tmp_path / str(classes)
            AutoModelForSequenceClassification.from_pretrained(folders["bert"], num_labels=classes).save_pretrained(
                folder
            )
            make_word_tokenizer().save_pretrained(folder)
            assert torch.equal(head(classifier(folder, seed=7)), head(lm))


def test_only_the_head_may_be_absent(tmp_path: Path) -> None:
    folder = make_tiny_encoder(tmp_path / "bert", "bert")
    tensors = load_file(folder / "model.safetensors")
    whole = classifier(folder).adapter_state("a")
    pooler, layer = "pooler.dense.weight", "encoder.layer.1.output.dense.weight"
    for name in (pooler, layer):
        for changed in (
            {key: value for key, value in tensors.items() if key != name},
            tensors | {name: torch.ones(3, 3)},
        ):
            save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
            if name == layer:
                with pytest.raises(ConfigError, match=f"1 weights are absent or of another shape.*{name}"):
                    classifier(folder)
            else:
                assert all(
                    torch.equal(value, whole[key]) for key, value in classifier(folder).adapter_state("a").items()
                )


def test_what_is_no_model_to_classify_with_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = make_tiny_encoder(tmp_path / "bert", "bert")
    with pytest.raises(ConfigError, match="no end-of-sequence token"):  # an encoder does not write
        LanguageModel.load(str(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": None}))
    with pytest.raises(ConfigError, match="names no padding token"):
        classifier(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    make_word_tokenizer().save_pretrained(folder)
    with pytest.raises(ConfigError, match="expected an encoder or causal model"):
        classifier(folder)


def test_a_model_without_padding_gets_one(tmp_path: Path) -> None:
    """As GPT-2 has none: its end token is padding, and the last token before it is read."""
    folder = make_tiny_model(tmp_path / "gpt2", "gpt2")
    for file in ("config.json", "tokenizer_config.json"):
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(
            json.dumps({key: value for key, value in config.items() if not key.startswith("pad_")})
        )
    lm = randomised(folder)
    assert lm.pad_token == 0
    batched = class_logits(lm, "a", MESSAGES)
    alone = torch.cat([class_logits(lm, "a", [text]) for text in MESSAGES])
    torch.testing.assert_close(batched, alone, rtol=1e-4, atol=1e-5)


def test_every_linear_layer_of_bert_takes_the_fast_path(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = randomised(folders["bert"])
    calls: list[tuple[int, ...]] = []
    fast = _LowRankSum.apply
    monkeypatch.setattr(_LowRankSum, "apply", lambda x, *rest: calls.append(tuple(x.shape)) or fast(x, *rest))
    with lm.using("a", train=True) as model:
        adapted = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
        completion_losses(model, collate(labelled(lm), lm.pad_token, lm.device)).sum().backward()
    assert len(calls) == len(adapted) == 2 * 6


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_training_lowers_the_loss_and_leaves_the_base_alone(folders: dict[str, Path], family: str) -> None:
    lm = classifier(folders[family])
    before = {name: value.clone() for name, value in lm._base.state_dict().items() if "lora_" not in name}
    trainer, rows = Trainer(lm, "a", TrainingSettings(learning_rate=1e-2, warmup_steps=1)), labelled(lm)[:6]
    first = np.mean([nats for nats, _ in losses(lm, "a", rows)])
    for step in range(60):
        trainer.step([(rows, 1.0)], seed=step)
    assert np.mean([nats for nats, _ in losses(lm, "a", rows)]) < 0.2 * first
    assert generate(lm, "a", MESSAGES[:6], Sampling(8)) == [LABELS[row.label] for row in rows if row.label is not None]
    after = lm._base.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "modules_to_save" not in name)


def test_micro_batches_and_groups_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    """KNEXA-FL, Eq. 2, of classes."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    lm = LanguageModel.load(str(make_tiny_encoder(tmp_path, "bert", **still)), labels=LABELS)
    states = []
    for name, accumulate in (("a", 1), ("b", 3)):
        lm.add_adapter(name, AdapterSettings(rank=2), seed=0)
        rows = labelled(lm)
        before = [nats for nats, _ in losses(lm, name, rows)]
        trainer = Trainer(lm, name, TrainingSettings(accumulate=accumulate, warmup_steps=1))
        loss = trainer.step([(rows[:5], 0.75), (rows[5:], 0.25)], seed=0)
        states.append(lm.adapter_state(name))
        assert loss == pytest.approx(0.75 * np.mean(before[:5]) + 0.25 * np.mean(before[5:]), rel=1e-5)
        assert losses(lm, name, rows) != before
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-3, atol=1e-5)


def test_answers_are_names(folders: dict[str, Path]) -> None:
    lm = randomised(folders["bert"])
    logits = class_logits(lm, "a", MESSAGES)
    assert classify(lm, "a", MESSAGES, Sampling(1)) == [LABELS[at] for at in logits.argmax(1).tolist()]
    assert generate(lm, "a", [], Sampling(1)) == []
    before = torch.get_rng_state()
    drawn = np.array([classify(lm, "a", MESSAGES, Sampling(1, 2.0, seed)) for seed in range(200)])
    assert torch.equal(before, torch.get_rng_state())
    shares = np.stack([(drawn == label).mean(0) for label in LABELS], axis=1)
    np.testing.assert_allclose(shares, (logits / 2.0).softmax(1).numpy(), atol=0.15)
    assert classify(lm, "a", MESSAGES, Sampling(1, 2.0, 7)) == drawn[7].tolist()


def test_a_completion_that_is_no_label_is_refused(folders: dict[str, Path]) -> None:
    lm = classifier(folders["bert"])
    assert encode_labelled(lm, "x", " english\n", 64).label == 1
    with pytest.raises(
        ConfigError, match=r"one of 3 labels .* found another text of 7 characters; .*'english'"
    ) as error:
        encode_labelled(lm, "patient 4711", "englich", 64)
    assert "4711" not in str(error.value) and "englich" not in str(error.value)


def test_rows_of_encoders() -> None:
    tokenizer = make_word_tokenizer()
    whole = encode_message(tokenizer, "the quick brown fox", 64, label=2)
    assert (whole.ids[0], whole.ids[-1], whole.prompt_length, whole.truncated) == (2, 3, len(whole.ids), False)
    assert whole.loss_tokens == 1
    cut = encode_message(tokenizer, "the quick brown fox", len(whole.ids) - 1)
    assert cut.ids == (*whole.ids[:-2], 3) and cut.truncated
    forged = encode_message(tokenizer, "fox [SEP] fox", 64).ids
    assert forged.count(3) == 1 and forged[-1] == 3
    assert encode_message(tokenizer, "", 64).ids == (2, 3)
    batch = collate([whole, encode_message(tokenizer, "fox", 64, label=0)], 0, "cpu")
    assert batch.labels.tolist() == [2, 0] and batch.mask is not None
    assert torch.equal(batch.mask.bool(), batch.ids != 0)
    assert render_example(whole, tokenizer, LABELS) == (
        f"given ({len(whole.ids)} tokens, no loss):\n[CLS] the quick brown fox [SEP]\n"
        "learned (1 class of 3):\n[question]"
    )


def test_rows_of_causal_models() -> None:
    tokenizer = make_tokenizer()
    whole = encode_message(tokenizer, TEXTS[3], 64)
    assert whole.ids == (0, *tokenizer.encode(TEXTS[3]))
    assert encode_message(tokenizer, TEXTS[3], 5).ids == whole.ids[:5]
    assert encode_message(tokenizer, "", 64).ids == (0,)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "llama", "gpt2"])
def test_what_ran_is_what_torch_counts(folders: dict[str, Path], family: str) -> None:
    lm = randomised(folders[family])
    trainer, rows = Trainer(lm, "a", TrainingSettings(accumulate=3)), labelled(lm)
    costs = costs_of(lm, "a")
    lm.take_passes("a")
    counter: FlopCounterMode
    with flop_counter() as counter:
        trainer.step([(rows, 1.0)], seed=0)
        losses(lm, "a", rows)
        generate(lm, "a", MESSAGES, Sampling(1))
    ran = lm.take_passes("a")
    assert sum(times * costs.flops(one) for one, times in ran.items()) == counter.get_total_flops()
    assert {one.kind for one in ran} == {"training", "forward"} and len(costs.forward) == len(blocks(lm._base)) + 2
    assert costs.memory(Pass("training", 3, 9, 3)) > costs.memory(Pass("training", 3, 8, 3)) > 4 * lm.parameters


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_a_bf16_backbone_has_an_fp32_head(
    folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded on a GPU."""
    exact = class_logits(randomised(folders[family]), "a", MESSAGES)
    monkeypatch.setattr(load, "precision", lambda _: torch.bfloat16)
    lm = randomised(folders[family])
    assert {parameter.dtype for parameter in lm.trainable("a").values()} == {torch.float32}
    assert lm._base.base_model.get_input_embeddings().weight.dtype == torch.bfloat16
    rough = class_logits(lm, "a", MESSAGES)
    assert 0 < (rough - exact).abs().max() < 0.2 * exact.abs().max()
    assert np.isfinite(Trainer(lm, "a", TrainingSettings()).step([(labelled(lm), 1.0)], seed=0))
