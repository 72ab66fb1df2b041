import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, save
from tiny import FAMILIES, TEXTS, make_tiny_model, randomise_adapter
from transformers import AutoModelForCausalLM

from peertune.errors import PayloadError
from peertune.lm.encode import Row, collate, encode
from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet
from peertune.lm.score import losses
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.lm.train import Trainer, TrainingDiverged


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(root / family, family) for family in FAMILIES}


def model(folder: Path, dropout: float = 0.0) -> LanguageModel:
    lm = LanguageModel.load(str(folder))
    lm.add_adapter("a", AdapterSettings(rank=2, dropout=dropout), seed=0)
    randomise_adapter(lm, "a")
    return lm


def rows(lm: LanguageModel, start: int = 0, stop: int = 5) -> list[Row]:
    return [encode(lm.tokenizer, text[: 5 + 2 * index], text[5 + 2 * index :], 80) for index, text in enumerate(TEXTS)][
        start:stop
    ]


def reference_loss(lm: LanguageModel, net: torch.nn.Module, chosen: Sequence[Row]) -> torch.Tensor:
    """Mean token cross-entropy over completions, row by row, from the full logits."""
    total, tokens = torch.zeros(()), 0
    for row in chosen:
        batch = collate([row], lm.pad_token, "cpu")
        logp = net(input_ids=batch.ids, use_cache=False).logits.log_softmax(-1)[0]
        for position in range(row.prompt_length, len(row.ids)):
            total = total - logp[position - 1, row.ids[position]]
        tokens += len(row.ids) - row.prompt_length
    return total / tokens


def watch(lm: LanguageModel, trainer: Trainer) -> list[tuple[float, torch.Tensor]]:
    """Learning rate and flat gradient of every step from now on, as the optimiser gets them."""
    seen: list[tuple[float, torch.Tensor]] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        gradients = [value.grad for value in lm.trainable("a").values() if value.grad is not None]
        seen.append((optimizer.param_groups[0]["lr"], torch.cat([gradient.flatten() for gradient in gradients])))

    trainer._optimizer.register_step_pre_hook(note)
    return seen


def gradient_of_step(lm: LanguageModel, settings: TrainingSettings, groups: list) -> tuple[float, torch.Tensor]:
    trainer = Trainer(lm, "a", settings)
    seen = watch(lm, trainer)
    return trainer.step(groups, seed=0), seen[0][1]


def plain_peft(lm: LanguageModel, source: Path, folder: Path) -> tuple[PeftModel, list[torch.nn.Parameter]]:
    """The adapter in an untouched model, as PEFT loads it, and its parameters in the order of `lm.trainable`."""
    lm.save_adapter("a", folder)
    with quiet():
        base = AutoModelForCausalLM.from_pretrained(source)
        net = PeftModel.from_pretrained(base, str(folder), is_trainable=True).eval()
    named = {name.replace(".default.", "."): value for name, value in net.named_parameters() if "lora_" in name}
    assert sorted(named) == list(lm.trainable("a"))
    return net, [named[name] for name in sorted(named)]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_of_two_groups_equals_that_of_peft(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    lm = model(folders[family])
    own, taught = rows(lm, 0, 3), rows(lm, 3, 5)
    net, parameters = plain_peft(lm, folders[family], tmp_path)
    expected = 0.7 * reference_loss(lm, net, own) + 0.3 * reference_loss(lm, net, taught)
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(expected, parameters)])
    set_dropout_to_zero(lm)
    loss, found = gradient_of_step(lm, TrainingSettings(clip_norm=1e9), [(own, 0.7), (taught, 0.3)])
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert (found - gradient).norm() < 1e-5 * gradient.norm()


def set_dropout_to_zero(lm: LanguageModel) -> None:
    """gpt2, bloom and opt come with dropout in the base; a gradient to compare must not have it."""
    for module in lm._base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "hidden_dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


@pytest.mark.parametrize("accumulate", [2, 3, 5, 9])
def test_micro_batches_give_the_same_gradient(folders: dict[str, Path], accumulate: int) -> None:
    lm = model(folders["llama"])
    groups = [(rows(lm), 0.6), (rows(lm, 1, 3), 0.4)]
    start = lm.adapter_state("a")
    loss, gradient = gradient_of_step(lm, TrainingSettings(), groups)
    lm.load_adapter("a", start)
    split_loss, split_gradient = gradient_of_step(lm, TrainingSettings(accumulate=accumulate), groups)
    assert split_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(split_gradient, gradient, rtol=1e-4, atol=1e-6)


def test_prompt_carries_no_loss(folders: dict[str, Path]) -> None:
    lm = model(folders["qwen2"])
    row = rows(lm)[0]
    ((nats, tokens),) = losses(lm, "a", [row])
    with lm.using("a") as net, torch.no_grad():
        assert nats / tokens == pytest.approx(reference_loss(lm, net, [row]).item(), rel=1e-5)
    assert tokens == len(row.ids) - row.prompt_length
    assert losses(lm, "a", []) == []


