"""Split-FedLLM on tiny true models: what a round equals, what travels, who is served when, what survives a failure."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import questions
from peft import PeftModel
from safetensors.torch import load as load_safetensors
from small import bodies, last_checkpoint, make_models, resume, run, small_config
from test_intent_runs import messages
from tiny import WIDTH, make_tiny_encoder, make_tiny_model
from transformers import AutoModelForCausalLM

from peertune.agent import Agent
from peertune.assemble import build_agents
from peertune.checkpoint import Blobs
from peertune.codecs import Codec, bytes_of
from peertune.config.schema import Config
from peertune.engines.base import Host, Ref
from peertune.errors import AgentError, ConfigError, MethodError
from peertune.export import export_adapter
from peertune.ledger import COORDINATOR, SERVER, Ledger
from peertune.lm.calibrate import costs_of
from peertune.lm.cut import _FAMILIES, ENCODERS, Cut, Parts
from peertune.lm.encode import Row
from peertune.lm.flops import Costs, Pass
from peertune.lm.model import LanguageModel
from peertune.lm.quiet import quiet
from peertune.lm.ragged import pack
from peertune.lm.settings import AdapterSettings
from peertune.methods import Budget, Run, Split
from peertune.methods.parts import of_client
from peertune.methods.split import FAMILIES
from peertune.payloads import Activations, Gradient, Labelled, Number, Payload, decode, encode
from peertune.places import check_places

SPLIT: dict[str, Any] = {"type": "split"}
PLAIN, V1, INT8 = SPLIT | {"shape": "plain"}, SPLIT | {"variant": "v1"}, SPLIT | {"codec": "int8"}
RELEASE = {"weights": "coordinator", "activations": "agents", "labelled": "agents", "gradient": "agents"}
UNCLIPPED = {"batch_size": 4, "clip_norm": 1e9}
ROUNDS, STEPS, BATCH, WARM = 2, 3, 4, 2
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    made = make_models(folder)
    for model in made.values():  # gpt2 has dropout by default
        path = Path(model) / "config.json"
        path.write_text(re.sub(r'pdrop": 0.1', 'pdrop": 0.0', path.read_text()))
    return {**made, "questions": questions(folder)}


def config_of(models: dict[str, str], who: str = "llama llama llama", **changes: Any) -> Config:
    names = who.split()
    sizes = {"train": 24, "validation": 12, "transfer": 0, "probe": 0, "test": 2}
    task = {"type": "answers", "path": models.get("questions", ""), **sizes, "partition": "iid"}
    agents = [{"model": models.get(name, name), "release": RELEASE} for name in names]
    server = {"model": models.get(names[0], names[0])}
    usual = {"task": task, "agents": agents, "server": server, "evaluation": {"max_new_tokens": 4, "every": 2}}
    return small_config({}, "", **(usual | {"method": SPLIT} | changes))


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


def stored(folder: Path, arm: str, name: str) -> State:
    """The last checkpoint of a party."""
    digest = last_checkpoint(Ledger.read(folder / "ledger.sqlite"), arm).body["agents"][name]
    return load_safetensors(Blobs(folder / "agents" / name / "checkpoints").get(digest))


def adapter_of(folder: Path, arm: str, name: str) -> State:
    state = stored(folder, arm, name)
    return {key.removeprefix("adapter/"): tensor for key, tensor in state.items() if key.startswith("adapter/")}


def difference(left: State, right: State) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


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


def integers(count: int) -> np.ndarray:
    return np.zeros(count, np.int32)


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


# What survives


class Stop(Exception):
    """The run is over for this process."""


def test_a_run_goes_on_as_if_never_stopped(models: dict[str, str], tmp_path: Path) -> None:
    """Adapters and optimisers of both halves are in the checkpoints; those of V1 hold one of the server's a client."""
    made = config_of(models, "llama llama", method=V1, baselines={"v2": SPLIT})
    whole = run(tmp_path / "whole", made)

    def stop_after(arm: str) -> Callable[[str, dict[str, Any]], None]:
        def stop(event: str, body: dict[str, Any]) -> None:
            if event == "round" and (body["arm"], body["round"]) == (arm, 1):
                raise Stop

        return stop

    with pytest.raises(Stop):
        run(tmp_path / "stopped", made, stop_after("v2"))
    with pytest.raises(Stop):
        resume(tmp_path / "stopped", stop_after("split"))
    assert resume(tmp_path / "stopped").head == whole.head
    for arm, expected in (("v2", set()), ("split", {"a0", "a1"})):
        copies = {key.split("/")[1] for key in stored(tmp_path / "whole", arm, SERVER) if key.startswith("more/")}
        assert copies == expected


