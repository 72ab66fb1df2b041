"""FLOPs and bytes from polynomials against torch's counter and autograd's own list, to the last unit."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import FAMILIES, HEADS, LAYERS, VOCABULARY, WIDTH, make_tiny_model, randomise_adapter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import BertConfig, BertForSequenceClassification

from peertune.agent.learner import Learner
from peertune.lm.calibrate import UNCOUNTED, blocks, calibrate, costs_of, flop_counter, measure
from peertune.lm.encode import IGNORED, Batch, encode
from peertune.lm.flops import SHAPES, Costs, Pass, fit, monomials
from peertune.lm.lora import AdaptedLinear
from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet
from peertune.lm.score import completion_losses
from peertune.lm.settings import AdapterSettings, Sampling, TrainingSettings
from peertune.lm.train import Trainer
from peertune.profiles import AgentRecord
from peertune.tasks.base import Example

RANK = 2
BATCHES = ((1, 2, 1), (1, 9, 3), (2, 3, 4), (5, 33, 70), (8, 80, 100))  # rows, width, labels
PROMPTS = ("def add(a, b):", "The quick brown fox", "x")


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def costs(lm: LanguageModel) -> Costs:
    return calibrate(lm, "a")


def load(folder: Path, family: str, **settings: Any) -> LanguageModel:
    model = LanguageModel.load(str(make_tiny_model(folder, family)))
    model.add_adapter("a", AdapterSettings(rank=RANK, **settings), seed=0)
    randomise_adapter(model, "a")
    return model


def batch(rows: int, width: int, labels: int) -> Batch:
    """Random tokens with `labels` labels, from the left."""
    generator = torch.Generator().manual_seed(rows * width)
    ids = torch.randint(4, VOCABULARY, (rows, width), generator=generator)
    targets = torch.full_like(ids, IGNORED)
    for index in range(labels):
        row, position = index % rows, 1 + index // rows
        targets[row, position] = ids[row, position]
    return Batch(ids, targets)


def train(lm: LanguageModel, shape: tuple[int, int, int]) -> None:
    with lm.using("a", train=True) as model:
        completion_losses(model, batch(*shape)).sum().backward()


def counted(work: Callable[[], Any]) -> int:
    with flop_counter() as counter:
        work()
    return counter.get_total_flops()


def saved_bytes(model: Any, work: Callable[[], Any]) -> int:
    """Bytes of the storages that autograd holds after `work`, but for the model's own."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    held: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept = work()
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    del kept
    return sum(size for storage, size in sizes.items() if storage not in own)


@pytest.mark.parametrize("shape", BATCHES)
def test_a_training_pass_costs_what_torch_counts(lm: LanguageModel, costs: Costs, shape: tuple[int, int, int]) -> None:
    assert counted(lambda: train(lm, shape)) == costs.training_flops(*shape)


@pytest.mark.parametrize("shape", BATCHES)
def test_a_forward_pass_costs_what_torch_counts(lm: LanguageModel, costs: Costs, shape: tuple[int, int, int]) -> None:
    with lm.using("a") as model, torch.no_grad():
        assert counted(lambda: completion_losses(model, batch(*shape))) == costs.forward_flops(*shape)


@pytest.mark.parametrize("new_tokens", [1, 2, 9])
def test_generation_costs_what_torch_counts(lm: LanguageModel, costs: Costs, new_tokens: int) -> None:
    with lm.using("a") as model, torch.no_grad():
        ids = batch(3, 7, 0).ids
        run = partial(model.generate, input_ids=ids, attention_mask=torch.ones_like(ids).tril(4), do_sample=False)
        found = counted(lambda: run(max_new_tokens=new_tokens, min_new_tokens=new_tokens))
    assert found == costs.generation_flops(3, 7, new_tokens)


