"""What is planned against what a run measures, the reference table, and the command."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import PAPER, ROUTED, run, small_config
from test_intent_runs import config_of
from tiny import make_tiny_encoder, make_tiny_model, make_tokenizer
from transformers import GPT2Config

from peertune import cli
from peertune.codecs import Codec, bytes_of
from peertune.config.schema import Config
from peertune.cost.command import whole_plan
from peertune.cost.estimate import Estimate, Round
from peertune.cost.formulas import adapter_bytes, break_even, logit_bytes, lora_numbers, sparse_logit_bytes
from peertune.cost.page import readable_seconds
from peertune.cost.plan import FAMILIES, Plan, plan_of, planned
from peertune.cost.wire import arrays
from peertune.ledger import Ledger
from peertune.lm.blueprint import Blueprint
from peertune.lm.flops import Costs, Pass
from peertune.lm.model import LanguageModel
from peertune.lm.settings import AdapterSettings
from peertune.lm.train import Trainer
from peertune.methods import METHODS
from peertune.payloads import Weights, encode
from peertune.studies.costs import costs_by_round

ALL = ("weights", "logits", "assessed", "lexicon", "activations", "labelled", "gradient", "records", "texts")
RELEASE = dict.fromkeys(ALL, "everyone")
EXACT: dict[str, dict[str, Any]] = {
    "local": {"type": "local"},
    "centralised": {"type": "centralised"},
    "half": {"type": "fedavg", "fraction": 0.5, "proximal": 0.1},
    "fedex": {"type": "fedavg", "aggregator": "fedex"},
    "fed_sb": {"type": "fedavg", "aggregator": "fed_sb"},
    "rolora": {"type": "fedavg", "aggregator": "rolora"},
    "kd": {"type": "kd"},
    "kd_dense": {"type": "kd", "problems": 3, "precision": "int8", "top_k": 0, "kd_weight": 1.0},
    "kd_server": {"type": "kd", "server_model": True},
    "split_v1": {"type": "split", "variant": "v1", "codec": "int8", "outliers": 2},
    "plain": {"type": "split", "shape": "plain", "codec": "topk", "keep": 4},
    "split": {"type": "split"},
}
MOST: dict[str, dict[str, Any]] = {
    "kd_trimmed": {"type": "kd", "mass": 0.5},
    "routed": ROUTED,
    "paper": PAPER,
    "offered": {**PAPER, "protocols": ["text", "logits", "adapter"]},
    "mutual": {"type": "fedmkt", "setting": "homogeneous", "top_k": 8, "mass": 0.9},
    "kd_aligned": {"type": "kd", "vocabularies": "aligned", "server_model": True},
    "from_server": {"type": "fedmkt", "setting": "llm2slm", "mode": "weighted", "precision": "int8", "problems": 3},
    "central": {"type": "central_text", "tested": False, "server_model": True},
}
CLASSES: dict[str, dict[str, Any]] = {
    "fedavg": {"type": "fedavg"},
    "plain": {"type": "split", "shape": "plain"},
    "split": {"type": "split"},
    "kd": {"type": "kd"},
}


def arms(sections: dict[str, dict[str, Any]], models: dict[str, str], family: str) -> dict[str, Any]:
    """Three agents and a server of one model, and these arms; the last is the method."""
    *others, (_, method) = sections.items()
    agents = [{"model": models[family], "release": RELEASE}] * 3
    return {"agents": agents, "server": {"model": models[family]}, "baselines": dict(others), "method": method}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    made = {name: make_tiny_model(root / name, name) for name in ("gpt2", "llama")}
    return {name: str(folder) for name, folder in made.items()} | {"bert": str(make_tiny_encoder(root / "b", "bert"))}


Measured = tuple[Plan, Ledger]


@pytest.fixture(scope="module")
def texts(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """One run of all arms, of models that write."""
    sections = {**MOST, **EXACT}
    config = small_config(models, "gpt2", **arms(sections, models, "gpt2"), adapter={"rank": 3})
    return plan_of(config), run(tmp_path_factory.mktemp("runs") / "texts", config)


@pytest.fixture(scope="module")
def classes(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("classes")
    config = config_of(folder, models, "bert", **arms(CLASSES, models, "bert"))
    return plan_of(config), run(folder / "run", config)


def moved(ledger: Ledger, arm: str, phase: str) -> Counter[tuple[str, ...]]:
    """Bytes by payload and link."""
    found: Counter[tuple[str, ...]] = Counter()
    for event in ledger.events("transfer", arm):
        if event.phase == phase:
            found[tuple(event.body[key] for key in ("payload", "source", "destination"))] += event.body["bytes"]
    return found


def noted(ledger: Ledger, arm: str, name: str) -> dict[str, list[float]]:
    """What each party says of its work in the rounds."""
    found: dict[str, list[float]] = {}
    for event in ledger.events("metric", arm):
        if event.phase == "round" and event.body["name"] == name:
            found.setdefault(event.body["agent"], []).append(event.body["value"])
    return found


def assert_exact(plan: Plan, ledger: Ledger, arm: str) -> None:
    estimate = plan.estimates[arm]
    assert not estimate.bound and not list(ledger.events("failure", arm))
    assert estimate.flows == moved(ledger, arm, "round")
    assert estimate.deploy.flows == moved(ledger, arm, "deploy")
    flops = sum((each.flops for each in estimate.rounds), Counter())
    del flops["coordinator"]  # which nobody measures
    assert flops == {name: sum(values) for name, values in noted(ledger, arm, "flops").items()}
    memory = {name: max(values) for name, values in noted(ledger, arm, "memory").items()}
    assert {name: max(each.memory.get(name, 0) for each in estimate.rounds) for name in memory} == memory


@pytest.mark.parametrize("arm", EXACT)
def test_bytes_flops_and_memory_are_those_of_the_run(texts: Measured, arm: str) -> None:
    assert_exact(*texts, arm)


@pytest.mark.parametrize("arm", CLASSES)
def test_they_are_for_classifiers(classes: Measured, arm: str) -> None:
    assert_exact(*classes, arm)


@pytest.mark.parametrize("arm", MOST)
def test_what_nobody_knows_before_costs_no_more(texts: Measured, arm: str) -> None:
    """Random tokens that are read again can be a few more."""
    plan, ledger = texts
    measured = list(costs_by_round(list(ledger.events(arm=arm)), []).values())[-1].totals()
    estimate = plan.estimates[arm]
    assert estimate.bound.startswith("at most")
    for name in ("bytes", "up", "down", "server_bytes", "flops", "server_flops"):
        assert 0 <= measured[name] <= 1.02 * estimate.totals()[name], name


def test_the_warm_start_is_priced(texts: Measured) -> None:
    plan, ledger = texts
    (measured,) = costs_by_round(list(ledger.events(arm="start")), []).values()
    totals = plan.start.totals()
    assert (totals["flops"], totals["bytes"], totals["memory"]) == (measured.flops, measured.bytes, measured.memory)


def test_totals_are_by_the_names_of_what_is_measured(texts: Measured) -> None:
    plan, ledger = texts
    for arm in ("split", "kd_server", "half"):
        measured = list(costs_by_round(list(ledger.events(arm=arm)), []).values())[-1].totals()
        found = plan.estimates[arm].totals()
        assert measured.keys() - found.keys() <= {
            "updates",
            "seconds",
            "client_trips",
            "evaluate_bytes",
            "evaluate_flops",
            "deploy_flops",
        }
        assert {name: measured[name] for name in measured.keys() & found.keys()}.items() <= found.items()


def test_round_trips_are_those_of_each_client(texts: Measured) -> None:
    """3 steps a round: two trips each with the labels at home, one without; one more for a client's part, and before
    round 1 for its whole adapter. `trips` of a plan are those of all, where clients take turns one after the other.
    """
    plan, ledger = texts
    rounds = plan.world.config.rounds
    for arm, expected in {"split": 7 * rounds + 1, "plain": 4 * rounds + 1, "kd": rounds, "fedex": rounds + 1}.items():
        measured = list(costs_by_round(list(ledger.events(arm=arm)), []).values())[-1]
        assert measured.trips == expected * len(plan.world.agents)
    assert plan.estimates["split_v1"].totals()["trips"] == 7 * rounds + 1


def test_adapters_of_several_ranks(models: dict[str, str], tmp_path: Path) -> None:
    """Each agent gets the ranks that it has; what is frozen takes the ranks of all."""
    agents = [
        {"model": models["gpt2"], "release": RELEASE, "adapter": {"rank": rank, "alpha": 2 * rank}}
        for rank in (2, 4, 3)
    ]
    method, flora = {"type": "fedavg", "aggregator": "flexlora"}, {"type": "fedavg", "aggregator": "flora"}
    config = small_config(
        models, "gpt2", agents=agents, baselines={"flora": flora}, method=method, task={"transfer": 96}
    )
    plan, ledger = plan_of(config), run(tmp_path / "run", config)
    for arm in ("flora", "fedavg"):
        assert_exact(plan, ledger, arm)


def test_every_method_has_a_price() -> None:
    assert FAMILIES.keys() == METHODS.keys()
    assert all(function.__doc__ for function in FAMILIES.values())


# The reference table: GPT-2 small, 77 classes; bytes of fp32, MB = 10^6 B


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Costs:
    """Of GPT-2 small with LoRA of rank 8 on c_attn and a head of 77 classes."""
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2Config().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    blueprint = Blueprint.of(
        str(folder), AdapterSettings(8, target_modules=("c_attn",)), labels=tuple(map(str, range(77)))
    )
    adapter = sum(tensor.numel() for tensor in blueprint.lm.trainable("plan").values())
    assert adapter == 294_912 + 59_136
    assert blueprint.lm.parameters - 59_136 == 124_439_808  # 124.44 M; the head is another
    return blueprint.costs()


C_ATTN = [(768, 2304)] * 12
LINEAR = [*C_ATTN, *[(768, 768)] * 12, *[(768, 3072)] * 12, *[(3072, 768)] * 12]


@pytest.mark.parametrize(
    ("rank", "numbers", "megabytes"),
    [(1, 36_864, 0.147), (4, 147_456, 0.590), (8, 294_912, 1.180), (16, 589_824, 2.359), (64, 2_359_296, 9.437)],
)
def test_adapters_of_the_reference_table(rank: int, numbers: int, megabytes: float) -> None:
    assert lora_numbers(C_ATTN, rank) == numbers
    assert adapter_bytes(numbers) / 1e6 == pytest.approx(megabytes, abs=5e-4)
    assert lora_numbers(LINEAR, rank) == 4 * numbers
    assert lora_numbers(C_ATTN, rank, head=59_136) == numbers + 59_136
    assert lora_numbers(C_ATTN, rank, "A") + lora_numbers(C_ATTN, rank, "B") == numbers
    assert lora_numbers(C_ATTN, rank, "R") == 12 * rank**2


@pytest.mark.parametrize(
    ("size", "megabytes"),
    [
        (logit_bytes(1000, 77), 0.308),
        (logit_bytes(2000, 77), 0.616),
        (logit_bytes(5000, 77), 1.54),
        (logit_bytes(1000, 77, q=2), 0.154),
        (logit_bytes(1000 * 32, 50_257), 6432.9),
        (sparse_logit_bytes(1000 * 32, 128), 24.576),
        (sparse_logit_bytes(1000 * 32, 10), 1.92),
        (bytes_of(Codec(), 3334 * 14, 768), 143.4),
        (bytes_of(Codec(), 3334 * 32, 768), 327.7),
        (bytes_of(Codec(), 3334 * 128, 768), 1311.0),
        (bytes_of(Codec("int8"), 3334 * 32, 768), 82.4),
    ],
)
def test_logits_and_activations_of_the_reference_table(size: int, megabytes: float) -> None:
    assert size / 1e6 == pytest.approx(megabytes, rel=5e-4)


def test_work_of_the_reference_table(gpt2: Costs) -> None:
    """Of a client with 3,334 messages of 32 tokens, in batches of 8, in TFLOP and, by token, GFLOP."""
    tokens = 8 * 32
    forward, training = (gpt2.flops(Pass(kind, 8, 32, 8)) / tokens / 1e9 for kind in ("forward", "training"))
    assert (forward, training) == (pytest.approx(0.1718, abs=5e-5), pytest.approx(0.3418, abs=1e-4))
    assert 3334 * 32 * training / 1000 == pytest.approx(36.5, abs=0.05)
    assert 1000 * 32 * forward / 1000 == pytest.approx(5.5, abs=0.05)
    assert 1000 * 32 * training / 1000 == pytest.approx(10.9, abs=0.05)
    parts = {cut: gpt2.flops(Pass("training", 8, 32, 0, 0, cut + 1)) / tokens / 1e9 for cut in (1, 2, 3, 6, 9)}
    assert {cut: round(3334 * 32 * parts[cut] / 1000, 1) for cut in (1, 3, 6)} == {1: 2.7, 3: 8.8, 6: 18.0}
    shares = {cut: round(100 * part / training, 1) for cut, part in parts.items()}
    assert shares == {1: 7.4, 2: 15.8, 3: 24.2, 6: 49.4, 9: 74.7}


def test_crossovers_of_the_reference_table() -> None:
    upload = adapter_bytes(lora_numbers(C_ATTN, 8))
    assert round(break_even(upload, logit_bytes(1, 77))) == 3830
    assert round(break_even(adapter_bytes(lora_numbers(C_ATTN, 1)), logit_bytes(1, 77))) == 479
    assert break_even(upload, bytes_of(Codec(), 1, 768)) == 384
    assert logit_bytes(1000 * 32, 50_257) / upload == pytest.approx(5450, rel=1e-3)


# The pieces


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=30).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["F32", "F16"]), st.lists(st.integers(0, 9), max_size=3)),
        max_size=8,
    )
)
def test_arrays_have_the_size_of_their_payload(tensors: dict[str, tuple[str, list[int]]]) -> None:
    made = {name: np.zeros(shape, "f4" if kind == "F32" else "f2") for name, (kind, shape) in tensors.items()}
    shapes = {name: (kind, tuple(shape)) for name, (kind, shape) in tensors.items()}
    assert arrays(Weights, shapes) == len(encode(Weights(made, 7)))


def test_a_round_takes_as_long_as_its_busiest_agent() -> None:
    one = Round(trips=3)
    one.send("weights", "coordinator", "a", 1000)
    one.send("weights", "a", "server", 500)
    one.send("weights", "coordinator", "b", 700)
    estimate = Estimate("any", [one], "")
    assert estimate.seconds(8000, 0.1) == pytest.approx(1.5 + 0.3)
    one.in_turn = True
    assert estimate.seconds(8000, 0.1) == pytest.approx(2.2 + 0.3)
    assert estimate.links == {("coordinator", "a"): 1000, ("a", "server"): 500, ("coordinator", "b"): 700}
    totals = estimate.totals()
    assert (totals["bytes"], totals["up"], totals["down"], totals["server_bytes"]) == (2200, 500, 1700, 500)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "< 0.01 s"), (0.256, "0.26 s"), (42, "42 s"), (90, "1.5 min"), (9000, "2.5 h")]
)
def test_times_are_readable(seconds: float, text: str) -> None:
    assert readable_seconds(seconds) == text


# The plan and the command


def test_a_plan_trains_nothing_and_reads_no_weights(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a plan trains nothing")

    monkeypatch.setattr(LanguageModel, "load", refuse)
    monkeypatch.setattr(Trainer, "__init__", refuse)
    folder = make_tiny_model(tmp_path / "gpt2", "gpt2")
    (folder / "model.safetensors").unlink()
    sections = {name: EXACT[name] for name in ("local", "half", "kd", "split")}
    config = small_config({"gpt2": str(folder)}, "gpt2", **arms(sections, {"gpt2": str(folder)}, "gpt2"))
    found, plan = planned(config), plan_of(config)
    assert found == {arm: each.totals() | {"exact": True} for arm, each in plan.estimates.items()}
    assert found.keys() == sections.keys() and found["local"]["flops"] > 0


def test_availability_is_a_bound(models: dict[str, str]) -> None:
    config = small_config(models, "gpt2 gpt2", method="local", task={"transfer": 96}, availability={"dropout": 0.5})
    assert plan_of(config).estimates["local"].bound == "at most: as if all agents were there in every round"


def test_a_method_that_the_agents_do_not_admit_is_left_out_with_the_reason(models: dict[str, str]) -> None:
    agents = [{"model": models[name], "release": RELEASE} for name in ("gpt2", "llama")]
    plan = whole_plan(small_config(models, agents=agents, method="local", task={"transfer": 96}))
    assert plan.estimates.keys() == {"local", "kd", "knexa", "central_text", "centralised"}
    assert "one base model" in plan.left_out["fedavg"] and "server" in plan.left_out["split"]


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`peertune plan` with these arguments: exit code, output, error output."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["peertune", "plan", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code if isinstance(end.value.code, int) else 0, out, err

    return run


def written(path: Path, config: Config) -> Path:
    path.write_text(config.model_dump_json(), encoding="utf-8")  # JSON is YAML
    return path


def test_the_command_prices_every_method(command: Command, models: dict[str, str], tmp_path: Path) -> None:
    sections = {"local": {"type": "local"}, "kd": {"type": "kd", "problems": 2}, "fedavg": {"type": "fedavg"}}
    config = small_config(models, "gpt2", **arms(sections, models, "gpt2"))
    file = written(tmp_path / "my.yaml", config)
    code, out, err = command(file, "--rtt", 0, "--bandwidth", 1)
    assert (code, err) == (0, "")
    assert all(f"\n{arm}: " in out for arm in (*sections, "split", "knexa", "central_text", "centralised"))
    assert "over 1 Mbit/s and 0 ms" in " ".join(out.split()) and "\n* knexa: at most" in out and "(warm start)" in out
    assert "kd is cheaper than fedavg (LoRA r=8) only below" in out and "a round; here 2" in out
    assert "split is cheaper than fedavg (LoRA r=8) only below" in out
    code, out, err = command(file, "--rtt", 0, "--bandwidth", 1, "--json")
    found, plan = json.loads(out), whole_plan(config)
    assert found["arms"].keys() == plan.estimates.keys()
    fedavg, estimate = found["arms"]["fedavg"], plan.estimates["fedavg"]
    assert (
        fedavg["bytes"]
        == estimate.totals()["bytes"]
        == sum(fedavg["links"].values())
        == sum(fedavg["payloads"].values())
    )
    assert fedavg["seconds"] == pytest.approx(estimate.seconds(1e6, 0))
    assert found["left_out"] == {} and len(found["crossovers"]) == 2


def test_bad_input_is_one_message(command: Command, models: dict[str, str], tmp_path: Path) -> None:
    code, out, err = command("nothing.yaml")
    assert (code, out) == (2, "") and "nothing.yaml" in err and "Traceback" not in err
    config = small_config(models, "gpt2 gpt2", method="local", task={"transfer": 96})
    file = written(tmp_path / "my.yaml", config)
    code, out, err = command(file, "--set", "agents.0.model=./gone")
    assert (code, out) == (2, "") and "./gone" in err and "Traceback" not in err
    code, out, err = command(file, "--bandwidth", 0)
    assert (code, out) == (2, "") and "--bandwidth" in err


def test_the_method_itself_must_fit_its_agents(command: Command, models: dict[str, str], tmp_path: Path) -> None:
    """What no configuration shows: how many blocks there are."""
    sections = {"kd": EXACT["kd"], "split": {"type": "split", "cut": 2}}
    code, out, err = command(
        written(tmp_path / "my.yaml", small_config(models, "gpt2", **arms(sections, models, "gpt2")))
    )
    assert (code, out) == (2, "") and "the model has 2 blocks" in err and "Traceback" not in err
