"""Cores and frozen parts: a model with them is one with the dense sum in its weights, in training and in exports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load, save
from test_flops import counted
from test_lm_train import rows
from tiny import make_tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from peertune.errors import PayloadError
from peertune.lm.calibrate import costs_of
from peertune.lm.frozen import as_lora, cores, letter, overlay, ranks_of
from peertune.lm.lora import AdaptedLinear
from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.lm.train import Trainer

FAMILIES = ("llama", "gpt2")  # nn.Linear, and Conv1D, which has its weight transposed
RANK, SCALE = 3, 2.0
IDS = torch.arange(4, 20)[None]
SLOW = TrainingSettings(clip_norm=1e9)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(root / family, family) for family in FAMILIES}


def random(like: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in like.items()}


def frozen_parts(lm: LanguageModel, seed: int = 1) -> dict[str, Tensor]:
    """Random ones of rank 5, for every layer but the first."""
    factors = {name: tensor for name, tensor in lm.adapter_state("a").items() if letter(name) in "AB"}
    shapes = {
        name.replace("lora_", "frozen_"): torch.empty(5, tensor.shape[1])
        if letter(name) == "A"
        else tensor[:, :1].expand(-1, 5)
        for name, tensor in list(factors.items())[2:]
    }
    return random(shapes, seed)


def model(folder: Path, core: bool = True, frozen: bool = True, dropout: float = 0.0) -> LanguageModel:
    lm = LanguageModel.load(str(folder))
    lm.add_adapter("b", AdapterSettings(rank=2), seed=5)
    lm.add_adapter("a", AdapterSettings(rank=RANK, alpha=int(SCALE * RANK), dropout=dropout), seed=0)
    lm.set_core("a", core)
    lm.load_adapter("a", random(lm.adapter_state("a")))
    if frozen:
        lm.freeze("a", frozen_parts(lm))
    return lm


def logits(lm: LanguageModel, name: str = "a") -> Tensor:
    with lm.using(name) as net, torch.no_grad():
        return net(input_ids=IDS).logits


def with_dense_sum(folder: Path, lm: LanguageModel) -> Any:
    """An untouched model, s B R A + F_B F_A added to its weights."""
    base = AutoModelForCausalLM.from_pretrained(folder)
    state, frozen = lm.adapter_state("a"), lm.frozen("a")
    with torch.no_grad():
        for path in ranks_of(state):
            a, b = (state[f"{path}.lora_{side}.weight"] for side in "AB")
            core = state.get(f"{path}.lora_R.weight", torch.eye(RANK))
            delta = SCALE * b @ core @ a
            if f"{path}.frozen_A.weight" in frozen:
                delta += frozen[f"{path}.frozen_B.weight"] @ frozen[f"{path}.frozen_A.weight"]
            layer: Any = base.get_submodule(path.removeprefix("base_model.model."))
            layer.weight += delta.T if type(layer).__name__ == "Conv1D" else delta
    return base.eval()


@pytest.mark.parametrize(("core", "frozen"), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_that_of_the_dense_sum(
    folders: dict[str, Path], tmp_path: Path, family: str, core: bool, frozen: bool
) -> None:
    lm = model(folders[family], core, frozen)
    found = logits(lm)
    with quiet():
        expected = with_dense_sum(folders[family], lm)(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (
        found - logits(lm, "b")
    ).abs().max() > 0.1  # they are large enough to be seen, and another adapter's are not
    lm.save_adapter("a", tmp_path / "a")
    with quiet():
        base = AutoModelForCausalLM.from_pretrained(folders[family])
        exported = PeftModel.from_pretrained(base, str(tmp_path / "a")).eval()
    torch.testing.assert_close(exported(input_ids=IDS).logits, found, rtol=1e-4, atol=1e-4)


def test_an_adapter_without_them_is_what_it_was(folders: dict[str, Path]) -> None:
    lm, other = model(folders["llama"], frozen=True), model(folders["llama"], core=False, frozen=False)
    lm.freeze("a", {})
    lm.set_core("a", False)
    lm.set_core("a", False)
    assert lm.frozen("a") == {} and not lm.has_core("a") and list(lm.trainable("a")) == list(other.trainable("a"))
    lm.load_adapter("a", other.adapter_state("a"))
    assert torch.equal(logits(lm), logits(other))


def test_a_new_core_is_zero_and_frozen_parts_come_back_as_they_were(folders: dict[str, Path]) -> None:
    lm = model(folders["gpt2"], core=False)
    parts = frozen_parts(lm)
    assert lm.frozen("a").keys() == parts.keys()
    assert all(torch.equal(lm.frozen("a")[name], part) for name, part in parts.items())
    lm.set_core("a", True)
    found = {name: tensor for name, tensor in lm.adapter_state("a").items() if letter(name) == "R"}
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: (3, 3) for name in cores(lm.adapter_state("a"))
    }
    assert not any(tensor.any() for tensor in found.values())


def layer_of(lm: LanguageModel) -> AdaptedLinear:
    return [layer for layer in lm._base.modules() if isinstance(layer, AdaptedLinear)][-1]


@pytest.mark.parametrize("core", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_ways_through_a_layer_agree(folders: dict[str, Path], family: str, core: bool) -> None:
    """The fast one, and that of PEFT, whose gradients are autograd's."""
    lm = model(folders[family], core)
    layer, key = layer_of(lm), "adapter1"
    with lm.using("a"):
        x = torch.randn(2, 4, layer.in_features or 0, generator=torch.Generator().manual_seed(2), requires_grad=True)
        leaves = [x, *(each for name, each in layer.named_parameters() if f".{key}." in name)]
        fast, slow = layer(x), layer._with_more(x, key)
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
        weights = torch.randn(fast.shape, generator=torch.Generator().manual_seed(3))
        found, expected = (torch.autograd.grad((each * weights).sum(), leaves) for each in (fast, slow))
    assert len(leaves) == 3 + core
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_bf16_base_and_dropout_have_them_too(folders: dict[str, Path]) -> None:
    lm = model(folders["llama"], dropout=0.5)
    layer: Any = layer_of(lm)
    x = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(2))
    with lm.using("a"), torch.no_grad():
        expected = layer(x)
        layer.base_layer.to(torch.bfloat16)
        torch.testing.assert_close(layer(x.bfloat16()).float(), expected, rtol=5e-2, atol=5e-2)
        layer.base_layer.to(torch.float32)
    with lm.using("a", train=True), torch.no_grad():
        torch.manual_seed(0)
        dropped = torch.stack([layer(x) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(dropped, expected, rtol=0.2, atol=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: {"base_model.nothing.frozen_A.weight": torch.zeros(1, 4), **parts}, "found 'base_model.nothing"),
        (lambda parts: dict(list(parts.items())[1:]), "expected a frozen part of rank 1 to 32"),
        (lambda parts: {name: part[:, :2] for name, part in parts.items()}, "expected a frozen part"),
        (lambda parts: {name: part[:0] if "_A" in name else part[:, :0] for name, part in parts.items()}, "rank 1 to"),
        (
            lambda parts: {
                name: part.repeat(9, 1) if "_A" in name else part.repeat(1, 9) for name, part in parts.items()
            },
            "expected a frozen part of rank 1 to 32",
        ),
    ],
)
def test_frozen_parts_that_do_not_fit_change_nothing(folders: dict[str, Path], change: Any, message: str) -> None:
    lm = model(folders["llama"])
    before = logits(lm)
    with pytest.raises(PayloadError, match=message):
        lm.freeze("a", change(frozen_parts(lm, seed=2)))
    assert torch.equal(logits(lm), before)


