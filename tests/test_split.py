"""Split training is compared with training of the whole model, bit for bit unless a test says why not."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from peertune.codecs import Codec, bytes_of, decode_array, encode_array
from peertune.errors import MethodError, PayloadError
from peertune.lm.calibrate import costs_of, flop_counter
from peertune.lm.cut import ENCODERS, Cut, Parts, layers_of
from peertune.lm.encode import Row
from peertune.lm.model import LanguageModel
from peertune.lm.ragged import Sample, buckets, completion, flat_reads, pack, unpack
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.lm.split import ClientHalf, ServerHalf
from peertune.lm.train import Trainer, TrainingDiverged
from peertune.methods.parts import of_client

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


@pytest.mark.parametrize("labels", [False, True])
def test_no_padding_and_no_more_than_is_read_travels(labels: bool) -> None:
    lm = model("bert" if labels else "gpt2", labels)
    rows = texts()
    samples = labelled(lm, rows) if labels else [completion(row) for row in rows]
    tokens, reads = sum(len(row.ids) for row in rows), sum(len(sample.reads) for sample in samples)
    assert reads == (len(rows) if labels else sum(row.loss_tokens for row in rows))
    for cut, states in ((Cut(1), 2 * (tokens + reads)), (Cut(1, 3), 4 * tokens), (Cut(1, plain=True), 2 * tokens)):
        pair = Pair(lm, cut)
        pair.step(samples)
        assert pair.bytes == states * WIDTH * 4


def test_labels_and_what_is_read_stay_at_home_where_they_can() -> None:
    lm = model("llama")
    samples = [completion(row) for row in texts()]
    sent = [client_of(lm, cut).lower(samples, 0) for cut in (Cut(1, 3), Cut(1), Cut(1, plain=True))]
    assert [(len(smashed.reads) > 0, len(smashed.targets) > 0) for smashed in sent] == [
        (False, False),
        (True, False),
        (True, True),
    ]


def test_a_server_with_an_adapter_for_each_client_serves_them_in_any_order() -> None:
    """SplitFed V1: the steps of two clients are those that each has alone, though their messages interleave."""
    lm = model("gpt2")
    samples = [[completion(row) for row in texts(seed=seed)] for seed in (0, 1)]
    alone = []
    for batch in samples:
        reset(lm)
        pair = Pair(lm, Cut(1))
        pair.step(batch)
        alone.append(pair.gradients())
    reset(lm)
    for name in ("client b", "server b"):
        lm.add_adapter(name, AdapterSettings(rank=2), seed=0)
        lm.load_adapter(name, lm.adapter_state("whole"))
    clients = [client_of(lm, Cut(1), name) for name in ("client", "client b")]
    servers = [server_of(lm, Cut(1), name) for name in ("server", "server b")]
    seen = [
        (gradients(client.trainer), gradients(server.trainer)) for client, server in zip(clients, servers, strict=True)
    ]
    sides = list(zip(clients, servers, samples, strict=True))
    smashed = [client.lower(batch, 1) for client, _, batch in sides]
    hidden = [server.middle("c", sent, 2) for (_, server, _), sent in zip(sides, smashed, strict=True)]
    found = [client.loss(states, 3)[1] for (client, _, _), states in zip(sides, hidden, strict=True)]
    for (client, server, _), gradient in reversed(list(zip(sides, found, strict=True))):
        client.back(server.back("c", gradient))
    for (clients_own, servers), expected in zip(seen, alone, strict=True):
        assert_same(clients_own | servers, expected)


def test_a_shared_server_refuses_a_gradient_for_parameters_that_have_moved() -> None:
    """SplitFed V2."""
    lm = model("gpt2")
    client, server = client_of(lm, Cut(1)), server_of(lm, Cut(1), clients="ab")
    smashed = client.lower([completion(row) for row in texts()], 1)
    hidden = [server.middle(name, smashed, 2) for name in ("a", "b")]
    assert np.array_equal(*hidden)
    gradient = client.loss(hidden[0], 3)[1]
    server.back("a", gradient)
    for name in ("a", "b"):
        with pytest.raises(MethodError, match=f"'{name}'.*one client after the other"):
            server.back(name, gradient)


def test_a_shared_server_serves_clients_that_are_cut_in_different_places() -> None:
    """One adapter and one optimiser for the blocks from the first cut up; blocks below a client's cut stay still."""
    lm = model("gpt2")
    cuts = {"a": Cut(1), "b": Cut(3)}
    server = ServerHalf(Trainer(lm, "server", SETTINGS), cuts)
    samples = [completion(row) for row in texts()]
    for name, cut in cuts.items():
        client, before = client_of(lm, cut), lm.adapter_state("server")
        hidden = server.middle(name, client.lower(samples, 1), 2)
        client.back(server.back(name, client.loss(hidden, 3)[1]))
        after = lm.adapter_state("server")
        changed = {key for key in after if not torch.equal(after[key], before[key])}
        assert changed == set(Parts(lm, "server", cut).owned(client=False))
    counts = server.trainer.state()["counts"].tolist()
    names = list(lm.trainable("server"))
    of_block = {n: {count for name, count in zip(names, counts, strict=True) if f".h.{n}." in name} for n in range(4)}
    assert of_block == {0: {0}, 1: {1}, 2: {1}, 3: {2}}


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