@pytest.mark.parametrize("shape", BATCHES)
def test_saved_activations_are_what_autograd_holds(
    lm: LanguageModel, costs: Costs, shape: tuple[int, int, int]
) -> None:
    with lm.using("a", train=True) as model:
        found = saved_bytes(model, lambda: completion_losses(model, batch(*shape)).sum())
    expected = sum(costs.saved_parts(*shape))
    # a single row of gpt2 copies keys and values once more: dropout makes its attention a chain of products
    slack = 0.1 if lm.family == "gpt2" and shape[0] == 1 else 0.0
    assert expected <= found <= expected * (1 + slack)


def test_memory_is_weights_adapter_moments_and_activations(lm: LanguageModel, costs: Costs) -> None:
    adapter = sum(tensor.nbytes for tensor in lm.adapter_state("a").values())
    fixed = 4 * lm.parameters + 4 * adapter
    assert costs.training_memory(4, 9, 11) == fixed + sum(costs.saved_parts(4, 9, 11))


def test_a_dense_layer_costs_what_the_textbook_says(tmp_path: Path) -> None:
    """24 d^2 for the matrices of a block of GPT-2 and 4 S d for its attention, a token; 2 d V for the head, a label."""
    found = calibrate(load(tmp_path, "gpt2"), "a")
    rows, width, labels = 3, 17, 5
    layers = 4 * WIDTH + 2 * WIDTH + 5 * WIDTH + 5 * WIDTH  # in + out of qkv, projection and the two of the MLP
    block = rows * width * (24 * WIDTH**2 + 2 * RANK * layers) + rows * 4 * width**2 * WIDTH
    assert found.forward_parts(rows, width, labels) == [0, block, block, 2 * WIDTH * VOCABULARY * labels]


@pytest.mark.parametrize("cut", range(1, LAYERS + 1))
def test_parts_add_up_on_both_sides_of_a_cut(lm: LanguageModel, costs: Costs, cut: int) -> None:
    """As in split learning: below block `cut` one graph, above it another, which hands the lower one its gradient."""
    shape = (3, 8, 5)
    borders: list[torch.Tensor] = []

    def divide(_: Any, inputs: Any, output: Any) -> Any:
        lower = output if isinstance(output, torch.Tensor) else output[0]
        borders.extend([lower, lower.detach().requires_grad_()])
        return borders[1] if isinstance(output, torch.Tensor) else (borders[1], *output[1:])

    with lm.using("a", train=True) as model:
        hook = blocks(model)[cut - 1].register_forward_hook(divide)
        loss = completion_losses(model, batch(*shape)).sum()
        hook.remove()
    lower, upper = borders
    backward = costs.backward_parts(*shape)
    assert counted(loss.backward) == sum(backward[cut + 1 :])
    assert counted(lambda: lower.backward(upper.grad)) == sum(backward[: cut + 1])
    whole, below, above = (Pass("training", *shape, *parts) for parts in ((), (0, cut + 1), (cut + 1,)))
    assert costs.flops(whole) == costs.flops(below) + costs.flops(above)
    assert costs.flops(below) == sum(costs.forward_parts(*shape)[: cut + 1]) + sum(backward[: cut + 1])


def test_dropout_and_fewer_layers_count_too(tmp_path: Path) -> None:
    lm = load(tmp_path, "llama", dropout=0.1, target_modules=("q_proj", "v_proj"))
    found = calibrate(lm, "a")
    shape = (5, 33, 70)
    assert counted(lambda: train(lm, shape)) == found.training_flops(*shape)
    with lm.using("a", train=True) as model:
        saved = saved_bytes(model, lambda: completion_losses(model, batch(*shape)).sum())
    assert saved == sum(found.saved_parts(*shape))