# Putting tensors in the place of the adapter's own


OWN = {"x.lora_A.weight": torch.ones(3, 4), "x.lora_B.weight": torch.ones(2, 3), "head.weight": torch.ones(2)}


def test_fewer_ranks_are_laid_on_a_new_adapter() -> None:
    given = {"x.lora_A.weight": torch.full((1, 4), 7.0), "x.lora_B.weight": torch.full((2, 1), 5.0)}
    found = overlay(OWN, given, seed=3)
    assert found["x.lora_B.weight"].tolist() == [[5, 0, 0], [5, 0, 0]]
    a = found["x.lora_A.weight"]
    assert a[0].tolist() == [7] * 4 and a[1:].abs().min() > 0 and a[1:].abs().max() < 0.5  # 1 / sqrt(4)
    assert torch.equal(found["head.weight"], OWN["head.weight"])
    again, other = overlay(OWN, given, seed=3), overlay(OWN, given, seed=4)
    assert torch.equal(again["x.lora_A.weight"], a) and not torch.equal(other["x.lora_A.weight"], a)
    assert all((tensor == 1).all() for tensor in OWN.values())


def test_no_rank_at_all_begins_anew_and_a_name_that_is_not_there_stays() -> None:
    found = overlay(OWN, {"x.lora_B.weight": torch.zeros(2, 0)}, seed=0)
    assert not found["x.lora_B.weight"].any() and torch.equal(found["x.lora_A.weight"], OWN["x.lora_A.weight"])