def test_losses_come_in_input_order_whatever_the_batch(folders: dict[str, Path]) -> None:
    lm = model(folders["bloom"])
    chosen = [*rows(lm), *reversed(rows(lm))]
    whole, alone = losses(lm, "a", chosen, batch_size=4), [losses(lm, "a", [row])[0] for row in chosen]
    assert [tokens for _, tokens in whole] == [tokens for _, tokens in alone]
    assert [nats for nats, _ in whole] == pytest.approx([nats for nats, _ in alone], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_loss_and_leaves_the_base_alone(folders: dict[str, Path], family: str) -> None:
    lm = model(folders[family])
    base = {name: tensor.clone() for name, tensor in lm._base.state_dict().items() if "lora" not in name}
    trainer = Trainer(lm, "a", TrainingSettings(warmup_steps=2))
    first = losses(lm, "a", rows(lm))
    for step in range(25):
        trainer.step([(rows(lm), 1.0)], seed=step)
    assert sum(nats for nats, _ in losses(lm, "a", rows(lm))) < 0.85 * sum(nats for nats, _ in first)
    assert all(torch.equal(tensor, lm._base.state_dict()[name]) for name, tensor in base.items())


@pytest.mark.parametrize("before", [0, 3])
def test_resumed_training_has_the_same_bits(folders: dict[str, Path], before: int) -> None:
    settings = TrainingSettings(warmup_steps=5, weight_decay=0.1)
    straight, resumed = model(folders["gpt2"], dropout=0.2), model(folders["gpt2"], dropout=0.2)
    trainer = Trainer(straight, "a", settings)
    for step in range(before):
        trainer.step([(rows(straight), 1.0)], seed=step)
    stored = save(trainer.state())
    expected = [trainer.step([(rows(straight), 1.0)], seed=step) for step in range(before, before + 4)]
    other = Trainer(resumed, "a", settings)
    other.step([(rows(resumed), 1.0)], seed=99)
    torch.rand(5)
    other.load_state(load(stored))
    assert save(other.state()) == stored
    assert [other.step([(rows(resumed), 1.0)], seed=step) for step in range(before, before + 4)] == expected
    assert save(other.state()) == save(trainer.state())


def test_state_of_another_shape_is_refused(folders: dict[str, Path]) -> None:
    lm = model(folders["llama"])
    lm.add_adapter("b", AdapterSettings(rank=4), seed=0)
    trainer, other = Trainer(lm, "a", TrainingSettings()), Trainer(lm, "b", TrainingSettings())
    before = save(trainer.state())
    incomplete = trainer.state()
    incomplete.pop("steps")
    for tensors in (other.state(), incomplete):
        with pytest.raises(PayloadError):
            trainer.load_state(tensors)
    assert save(trainer.state()) == before


def test_dropout_follows_the_seed_only(folders: dict[str, Path]) -> None:
    def loss(seed: int) -> float:
        lm = model(folders["llama"], dropout=0.5)
        torch.rand(seed + 3)
        return Trainer(lm, "a", TrainingSettings()).step([(rows(lm), 1.0)], seed=seed)

    before = torch.get_rng_state()
    assert Trainer(lm := model(folders["llama"], 0.5), "a", TrainingSettings()).step([(rows(lm), 1.0)], 1) > 0
    assert torch.equal(before, torch.get_rng_state())
    assert loss(1) == loss(1) != loss(2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_divergence_is_raised_before_anything_changes(folders: dict[str, Path], value: float) -> None:
    lm = model(folders["llama"])
    trainer = Trainer(lm, "a", TrainingSettings(warmup_steps=1))
    trainer.step([(rows(lm), 1.0)], seed=0)
    state = trainer.state()
    key = next(name for name in state if name.startswith("adapter/") and "lora_B" in name)
    poisoned = state | {key: torch.full_like(state[key], value)}
    trainer.load_state(poisoned)
    with pytest.raises(TrainingDiverged, match="step 2 of .*Lower learning_rate"):
        trainer.step([(rows(lm), 1.0)], seed=1)
    assert save(trainer.state()) == save(poisoned)
    trainer.load_state(state)
    assert math.isfinite(trainer.step([(rows(lm), 1.0)], seed=1))


def test_infinite_weight_diverges_by_its_gradient(folders: dict[str, Path]) -> None:
    lm = model(folders["llama"])
    trainer = Trainer(lm, "a", TrainingSettings())
    before = save(trainer.state())
    with pytest.raises(TrainingDiverged):
        trainer.step([(rows(lm), 1e38), (rows(lm), 1e38)], seed=0)
    assert save(trainer.state()) == before


def test_warm_up_and_clipping(folders: dict[str, Path]) -> None:
    lm = model(folders["llama"])
    trainer = Trainer(lm, "a", TrainingSettings(learning_rate=1e-3, warmup_steps=4, clip_norm=0.5))
    seen = watch(lm, trainer)
    for step in range(6):
        trainer.step([(rows(lm), 1.0)], seed=step)
    assert [rate for rate, _ in seen] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])
    assert max(gradient.norm().item() for _, gradient in seen) == pytest.approx(0.5, rel=1e-4)


def test_groups_without_weight_or_rows(folders: dict[str, Path]) -> None:
    lm = model(folders["llama"])
    state = lm.adapter_state("a")
    alone = Trainer(lm, "a", TrainingSettings()).step([(rows(lm), 1.0)], seed=0)
    lm.load_adapter("a", state)
    trainer = Trainer(lm, "a", TrainingSettings())
    assert trainer.step([(rows(lm), 1.0), ([], 0.0)], seed=0) == alone
    with pytest.raises(ValueError, match="0 rows but no token"):
        trainer.step([(rows(lm), 0.5), ([], 0.5)], seed=0)
    with pytest.raises(ValueError, match="a group with a weight"):
        trainer.step([(rows(lm), 0.0)], seed=0)