def test_the_number_of_workers_does_not_show(models: dict[str, str], tmp_path: Path) -> None:
    """Two processes that import torch: the messages of split learning go from one to the other."""
    sections = {"method": V1, "baselines": {"v2": SPLIT}, "rounds": 1}
    inline = run(tmp_path / "inline", config_of(models, "llama llama", **sections))
    apart = run(tmp_path / "apart", config_of(models, "llama llama", **sections, engine={"workers": 2}))
    assert apart.head == inline.head


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`failing(verb, name, number, error)`: the call of that number of a verb at an agent raises."""

    def arrange(verb: str, name: str, number: int, what: Any) -> None:
        original, calls = getattr(Agent, verb), []

        def call(agent: Any, *args: Any) -> Any:
            if agent.name == name:
                calls.append(verb)
                if len(calls) == number:
                    if isinstance(what, Exception):
                        raise what
                    return what(original(agent, *args))
            return original(agent, *args)

        monkeypatch.setattr(Agent, verb, call)

    yield arrange


@pytest.mark.parametrize("method", [SPLIT, V1], ids=["v2", "v1"])
def test_a_failure_between_two_halves_of_a_step_costs_that_step(
    models: dict[str, str], tmp_path: Path, method: dict[str, Any], failing: Any
) -> None:
    failing("split_loss", "a1", 2, RuntimeError("the dog ate it"))
    ledger = run(tmp_path / "run", config_of(models, method=method))
    failures = bodies(ledger, "failure")
    assert [(body["agent"], body["verb"]) for body in failures] == [("a1", "split_loss")]
    assert "dog" not in json.dumps(failures)
    assert updates(ledger) == {"a0": [STEPS, STEPS], "a1": [STEPS - 1, STEPS], "a2": [STEPS, STEPS]}
    assert [body["agents"] for body in bodies(ledger, "aggregation")] == [["a0", "a1", "a2"]] * ROUNDS


def updates(ledger: Ledger) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for body in bodies(ledger, "metric", "split"):
        if body["name"] == "exchange_updates":
            found.setdefault(body["agent"], []).append(body["value"])
    return found


def test_a_client_that_sends_what_cannot_be_costs_its_own_steps(
    models: dict[str, str], tmp_path: Path, failing: Any
) -> None:
    failing(
        "split_lower", "a0", 1, lambda sent: Activations({**sent.tensors, "lengths": integers(1) + 99999}, sent.step)
    )
    failing("split_loss", "a2", 1, lambda sent: Gradient(sent.tensors, sent.step + 1))
    ledger = run(tmp_path / "run", config_of(models, rounds=1))
    found = {(body["agent"], body["verb"]): body["cause"] for body in bodies(ledger, "failure")}
    assert found.keys() == {("a0", "split_lower"), ("a2", "split_loss")}
    assert "server cannot use its answer: expected rows of 1 to 96 tokens" in found["a0", "split_lower"]
    assert "expected the gradient of step" in found["a2", "split_loss"]
    assert updates(ledger) == {"a0": [STEPS - 1], "a1": [STEPS], "a2": [STEPS - 1]}


def test_a_client_that_does_not_come_back_does_not_count(models: dict[str, str], tmp_path: Path, failing: Any) -> None:
    failing("split_leave", "a1", 1, RuntimeError("gone"))
    ledger = run(tmp_path / "run", config_of(models, method=V1))
    assert [body["agents"] for body in bodies(ledger, "aggregation")] == [["a0", "a2"], ["a0", "a1", "a2"]]


def test_a_round_without_its_server_counts_for_nothing(models: dict[str, str], tmp_path: Path, failing: Any) -> None:
    failing("split_close", SERVER, 1, RuntimeError("gone"))
    ledger = run(tmp_path / "run", config_of(models, evaluation={"every": 1}))
    assert [event.round for event in ledger.events("aggregation")] == [2]
    assert [(body["agent"], body["verb"]) for body in bodies(ledger, "failure")] == [(SERVER, "split_close")]


def test_an_agent_that_is_away_is_left_out_and_still_deployed_to(models: dict[str, str], tmp_path: Path) -> None:
    made = config_of(models, availability={"present": {"a1": [[2, 2]]}})
    ledger = run(tmp_path / "run", made)
    assert [body["agents"] for body in bodies(ledger, "aggregation")] == [["a0", "a2"], ["a0", "a1", "a2"]]
    assert difference(*(adapter_of(tmp_path / "run", "split", name) for name in ("a0", "a1"))) == 0.0


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


# What is refused


def facts(name: str, **changes: Any) -> dict[str, Any]:
    usual = {"name": name, "model": "x", "family": "llama", "adapter": "1", "scale": 2.0, "layers": 4}
    return usual | changes


@pytest.mark.parametrize(
    ("fields", "agent", "message"),
    [
        ({}, {"adapter": "2", "model": "y"}, r"a1 \(y\) differs from the server \(x\)"),
        ({}, {"scale": 1.0}, "one adapter shape for all"),
        ({"cut": 4}, {}, "the model has 4 blocks: `cut` is 1 to 3, found 4 for a"),
        ({"cuts": {"a1": 5}}, {}, "found 5 for a1"),
        ({"cut": 2, "last": 2}, {}, r"first cut after 2 \(a.\): `last` is 3 to 4, found 2"),
        ({"last": 5}, {}, "`last` is 2 to 4, found 5"),
    ],
)
def test_agents_that_do_not_fit(fields: dict[str, Any], agent: dict[str, Any], message: str) -> None:
    run = Run(1, 0, Budget(1, 1), (), server=facts(SERVER))
    Split(run=run).check([facts("a0"), facts("a1")])
    with pytest.raises(MethodError, match=message):
        Split(run=run, **fields).check([facts("a0"), facts("a1", **agent)])


def test_a_model_that_cannot_be_cut_and_a_codec_that_cannot_be() -> None:
    odd = facts(SERVER, layers=0, family="opt")
    with pytest.raises(MethodError, match="x is a opt model, which cannot be cut; expected one of bloom, gpt2"):
        Split(run=Run(1, 0, Budget(1, 1), (), server=odd)).check([facts("a0", layers=0, family="opt")])
    with pytest.raises(ConfigError, match="keep is 1 or more"):
        Split(run=Run(1, 0, Budget(1, 1), (), server=facts(SERVER)), codec="topk").check([facts("a0")])
    with pytest.raises(MethodError, match="split needs a server"):
        Split(run=Run(1, 0, Budget(1, 1), ())).check([facts("a0")])
    assert set(FAMILIES) == set(_FAMILIES) and FAMILIES[-len(ENCODERS) :] == ENCODERS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server": None}, r"split needs a server, which trains the middle; add `server: \{model"),
        ({"server": {"model": "other"}}, "one base model for all; a0 .* differs from the server"),
        ({"server": {"model": "x", "adapter": {"rank": 2}}}, "give a0 the server's `adapter`"),
        ({"method": SPLIT | {"cuts": {"zoe": 1}}}, "`cuts` names 'zoe', which is no agent"),
        ({"method": PLAIN | {"last": 2}}, "`shape: plain` has one cut"),
        ({"method": SPLIT | {"cut": 3, "last": 3}}, "`last` is 3, but 3 blocks are below the first cut"),
        ({"method": SPLIT | {"codec": "int8", "keep": 3}}, "keep is 1 or more, of topk only"),
        ({"method": SPLIT | {"codec": "int4"}}, "codec"),
        ({"agents": [{"model": "x"}]}, "needs weights released to the coordinator"),
        ({"agents": [{"model": "x", "release": {"weights": "coordinator"}}]}, "activations released to other agents"),
        (
            {"method": PLAIN, "agents": [{"model": "x", "release": RELEASE | {"labelled": "nobody"}}]},
            "labelled released to other agents, but a0 does not; set its `release.labelled: agents`",
        ),
    ],
)
def test_a_configuration_that_cannot_work(models: dict[str, str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        config_of(models, "x", **changes)


def test_validate_knows_how_many_blocks_there_are(models: dict[str, str]) -> None:
    check_places(config_of(models, "llama"))
    with pytest.raises(ConfigError, match=r"\[split\] split: the model has 2 blocks: `cut` is 1 to 1, found 2 for a0"):
        check_places(config_of(models, "llama", method=SPLIT | {"cut": 2}))
    with pytest.raises(ConfigError, match="`last` is 2 to 2, found 3"):
        check_places(config_of(models, "gpt2", method=SPLIT | {"last": 3}))


@pytest.mark.parametrize(
    ("more", "found"),
    [({"codec": "topk", "keep": WIDTH + 1}, "0 and 33"), ({"codec": "int8", "outliers": WIDTH}, "32 and 0")],
)
def test_validate_knows_how_wide_hidden_states_are(models: dict[str, str], more: dict[str, Any], found: str) -> None:
    for name in ("llama", "gpt2"):
        with pytest.raises(ConfigError, match=rf"\[split\] codec: hidden states have 32 channels; .*; found {found}"):
            check_places(config_of(models, name, method=SPLIT | more))


def test_validate_knows_which_models_can_be_cut(models: dict[str, str], tmp_path: Path) -> None:
    place = str(make_tiny_model(tmp_path / "opt", "opt"))
    with pytest.raises(ConfigError, match=r"\[cut\] split: .*opt is a opt model, which cannot be cut; expected one of"):
        check_places(config_of({**models, "opt": place}, "opt", method={"type": "local"}, baselines={"cut": SPLIT}))


def test_a_server_that_nobody_needs_is_refused(models: dict[str, str]) -> None:
    for method in ("local", "fedavg"):
        with pytest.raises(
            ConfigError, match=r"\[server\] no arm has a use for it.*; remove it, or add an arm of `split`"
        ):
            check_places(config_of(models, "llama", method={"type": method}))
    check_places(config_of(models, "llama", method={"type": "local"}, baselines={"cut": SPLIT}))


@pytest.mark.parametrize("verb", ["split_lower", "split_labelled", "split_leave"])
def test_a_client_that_has_joined_nothing(models: dict[str, str], tmp_path: Path, verb: str) -> None:
    spec = json.dumps({"config": config_of(models, "llama").model_dump_json(), "folder": str(tmp_path)})
    agents, _ = build_agents(spec.encode(), ["a0", SERVER])
    with pytest.raises(MethodError, match="a0 has joined no round"):
        agents["a0"].call(verb, [])
    with pytest.raises(MethodError, match="server serves no round"):
        agents[SERVER].call("split_middle", [Number(0), Activations({}, 0)])