def test_a_classifier_counts_too() -> None:
    """BERT with a head on the first token: the labels are the rows."""
    settings = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": HEADS, "intermediate_size": 64}
    base = BertForSequenceClassification(BertConfig(**settings, vocab_size=VOCABULARY, num_labels=7))
    config = LoraConfig(r=RANK, target_modules=["query", "value"])
    config._register_custom_module({torch.nn.Linear: AdaptedLinear})
    with quiet():
        model = get_peft_model(base, config).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def losses(rows: int, width: int) -> torch.Tensor:
        ids = torch.zeros(rows, width, dtype=torch.int64)
        return model(input_ids=ids, labels=torch.zeros(rows, dtype=torch.int64)).loss

    found = measure(model, trained, 0, losses)
    for rows, width in ((2, 3), (4, 30), (1, 5)):
        assert counted(lambda: losses(rows, width).backward()) == found.training_flops(rows, width, rows)  # noqa: B023
    assert saved_bytes(model, lambda: losses(4, 30)) == sum(found.saved_parts(4, 30, 4))


def test_a_model_without_a_list_of_blocks_is_one_part() -> None:
    model = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    model.config = BertConfig(num_hidden_layers=2)
    found = measure(model, [model.weight], 0, lambda rows, width: model(torch.ones(rows, width, WIDTH)))
    products = 2 * WIDTH**2 * 5 * 7
    assert found.forward_parts(5, 7, 5) == found.backward_parts(5, 7, 5) == [products]
    assert found.saved_parts(5, 7, 5) == [4 * WIDTH * 5 * 7]


def test_calibration_leaves_no_trace(tmp_path: Path) -> None:
    lm = load(tmp_path, "gpt2")  # the one with dropout in its base, which draws
    trainer = Trainer(lm, "a", TrainingSettings())
    rows = [encode(lm.tokenizer, text[:4], text[4:], 80) for text in PROMPTS]
    trainer.step([(rows, 1.0)], seed=1)
    before, random = trainer.state(), torch.get_rng_state()
    calibrate(lm, "a")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in lm.trainable("a").values())
    assert all(torch.equal(value, before[name]) for name, value in trainer.state().items())
    with lm.using("a") as model:
        assert not model.training
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Operations(TorchDispatchMode):
    """The names of all operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func._overloadpacket)
        return func(*args, **(kwargs or {}))


def test_no_product_escapes_the_counter(lm: LanguageModel) -> None:
    with Operations() as operations:
        train(lm, (2, 5, 3))
    products = {found for found in operations.seen if any(word in str(found) for word in ("mm", "attention", "mv"))}
    assert products
    assert products <= {*flop_registry, *UNCOUNTED}


@given(st.lists(st.integers(-(2**30), 2**30), min_size=5, max_size=5))
def test_five_batches_tell_all_factors(factors: list[int]) -> None:
    values = [sum(f * term for f, term in zip(factors, monomials(*shape), strict=True)) for shape in SHAPES]
    assert fit(values) == tuple(factors)


def test_what_ran_is_what_is_reported(lm: LanguageModel) -> None:
    """Micro-batches, losses and completions as they really run, each with its padding."""
    texts = ("def add(a, b):\n    return", "The quick brown fox jumps over", "x", "sum of all numbers")
    rows = [encode(lm.tokenizer, text, " and more of it" * size, 80) for size, text in enumerate(texts, 1)]
    learner = Learner("a", 0, lm, TrainingSettings(batch_size=4, accumulate=3))
    learner.take_costs()
    costs_of(lm, "a")  # or it would be counted, too

    def work() -> None:
        learner.step([(rows, 0.5), (rows[:1], 0.5), (rows[2:], 0.0)], AgentRecord((0.0,) * 8, (1.0, *[0.0] * 11)))
        learner.losses(rows)
        learner.complete([Example(text, "") for text in texts], Sampling(max_new_tokens=5))

    flops = counted(work)
    ran = lm.take_passes("a")
    assert sorted(one.kind for one in ran.elements()) == ["forward", "generation", *["training"] * 3]
    for one in ran.elements():
        lm.note("a", one)
    largest = max(costs_of(lm, "a").memory(one) for one in ran if one.kind == "training")
    assert learner.take_costs() == [("flops", flops), ("memory", largest)]
    assert learner.take_costs() == []
