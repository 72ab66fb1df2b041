"""Split-FedLLM on tiny true models: what a round equals, what travels, who is served when, what is left behind."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import questions
from peft import PeftModel
from small import bodies, run
from split_parts import (
    BATCH,
    INT8,
    PLAIN,
    ROUNDS,
    SPLIT,
    STEPS,
    V1,
    WARM,
    adapter_of,
    config_of,
    difference,
    integers,
    models_and_questions,
)
from test_intent_runs import messages
from tiny import WIDTH, make_tiny_encoder
from transformers import AutoModelForCausalLM

from peertune.agent import Agent
from peertune.assemble import build_agents
from peertune.codecs import Codec, bytes_of
from peertune.config.schema import Config
from peertune.engines.base import Host, Ref
from peertune.errors import AgentError
from peertune.export import export_adapter
from peertune.ledger import COORDINATOR, SERVER, Ledger
from peertune.lm.calibrate import costs_of
from peertune.lm.cut import Cut, Parts
from peertune.lm.encode import Row
from peertune.lm.flops import Costs, Pass
from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet
from peertune.lm.ragged import pack
from peertune.lm.settings import AdapterSettings
from peertune.methods.parts import of_client
from peertune.payloads import Activations, Gradient, Labelled, Payload, decode, encode

UNCLIPPED = {"batch_size": 4, "clip_norm": 1e9}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return models_and_questions(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def config(models: dict[str, str]) -> Config:
    return config_of(models, baselines={"v1": V1, "plain": PLAIN, "int8": INT8})


@pytest.fixture(scope="module")
def folder(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three agents and four arms."""
    folder = tmp_path_factory.mktemp("split") / "run"
    run(folder, config)
    return folder


@pytest.fixture(scope="module")
def ledger(folder: Path) -> Ledger:
    return Ledger.read(folder / "ledger.sqlite")


def transfers(ledger: Ledger, arm: str = "split", phase: str = "round") -> list[dict[str, Any]]:
    return [event.body for event in ledger.events("transfer", arm) if event.phase == phase]


def hidden(ledger: Ledger, arm: str, t: int) -> list[tuple[str, str, str]]:
    """(source, destination, payload) of the hidden states and gradients of round `t`, in the order of the calls."""
    rows = [event.body for event in ledger.events("transfer", arm) if (event.phase, event.round) == ("round", t)]
    wanted = ("activations", "labelled", "gradient")
    return [(row["source"], row["destination"], row["payload"]) for row in rows if row["payload"] in wanted]


# What a run equals


