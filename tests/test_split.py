"""Split training is compared with training of the whole model, bit for bit unless a test says why not."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from halves import (
    CAUSAL,
    COMMON,
    FAMILIES,
    LAYERS,
    PAD,
    PLAIN,
    SETTINGS,
    U_SHAPES,
    Pair,
    assert_same,
    client_of,
    gradients,
    labelled,
    model,
    reset,
    server_of,
    texts,
)
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from peertune.codecs import Codec
from peertune.errors import MethodError, PayloadError
from peertune.lm.calibrate import costs_of, flop_counter
from peertune.lm.cut import ENCODERS, Cut, Parts, layers_of
from peertune.lm.encode import Row
from peertune.lm.model import LanguageModel
from peertune.lm.ragged import Sample, completion
from peertune.lm.settings import AdapterSettings
from peertune.lm.train import Trainer
from peertune.methods.parts import of_client


def assert_all_are_the_whole(lm: LanguageModel, cuts: Sequence[Cut], rows: list[Row]) -> None:
    """Losses, gradients and parameters of two steps."""
    trainer = Trainer(lm, "whole", SETTINGS)
    seen = gradients(trainer)
    expected = [(trainer.step([(rows, 1.0)], seed=0), dict(seen)) for _ in range(2)]
    final = lm.adapter_state("whole")
    for cut in cuts:
        reset(lm)
        pair = Pair(lm, cut)
        for loss, gradient in expected:
            assert pair.step([completion(row) for row in rows]) == loss
            assert_same(pair.gradients(), gradient)
        assert_same(pair.state(lm), final)


@pytest.mark.parametrize("family", CAUSAL)
def test_loss_and_gradients_are_those_of_the_whole_model_at_every_cut(family: str) -> None:
    assert_all_are_the_whole(model(family), [*U_SHAPES, *PLAIN], texts())


def test_also_with_eager_attention_and_in_several_micro_batches() -> None:
    lm = model("llama", attn_implementation="eager")
    assert_all_are_the_whole(lm, (Cut(1), Cut(1, 3), Cut(2, plain=True)), texts(rows=11))


def test_also_on_bf16_weights() -> None:
    """As on a GPU: hidden states travel as fp32, which holds all of bf16."""
    lm = model("gpt2", dtype=torch.bfloat16)
    assert_all_are_the_whole(lm, (Cut(1), Cut(1, 3), Cut(2, plain=True)), texts())


def of_whole_classifier(lm: LanguageModel, samples: Sequence[Sample]) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean cross-entropy of a padded batch by the model's own forward, and the gradients."""
    ordered = sorted(samples, key=lambda sample: len(sample.ids))
    width = len(ordered[-1].ids)
    ids = torch.tensor([[*sample.ids, *[PAD] * (width - len(sample.ids))] for sample in ordered])
    trainable = lm.trainable("whole")
    with lm.using("whole", train=True) as net:
        logits = net(input_ids=ids, attention_mask=(ids != PAD).long()).logits
        loss = cross_entropy(logits, torch.tensor([sample.targets[0] for sample in ordered]))
        found = torch.autograd.grad(loss, list(trainable.values()))
    return loss.item(), dict(zip(trainable, found, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_is_that_of_the_models_own_forward_at_every_cut(family: str) -> None:
    """To 1e-5, since the model's own head scores all tokens and means the losses in another order."""
    lm = model(family, labels=True)
    samples = labelled(lm, texts())
    expected, gradient = of_whole_classifier(lm, samples)
    found = []
    for cut in [*U_SHAPES, *PLAIN]:
        reset(lm)
        pair = Pair(lm, cut)
        assert pair.step(samples) == pytest.approx(expected, rel=1e-6)
        found.append(pair.gradients())
        for name, tensor in gradient.items():
            torch.testing.assert_close(found[-1][name], tensor, rtol=1e-5, atol=1e-6)
    for other in found[1:]:
        assert_same(other, found[0])


def test_a_classifier_reads_the_token_that_transformers_reads() -> None:
    gpt2, bert = (Parts(model(family, labels=True), "whole", Cut(1)) for family in ("gpt2", "bert"))
    assert [gpt2.pooled(ids) for ids in [(5, 6, 7), (5, PAD, 7, PAD), (PAD,)]] == [2, 2, 0]
    assert bert.pooled((5, 6, 7)) == 0


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_each_lora_parameter_belongs_to_one_part(family: str) -> None:
    lm = model(family, labels=True)
    parts = Parts(lm, "client", Cut(1, 3))
    assert sorted(name for names in parts.names.values() for name in names) == list(lm.trainable("client"))
    blocks = {"gpt2": "transformer.h", "bert": "bert.encoder.layer"}[family]
    expected = {"lower": {0}, "middle": {1, 2}, "head": {3}}
    for part, numbers in expected.items():
        inside = {int(name.split(f"{blocks}.")[1].split(".")[0]) for name in parts.names[part] if blocks in name}
        assert inside == numbers
    ends = {name.split(".lora")[0].split("model.model.")[-1] for name in parts.names["head"] if blocks not in name}
    assert ends == {"gpt2": {"score"}, "bert": {"bert.pooler.dense", "classifier"}}[family]
    assert set(parts.owned(client=True)) == {*parts.names["lower"], *parts.names["head"]}
    plain = Parts(lm, "client", Cut(1, plain=True))
    assert plain.owned(client=True) == plain.names["lower"]
    assert set(plain.owned(client=False)) == {*plain.names["middle"], *plain.names["head"]}


def test_each_side_changes_its_own_parameters_only() -> None:
    lm = model("gpt2")
    before = lm.adapter_state("whole")
    pair = Pair(lm, Cut(1, 3))
    pair.step([completion(row) for row in texts()])
    parts = Parts(lm, "whole", Cut(1, 3))
    for name in ("client", "server"):
        after = lm.adapter_state(name)
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert changed == set(parts.owned(client=name == "client"))


@pytest.mark.parametrize("family", FAMILIES)
def test_names_alone_tell_what_a_client_has(family: str) -> None:
    """So the coordinator, which has no model, knows what to send to whom."""
    lm = model(family, labels=family in (*ENCODERS, "gpt2"))
    for cut in [*U_SHAPES, *PLAIN]:
        owned = Parts(lm, "client", cut).owned(client=True)
        assert set(of_client(lm.trainable("client"), cut.first, cut.last, cut.plain)) == set(owned)


@pytest.mark.parametrize(
    ("family", "labels", "kind", "outliers"),
    [("gpt2", False, "int8", 2), ("llama", False, "int8", 0), ("bert", True, "int8", 0), ("bloom", False, "fp16", 0)],
)
def test_a_coded_step_has_the_loss_of_fp32_to_a_thousandth(family: str, labels: bool, kind: Any, outliers: int) -> None:
    lm = model(family, labels)
    samples = labelled(lm, texts()) if labels else [completion(row) for row in texts()]
    for cut in (Cut(1), Cut(1, 3), Cut(2, plain=True)):
        reset(lm)
        exact = Pair(lm, cut).step(samples)
        reset(lm)
        pair = Pair(lm, cut, codec=Codec(kind, outliers))
        assert 0.0 < abs(pair.step(samples) - exact) < 1e-3 * exact
        assert all(bool(tensor.any()) for tensor in pair.gradients().values())


@pytest.mark.parametrize("cut", [Cut(1), Cut(1, 3), Cut(2, plain=True)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_each_half_knows_the_flops_that_it_ran(family: str, cut: Cut) -> None:
    """To the last one, by torch's own counter; and what both ran is what the whole model runs."""
    lm = model(family)
    rows = texts(rows=11)
    costs = costs_of(lm, "whole")
    pair = Pair(lm, cut)
    with flop_counter() as counter:
        pair.step([completion(row) for row in rows])
    ran = [sum(times * costs.flops(one) for one, times in half.ran.items()) for half in (pair.client, pair.server)]
    assert sum(ran) == counter.get_total_flops()
    assert ran[0] < ran[1] or cut.first > 1 or cut.last == 3
    trainer = Trainer(lm, "whole", SETTINGS)
    lm.take_passes("whole")
    trainer.step([(rows, 1.0)], seed=0)
    assert sum(ran) == sum(times * costs.flops(one) for one, times in lm.take_passes("whole").items())


def test_a_step_that_was_given_up_leaves_no_trace() -> None:
    lm = model("llama")
    samples = [completion(row) for row in texts()]
    undisturbed = Pair(lm, Cut(1, 3))
    loss = undisturbed.step(samples)
    reset(lm)
    pair = Pair(lm, Cut(1, 3))
    smashed = pair.client.lower(samples, 1)
    hidden = pair.server.middle("c", smashed, 2)
    pair.client.loss(hidden, 3)
    with pytest.raises(PayloadError):
        pair.server.back("c", hidden[1:])
    assert pair.step(samples) == loss
    assert_same(pair.gradients(), undisturbed.gradients())


def test_the_loss_may_be_asked_for_again() -> None:
    lm = model("llama")
    client, server = client_of(lm, Cut(1, 3)), server_of(lm, Cut(1, 3))
    seen = gradients(client.trainer)
    found = []
    for times in (1, 2):
        reset(lm)
        hidden = server.middle("c", client.lower([completion(row) for row in texts()], 1), 2)
        losses = [client.loss(hidden, 3) for _ in range(times)]
        client.back(server.back("c", losses[-1][1]))
        found.append((losses[-1][0], dict(seen)))
    assert found[0][0] == found[1][0]
    assert_same(found[1][1], found[0][1])


def test_dropout_follows_the_seeds_only() -> None:
    lm = model("llama", dropout=0.5)
    client = client_of(lm, Cut(1))
    samples = [completion(row) for row in texts()]
    first, again, other = (client.lower(samples, seed).hidden for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_an_architecture_without_support_is_named() -> None:
    config = AutoConfig.for_model(
        "opt", hidden_size=8, ffn_dim=8, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=8, **COMMON
    )
    base: Any = AutoModelForCausalLM.from_config(config)
    base.generation_config = GenerationConfig(eos_token_id=[0])
    lm = LanguageModel("tiny opt", base, SimpleNamespace(pad_token_id=PAD))
    lm.add_adapter("client", AdapterSettings(), 0)
    with pytest.raises(MethodError, match="tiny opt: a OPTForCausalLM cannot be split; .*bloom, gpt2, gpt_neox, llama"):
        Parts(lm, "client", Cut(1))
    assert layers_of(lm, "client") == 0 and layers_of(model("bloom"), "client") == LAYERS


def test_a_trainer_of_some_parameters_owns_these_only() -> None:
    lm = model("llama")
    names = Parts(lm, "client", Cut(2)).names["middle"]
    first, second = (Trainer(lm, name, SETTINGS, names) for name in ("client", "server"))
    for parameter in lm.trainable("client").values():
        parameter.grad = torch.ones_like(parameter)
    before = lm.adapter_state("client")
    first.apply()
    after = lm.adapter_state("client")
    assert {name for name in after if not torch.equal(after[name], before[name])} == set(names)
    assert {name.split("/", 1)[1] for name in first.state() if "/" in name} == set(names)
    second.load_state(first.state())
    assert_same({name: lm.adapter_state("server")[name] for name in names}, {name: after[name] for name in names})
    assert_same(second.state(), first.state())