@pytest.mark.parametrize(
    "given",
    [
        {"y.lora_A.weight": torch.ones(3, 4)},
        {"x.lora_A.weight": torch.ones(4, 4)},
        {"x.lora_A.weight": torch.ones(3, 3)},
        {"x.lora_A.weight": torch.ones(3)},
        {"x.lora_B.weight": torch.ones(1, 3)},
        {"head.weight": torch.ones(1)},
    ],
)
def test_what_is_laid_on_must_fit(given: dict[str, Tensor]) -> None:
    with pytest.raises(PayloadError, match="expected"):
        overlay(OWN, given, seed=0)


def test_the_exported_rank_is_that_of_both_terms(folders: dict[str, Path]) -> None:
    lm = model(folders["gpt2"])
    found = ranks_of(as_lora(lm.adapter_state("a"), lm.frozen("a"), SCALE))
    assert sorted(found.values()) == [RANK] + [RANK + 5] * (len(found) - 1)


# Training


def changed(lm: LanguageModel, before: Mapping[str, Tensor]) -> set[str]:
    return {letter(name) for name, tensor in lm.adapter_state("a").items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(("letters", "core"), [("B", False), ("A", False), ("AB", False), ("R", True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_is_to_move_moves(folders: dict[str, Path], family: str, letters: str, core: bool) -> None:
    lm = model(folders[family], core)
    trainer = Trainer(lm, "a", SLOW)
    before = lm.adapter_state("a")
    names = [name for name in before if letter(name) in letters]
    with trainer.only(names):
        for step in range(2):
            trainer.step([(rows(lm), 1.0)], seed=step)
    assert changed(lm, before) == set(letters)
    trainer.step([(rows(lm), 1.0)], seed=2)
    assert changed(lm, before) == set("ABR" if core else "AB")


def gradients(lm: LanguageModel, trainer: Trainer) -> dict[str, Tensor]:
    """Those of the next step, as the optimiser gets them."""
    found: dict[str, Tensor] = {}

    def note(*_: object) -> None:
        found.update({name: each.grad.clone() for name, each in lm.trainable("a").items() if each.grad is not None})

    handle = trainer._optimizer.register_step_pre_hook(note)
    trainer.step([(rows(lm), 1.0)], seed=0)
    handle.remove()
    return found


def test_fedprox_pulls_back_to_the_start(folders: dict[str, Path]) -> None:
    """Its gradient is that of the loss and mu (theta - theta_0)."""
    free, held = (model(folders["llama"]) for _ in range(2))
    trainers = [Trainer(lm, "a", SLOW) for lm in (free, held)]
    start = held.adapter_state("a")
    moved = random(start, seed=9)
    for trainer in trainers:
        trainer.put(moved)
    trainers[1].put(start)
    with trainers[1].only(list(start), proximal=0.5):
        trainers[1].put(moved)
        found = gradients(held, trainers[1])
    plain = gradients(free, trainers[0])
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient + 0.5 * (moved[name] - start[name]))
    trainers[1].put(moved)
    out_of_the_block = gradients(held, trainers[1])
    assert all(torch.equal(out_of_the_block[name], gradient) for name, gradient in plain.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_training_goes_on_with_the_same_bits(folders: dict[str, Path], family: str) -> None:
    """With a core, frozen parts, and parameters on which AdamW has made fewer steps than on others."""
    lm, other = model(folders[family]), model(folders[family], core=False, frozen=False)
    trainer, resumed = Trainer(lm, "a", TrainingSettings()), Trainer(other, "a", TrainingSettings())
    names = [name for name in lm.trainable("a") if letter(name) == "R"]
    trainer.step([(rows(lm), 1.0)], seed=0)
    trainer.put({name: lm.adapter_state("a")[name] for name in names})
    with trainer.only(names):
        trainer.step([(rows(lm), 1.0)], seed=1)
    stored = save(trainer.state())
    plain = resumed.state()
    resumed.load_state(load(stored))
    assert save(resumed.state()) == stored and torch.equal(logits(other), logits(lm))
    for each in (trainer, resumed):
        each.step([(rows(lm), 1.0)], seed=2)
    assert save(resumed.state()) == save(trainer.state()) != stored
    resumed.load_state(plain)
    assert save(resumed.state()) == save(plain) and not other.has_core("a") and other.frozen("a") == {}


def test_adamw_begins_anew_on_what_was_put_there(folders: dict[str, Path]) -> None:
    """The first step on it has the size of the learning rate again: |update| = rate, by Adam's correction for bias."""
    lm = model(folders["llama"], core=False, frozen=False)
    trainer = Trainer(lm, "a", TrainingSettings(learning_rate=1e-3, warmup_steps=2))
    for step in range(3):
        trainer.step([(rows(lm), 1.0)], seed=step)
    put = {name: tensor for name, tensor in lm.adapter_state("a").items() if letter(name) == "B"}
    trainer.put(put)
    trainer.step([(rows(lm), 1.0)], seed=3)
    updates = torch.cat([(lm.adapter_state("a")[name] - tensor).flatten().abs() for name, tensor in put.items()])
    assert updates.median().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(("letters", "core"), [("B", False), ("A", False), ("AB", False), ("R", True)])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_trained_costs_no_gradient(folders: dict[str, Path], family: str, letters: str, core: bool) -> None:
    """A step that trains some factors alone costs what torch counts of it."""
    lm = model(folders[family], core, frozen=False)
    trainer = Trainer(lm, "a", SLOW)
    names = [name for name in lm.trainable("a") if letter(name) in letters]
    whole = costs_of(lm, "a")
    lm.take_passes("a")
    with trainer.only(names):
        found = counted(lambda: trainer.step([(rows(lm), 1.0)], seed=0))
    (ran,) = lm.take_passes("a")
    assert costs_of(lm, "a", ran.still).flops(ran) == found <= whole.flops(ran)
    assert (found == whole.flops(ran)) == (letters == "AB")
    assert all(parameter.requires_grad for parameter in lm.trainable("a").values())


def test_their_costs_are_measured_with_them(folders: dict[str, Path]) -> None:
    """And do not depend on what the adapter was when its costs were first asked for."""
    lm, plain = model(folders["llama"]), model(folders["llama"], core=False, frozen=False)
    with_more, without = costs_of(lm, "a"), costs_of(plain, "a")
    trainer = Trainer(lm, "a", SLOW)
    lm.take_passes("a")
    found = counted(lambda: trainer.step([(rows(lm), 1.0)], seed=0))
    (ran,) = lm.take_passes("a")
    assert with_more.flops(ran) == found > without.flops(ran)
    added = sum(part.nbytes for part in lm.frozen("a").values())
    assert with_more.base == without.base + added and with_more.adapter > without.adapter
    lm.freeze("a", {})
    lm.set_core("a", False)
    assert costs_of(lm, "a") == without