@pytest.mark.parametrize(("model", "more"), [("llama", {}), ("gpt2", {}), ("bundled/gpt2", {"last": 2})])
def test_one_client_and_its_server_are_one_model_that_is_trained_alone(
    models: dict[str, str], tmp_path: Path, model: str, more: dict[str, Any]
) -> None:
    """Bit for bit after two rounds, from an optimiser that begins with them: without dropout, and where nobody clips,
    since each side would clip its own gradient. With `last`, the client has an upper block, too.
    """
    arms = {"local": "local", "v1": V1 | more, "plain": PLAIN}
    budget = {"warm_start_steps": 0, "local_steps": 1, "exchange_steps": 2}
    sections = {"budget": budget, "training": UNCLIPPED, "method": SPLIT | more}
    run(tmp_path / "run", config_of(models, model, baselines=arms, **sections))
    expected, start = (adapter_of(tmp_path / "run", arm, "a0") for arm in ("local", "start"))
    assert difference(expected, start) > 1e-4
    for arm in ("split", "v1", "plain"):
        assert difference(adapter_of(tmp_path / "run", arm, "a0"), expected) == 0.0


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_one_classifier_and_its_server_are_one_model(tmp_path: Path, family: str) -> None:
    """To the rounding of sums that a padded batch takes in another order."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = str(make_tiny_encoder(tmp_path / family, family, **still))
    paths = {"path": messages(tmp_path / "train.csv", 40), "test_path": messages(tmp_path / "test.csv", 4)}
    task = {"type": "intent", **paths, "validation": 24, "transfer": 0, "probe": 0, "partition": "iid"}
    budget = {"warm_start_steps": 0, "local_steps": 1, "exchange_steps": 2}
    more = {"task": task, "budget": budget, "training": UNCLIPPED, "evaluation": {"max_new_tokens": 48}, "rounds": 1}
    ledger = run(tmp_path / "run", config_of({}, model, baselines={"local": "local", "plain": PLAIN}, **more))
    assert not bodies(ledger, "failure")
    expected = adapter_of(tmp_path / "run", "local", "a0")
    assert any("classifier" in name for name in expected)
    for arm in ("split", "plain"):
        assert difference(adapter_of(tmp_path / "run", arm, "a0"), expected) < 1e-6
    sent = [row["payload"] for row in transfers(ledger) if row["destination"] == SERVER]
    assert "labelled" not in sent and "activations" in sent


@pytest.mark.parametrize("cuts", [{}, {"a1": 2}])
def test_a_round_of_v1_is_a_round_of_fedavg(tmp_path: Path, cuts: dict[str, int]) -> None:
    """Also where clients are cut in different places: each trains a whole model, and the average is of whole models."""
    budget = {"warm_start_steps": 0, "local_steps": 1, "exchange_steps": 2}
    sections = {"rounds": 1, "budget": budget, "training": UNCLIPPED, "baselines": {"fedavg": "fedavg"}}
    path = questions(tmp_path)
    who = "bundled/gpt2 bundled/gpt2"
    ledger = run(tmp_path / "run", config_of({"questions": path}, who, method=V1 | {"cuts": cuts}, **sections))
    assert not bodies(ledger, "failure")
    expected = adapter_of(tmp_path / "run", "fedavg", "a0")
    for name in ("a0", "a1"):
        assert difference(adapter_of(tmp_path / "run", "split", name), expected) < 1e-6
    assert [body["rule"] for body in bodies(ledger, "aggregation", "split")] == ["fedit"]


def test_a_shared_server_with_clients_cut_apart_has_what_they_have(tmp_path: Path) -> None:
    """V2: after a round the block that one client has and the server has for the other is the mean of the two."""
    path = questions(tmp_path)
    method = SPLIT | {"cuts": {"a1": 2}}
    ledger = run(tmp_path / "run", config_of({"questions": path}, "bundled/gpt2 bundled/gpt2", method=method))
    assert not bodies(ledger, "failure")
    adapters = [adapter_of(tmp_path / "run", "split", name) for name in ("a0", "a1", SERVER)]
    assert difference(adapters[0], adapters[1]) == 0.0
    both = [name for name in adapters[0] if ".h.1." in name or ".h.2." in name]
    assert difference(*({name: adapter[name] for name in both} for adapter in adapters[1:])) == 0.0
    assert (
        len({row["bytes"] for row in transfers(ledger) if (row["source"], row["payload"]) == (SERVER, "weights")}) == 1
    )


def test_the_ends_of_a_plain_and_a_u_shaped_model_learn_the_same(folder: Path) -> None:
    """V2 with one adapter at the server: who has the head changes who steps on it, and nothing else."""
    ends = [adapter_of(folder, arm, "a0") for arm in ("split", "plain")]
    assert difference(*ends) < 1e-6


def test_int8_trains_as_fp32_does(ledger: Ledger) -> None:
    def losses(arm: str) -> list[float]:
        return [body["value"] for body in bodies(ledger, "metric", arm) if body["name"] == "train_loss"]

    exact, coded = losses("split"), losses("int8")
    assert len(exact) == ROUNDS * 3 and exact != coded
    np.testing.assert_allclose(coded, exact, rtol=1e-3)


# What travels


def batches(config: Config, folder: Path, name: str) -> list[list[Row]]:
    """The rows of each step of an agent, from the first round on."""
    spec = json.dumps({"config": config.model_dump_json(), "folder": str(folder)})
    agents, _ = build_agents(spec.encode(), [name])
    agent: Any = agents[name]
    agent._record.cursor = WARM * BATCH
    return [agent._learner.own_batch(agent._train, agent._record) for _ in range(ROUNDS * STEPS)]


def states(count: int) -> np.ndarray:
    return np.zeros((count, WIDTH), np.float32)


def messages_of(rows: list[Row], plain: bool, codec: Codec) -> list[Payload]:
    """What a step of these rows sends, up and down."""
    tokens, reads = sum(len(row.ids) for row in rows), sum(row.loss_tokens for row in rows)
    beside = {"lengths": integers(len(rows)), "reads": integers(reads)}
    back = Gradient.of(0, states(tokens), codec, **({"loss": np.zeros(1, np.float32)} if plain else {}))
    if plain:
        return [Labelled.of(0, states(tokens), codec, **beside, labels=integers(reads)), back]
    sent = Activations.of(0, states(tokens), codec, **beside)
    return [sent, Activations.of(0, states(reads), codec), Gradient.of(0, states(reads), codec), back]


def formula(rows: list[Row], plain: bool, codec: Codec) -> int:
    """As the docstring of the method has it."""
    n, m = sum(len(row.ids) for row in rows), sum(row.loss_tokens for row in rows)
    if plain:
        return 2 * bytes_of(codec, n, WIDTH) + 4 * (len(rows) + 2 * m) + 4
    return 2 * (bytes_of(codec, n, WIDTH) + bytes_of(codec, m, WIDTH)) + 4 * (len(rows) + m)


@pytest.mark.parametrize(
    ("arm", "codec"), [("split", Codec()), ("v1", Codec()), ("plain", Codec()), ("int8", Codec("int8"))]
)
def test_bytes_are_those_of_the_formula_and_the_frames(
    ledger: Ledger, config: Config, tmp_path: Path, arm: str, codec: Codec
) -> None:
    for name in ("a0", "a2"):
        wanted = ("activations", "labelled", "gradient")
        rows = [row for row in transfers(ledger, arm) if row["payload"] in wanted]
        found = [row["bytes"] for row in rows if name in (row["source"], row["destination"])]
        sent = [messages_of(batch, arm == "plain", codec) for batch in batches(config, tmp_path, name)]
        assert found == [len(encode(message)) for step in sent for message in step]
        arrays = [sum(array.nbytes for message in step for array in message.tensors.values()) for step in sent]  # pyright: ignore[reportAttributeAccessIssue]
        assert arrays == [formula(batch, arm == "plain", codec) for batch in batches(config, tmp_path, name)]
        frames = [len(encode(message)) for step in sent for message in step]
        assert sum(frames) - sum(arrays) < 500 * len(frames)


def test_a_part_of_the_adapter_travels_once_up_and_once_down(ledger: Ledger, folder: Path) -> None:
    part = of_client(adapter_of(folder, "split", "a0"), 1, None, False)
    parameters = sum(tensor.numel() for tensor in part.values())
    weights = [row for row in transfers(ledger) if row["payload"] == "weights" and "a1" in row.values()]
    up = [row["bytes"] for row in weights if row["source"] == "a1"][1:]  # the first is the whole adapter, as a start
    down = [row["bytes"] for row in weights if row["destination"] == "a1"][1:]
    assert len(up) == len(down) == ROUNDS
    assert all(0 < size - 4 * parameters < 4096 for size in (*up, *down))


def test_labels_stay_at_home_and_the_coordinator_sees_no_hidden_state(ledger: Ledger) -> None:
    for arm in ("split", "v1", "int8"):
        rows = transfers(ledger, arm)
        assert {row["payload"] for row in rows if row["destination"] == COORDINATOR} == {"weights"}
        assert {row["payload"] for row in rows if row["source"][0] == "a" and row["destination"] == SERVER} == {
            "activations",
            "gradient",
        }
        assert not [row for row in rows if row["source"][0] == row["destination"][0] == "a"]
    plain = {row["payload"] for row in transfers(ledger, "plain") if row["destination"] == SERVER}
    assert "labelled" in plain and not {"activations", "gradient"} & plain


def test_flops_are_those_of_the_passes(ledger: Ledger, config: Config, tmp_path: Path) -> None:
    """Of both halves together: what the whole model takes."""
    costs = costs_of_tiny(config, tmp_path)
    shapes = {
        name: [
            (len(rows), max(len(row.ids) for row in rows), sum(row.loss_tokens for row in rows))
            for rows in batches(config, tmp_path, name)
        ]
        for name in ("a0", "a1", "a2")
    }
    for arm in ("split", "v1", "plain"):
        served = 0
        for name, steps in shapes.items():
            ends = [[Pass("training", rows, width, 0, 0, 2)] for rows, width, _ in steps]
            if arm != "plain":
                ends = [[*each, Pass("training", *shape, 3)] for each, shape in zip(ends, steps, strict=True)]
            own = [sum(map(costs.flops, each)) for each in ends]
            assert flops(ledger, arm, name) == [sum(own[:STEPS]), sum(own[STEPS:])]
            served += sum(costs.flops(Pass("training", *shape)) for shape in steps) - sum(own)
        assert sum(flops(ledger, arm, SERVER)) == served


def costs_of_tiny(config: Config, folder: Path) -> Costs:
    lm = LanguageModel.load(config.agents[0].model)
    lm.add_adapter("x", AdapterSettings(), seed=0)
    return costs_of(lm, "x")


def flops(ledger: Ledger, arm: str, name: str) -> list[float]:
    rows = [event.body for event in ledger.events("metric", arm) if event.phase == "round"]
    return [row["value"] for row in rows if (row["agent"], row["name"]) == (name, "flops")]


def test_memory_counts_what_waits_for_its_gradient(ledger: Ledger) -> None:
    def memory(arm: str, name: str) -> float:
        rows = bodies(ledger, "metric", arm)
        return max(row["value"] for row in rows if (row["agent"], row["name"]) == (name, "memory"))

    assert memory("v1", SERVER) > memory("split", SERVER)  # three batches and three adapters at once
    assert memory("split", "a0") > memory("plain", "a0")


# Who is served when


def test_v1_serves_all_side_by_side(ledger: Ledger) -> None:
    names = ["a0", "a1", "a2"]
    lower = [(name, SERVER, "activations") for name in names]
    middle = [(SERVER, name, "activations") for name in names]
    loss = [(name, SERVER, "gradient") for name in names]
    back = [(SERVER, name, "gradient") for name in names]
    # the server pulls as it is called, and so do clients: a call's own transfers stand where it was asked for
    expected = sorted((lower + middle + loss + back) * STEPS)
    found = hidden(ledger, "v1", 1)
    assert sorted(found) == expected
    assert found[: len(names)] == lower and found[-len(names) :] == back


def test_v2_serves_one_after_the_other_in_an_order_of_the_round(ledger: Ledger) -> None:
    orders = []
    for t in range(1, ROUNDS + 1):
        rows = hidden(ledger, "split", t)
        turns = [rows[start : start + 4] for start in range(0, len(rows), 4)]
        for turn in turns:
            name = turn[0][0]
            client, server = (name, SERVER), (SERVER, name)
            assert turn == [
                (*client, "activations"),
                (*server, "activations"),
                (*client, "gradient"),
                (*server, "gradient"),
            ]
        order = [turn[0][0] for turn in turns]
        assert sorted(order[:3]) == ["a0", "a1", "a2"] and order == order[:3] * STEPS
        orders.append(order[:3])
    assert orders[0] != orders[1]


# What is left behind


@pytest.mark.parametrize("arm", ["split", "v1", "plain"])
def test_every_agent_ends_with_the_whole_model(folder: Path, arm: str) -> None:
    agents = [adapter_of(folder, arm, name) for name in ("a0", "a1", "a2")]
    assert difference(agents[0], agents[1]) == difference(agents[0], agents[2]) == 0.0
    part = of_client(agents[0], 1, None, arm == "plain")
    middle = {name: tensor for name, tensor in adapter_of(folder, arm, SERVER).items() if name not in part}
    assert difference({name: agents[0][name] for name in middle}, middle) == 0.0


def test_an_exported_adapter_has_the_logits_of_the_two_halves(folder: Path, tmp_path: Path, config: Config) -> None:
    message = export_adapter(folder, "a1", tmp_path / "out")
    assert message.startswith("OK: a1 after split")
    lm = LanguageModel.load(config.agents[0].model)
    for name in ("a1", SERVER):
        lm.add_adapter(name, AdapterSettings(), seed=0)
        lm.load_adapter(name, adapter_of(folder, "split", name))
    ids = torch.arange(5, 25).reshape(2, 10)
    client, server = (Parts(lm, name, Cut(1)) for name in ("a1", SERVER))
    mask = client.mask_of(torch.tensor([10, 10]))
    with torch.no_grad(), lm.using("a1"):
        lower = client.lower(ids, mask)
        with lm.using(SERVER):
            middle = server.middle(lower, mask)
    with torch.no_grad(), lm.using("a1"):
        logits = client.readout(pack(middle, torch.tensor([10, 10])))
    with quiet():
        base = AutoModelForCausalLM.from_pretrained(config.agents[0].model)
        exported = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits, exported(input_ids=ids).logits.flatten(0, 1), rtol=1e-4, atol=1e-4)


def test_nothing_of_a_round_is_left_at_the_server(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    original = Agent.checkpoint
    monkeypatch.setattr(Agent, "checkpoint", lambda agent, keep: (seen.append(agent), original(agent, keep))[1])
    run(tmp_path / "run", config_of(models, "llama llama", rounds=1))
    assert seen and all(agent._served is None and agent._client is None for agent in seen)


class Sender:
    """An agent with hidden states for all who ask."""

    name = "a"

    def call(self, verb: str, args: list[Payload]) -> Payload:
        return Activations.of(1, states(2), Codec())

    def may_pull(self, kind: str, caller: str) -> bool:
        return True

    def outgoing(self, payload: Payload) -> tuple[Payload, str]:
        return payload, "not examined"

    def take_metrics(self) -> list[tuple[str, float]]:
        return []

    def log_path(self) -> Path | None:
        return None


def test_hidden_states_are_kept_until_somebody_has_them() -> None:
    """A round has many, and all answers of a round together would not fit into memory."""
    host, ref = Host({"a": Sender()}), Ref("a", 0, "split_lower")
    assert host.run(ref, []) == ([], None)
    assert decode(host.release(ref, SERVER)).kind == "activations"
    with pytest.raises(AgentError, match="server has pulled its answer; it is kept once"):
        host.release(ref, "b")