def test_activations_that_are_in_memory_together() -> None:
    lm = model("gpt2")
    client, server = client_of(lm, Cut(1, 3)), server_of(lm, Cut(1, 3), clients="ab")
    smashed = client.lower([completion(row) for row in texts(rows=11)], 1)
    lower = client.peak
    assert [(one.kind, one.rows, one.start, one.stop) for one in lower] == [
        ("backward", 8, 0, 2),
        ("backward", 3, 0, 2),
    ]
    hidden = [server.middle(name, smashed, 2) for name in "ab"]
    assert len(server.peak) == 4 and {(one.start, one.stop) for one in server.peak} == {(2, 4)}
    gradient = client.loss(hidden[0], 3)[1]
    assert client.peak[:2] == lower and len(client.peak) == 3 and client.peak[2].start == 4
    server.back("a", gradient)
    assert server.held == ()


def test_calls_out_of_turn() -> None:
    lm = model("gpt2")
    client = client_of(lm, Cut(1))
    states = np.zeros((3, WIDTH), np.float32)
    for call in (lambda: client.back(states), lambda: client.loss(states, 0)):
        with pytest.raises(MethodError, match="call `lower` first"):
            call()
    client.lower([completion(row) for row in texts()], 0)
    with pytest.raises(MethodError, match="call `loss` first"):
        client.back(states)
    with pytest.raises(ValueError, match="no token with loss"):
        client.lower([], 0)


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


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    lm = model("gpt2")
    before = lm.adapter_state("client")
    pair = Pair(lm, Cut(1))
    smashed = pair.client.lower([completion(row) for row in texts()], 1)
    gradient = np.full_like(pair.server.middle("c", smashed, 2), np.nan)
    with pytest.raises(TrainingDiverged, match="found gradient norm nan"):
        pair.server.back("c", gradient)
    assert_same(lm.adapter_state("server"), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": np.array([2, 3, 4], np.int64)}, "int32"),
        ({"lengths": np.array([], np.int32)}, "1 to 16 rows"),
        ({"lengths": np.ones(17, np.int32)}, "1 to 16 rows"),
        ({"lengths": np.array([0, 4, 5], np.int32)}, "1 to 64 tokens"),
        ({"lengths": np.array([2, 3, 65], np.int32)}, "1 to 64 tokens"),
        ({"lengths": np.array([4, 3, 2], np.int32)}, "shortest first"),
        ({"lengths": np.array([2, 3, 5], np.int32)}, r"float32 \(10, 16\)"),
        ({"hidden": np.zeros((9, 17), np.float32)}, r"float32 \(9, 16\)"),
        ({"hidden": np.zeros((9, 16), np.float64)}, "found float64"),
        ({"reads": np.array([1, 9], np.int32)}, "ascending"),
        ({"reads": np.array([-1, 2], np.int32)}, "ascending"),
        ({"reads": np.array([2, 2], np.int32)}, "ascending"),
        ({"targets": np.array([1], np.int32)}, "a label for each"),
        ({"targets": np.array([1, VOCABULARY], np.int32)}, "labels from 0 to 49"),
        ({"targets": np.array([-100, 2], np.int32)}, "labels from 0 to 49"),
    ],
)
def test_smashed_data_that_cannot_be(change: dict[str, np.ndarray], message: str) -> None:
    lm = model("gpt2")
    rows = [Row((5, 6), 1, False), Row((5, 6, 7), 2, False), Row((5, 6, 7, 8), 4, False)]
    smashed = client_of(lm, Cut(1, plain=True)).lower([completion(row) for row in rows], 0)
    with pytest.raises(PayloadError, match=message):
        server_of(lm, Cut(1, plain=True)).loss("c", replace(smashed, **change), 0)
    if "targets" not in change:
        with pytest.raises(PayloadError, match=message):
            server_of(lm, Cut(1)).middle("c", replace(smashed, **change), 0)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut(0), "after block 1 to 3, not 0"),
        (Cut(4), "after block 1 to 3, not 4"),
        (Cut(2, 2), "after block 3 to 4, not 2"),
        (Cut(2, 5), "after block 3 to 4, not 5"),
        (Cut(1, 3, plain=True), "one cut; leave out the last one, 3"),
    ],
)
def test_a_cut_outside_of_the_model(cut: Cut, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        Parts(model("llama"), "client", cut)


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


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=7), st.integers(1, 4))
def test_packing_and_bucketing_find_every_token_again(rows: list[list[bool]], size: int) -> None:
    rows = sorted(rows, key=len)
    lengths = np.array([len(row) for row in rows], np.int32)
    samples = [Sample((7,) * len(row), tuple(np.flatnonzero(row).tolist()), ()) for row in rows]
    packed = torch.arange(int(lengths.sum())).float()[:, None]
    reads = flat_reads(samples)
    parts = buckets(lengths, reads, size, torch.device("cpu"))
    pieces = packed.split([part.tokens for part in parts])
    found = []
    for part, piece in zip(parts, pieces, strict=True):
        padded = unpack(piece, part.lengths)
        assert padded.shape == (len(part.lengths), int(part.lengths.max()), 1)
        assert torch.equal(pack(padded, part.lengths), piece)
        found += padded[part.rows, part.places, 0].tolist()
    assert found == reads.tolist() == [place for place, read in enumerate(sum(rows, [])) if read]


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
