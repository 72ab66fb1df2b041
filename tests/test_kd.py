"""KD-FedLLM on tiny true models: what travels and how many bytes, what teaches and what does not, guards."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import bodies, last_checkpoint, make_models, run, small_config
from tiny import make_tiny_model

from peertune.config.schema import Config
from peertune.errors import ConfigError, MethodError, PayloadError
from peertune.knowledge import Knowledge, pack
from peertune.ledger import COORDINATOR, SERVER, Ledger
from peertune.methods import METHODS, Budget, Run
from peertune.methods.base import Public
from peertune.methods.kd import _of_one_form
from peertune.payloads import Logits, decode, encode
from peertune.places import check_places

KD: dict[str, Any] = {"type": "kd", "precision": "fp32", "top_k": 8}
RELEASE = {"logits": "coordinator"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("models"))


def config(models: dict[str, str], who: str = "llama llama", **changes: Any) -> Any:
    agents = [{"model": models[name], "release": RELEASE} for name in who.split()]
    return small_config(models, who, **({"agents": agents, "method": KD} | changes))


@pytest.fixture(scope="module")
def ledger(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return run(tmp_path_factory.mktemp("kd") / "run", config(models))


def transfers(ledger: Ledger, arm: str = "kd", **wanted: str) -> list[dict[str, Any]]:
    found = [event.body for event in ledger.events("transfer", arm) if event.phase == "round"]
    return [body for body in found if all(body[key] == value for key, value in wanted.items())]


def test_only_logits_of_public_problems_and_settings_travel(ledger: Ledger) -> None:
    up = transfers(ledger, destination=COORDINATOR)
    assert {body["payload"] for body in up} == {"logits"} and len(up) == 4  # two agents, two rounds
    down = transfers(ledger, source=COORDINATOR)
    assert {body["payload"] for body in down} == {"number", "picks", "logits", "distillation"}
    assert not [body for body in transfers(ledger) if COORDINATOR not in (body["source"], body["destination"])]


def test_the_bytes_are_those_of_the_entries(ledger: Ledger) -> None:
    (event, *_) = ledger.events("knowledge", "kd")
    assert event.body["problems"] == 6 and event.body["ambiguous"] == 0
    (size,) = {body["bytes"] for body in transfers(ledger, destination=COORDINATOR)}
    # fp32: 8 entries of 4 bytes and an id of 2, and the tail of 4, for every position; lengths of 4 a problem
    positions = (size - 6 * 4) // (8 * 6 + 4)
    rest = size - 6 * 4 - positions * (8 * 6 + 4)
    assert 0 < rest < 400 and positions > 6 * 5  # the frame; a completion has more than five tokens


def test_all_agents_learn_and_say_so(ledger: Ledger) -> None:
    metrics = [body for body in bodies(ledger, "metric", "kd") if body["name"] == "exchange_updates"]
    assert [(body["agent"], body["value"]) for body in metrics] == [("a0", 2.0), ("a1", 2.0)] * 2
    assert {body["value"] for body in bodies(ledger, "metric", "kd") if body["name"] == "kept"} == {1.0}
    assert not bodies(ledger, "failure", "kd")


def test_a_lesson_that_does_harm_is_undone(models: dict[str, str], tmp_path: Path) -> None:
    """At this rate everything does harm; what is learnt alone stays."""
    made = config(models, method=KD | {"rollback": 0.0, "kd_weight": 1.0}, training={"learning_rate": 0.3})
    ledger = run(tmp_path / "run", made)
    metrics = bodies(ledger, "metric", "kd")
    assert [body["value"] for body in metrics if body["name"] == "kept"] == [0.0] * 4
    assert len([body for body in metrics if body["name"] == "train_loss"]) == 4


def test_what_all_doubt_teaches_nothing(models: dict[str, str], tmp_path: Path) -> None:
    ledger = run(tmp_path / "run", config(models, method=KD | {"greatest_entropy": 1e-6}))
    assert {body["problems"] for body in bodies(ledger, "knowledge", "kd")} == {0}
    assert not transfers(ledger, payload="distillation")


def test_a_server_model_learns_first_and_teaches(models: dict[str, str], tmp_path: Path) -> None:
    made = config(models, method=KD | {"server_model": True}, server={"model": models["llama"]})
    ledger = run(tmp_path / "run", made)
    assert [body["source"] for body in transfers(ledger, payload="logits", destination="a0")] == [SERVER] * 2
    assert len(transfers(ledger, payload="logits", destination=SERVER)) == 2
    started, ended = bodies(ledger, "server_scores")
    assert started["metrics"]["test_loss"] != ended["metrics"]["test_loss"]


def test_models_of_two_vocabularies_are_refused(models: dict[str, str]) -> None:
    method = METHODS["kd"](run=Run(1, 0, Budget(1, 1), (Public("x", False),)))
    facts = [{"name": "a0", "model": "x", "vocabulary": "1"}, {"name": "a1", "model": "y", "vocabulary": "2"}]
    method.check(facts[:1] * 2)
    with pytest.raises(MethodError, match=r"a1 \(y\) has another tokenizer than a0 \(x\)"):
        method.check(facts)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"agents": [{"model": "x"}, {"model": "x"}]}, "kd \\(kd\\) needs logits released to the coordinator"),
        ({"task": {"transfer": 0}}, "kd: kd needs public problems that all agents hold"),
        ({"method": KD | {"server_model": True}}, "kd: `server_model` needs a server"),
    ],
)
def test_what_cannot_work_is_refused(models: dict[str, str], changes: dict[str, Any], expected: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=expected):
        config(models, **changes)


def test_no_more_tokens_are_listed_than_there_are(models: dict[str, str]) -> None:
    check_places(config(models, method=KD | {"top_k": 320}))
    with pytest.raises(
        ConfigError, match=r"\[kd\] kd: `top_k` is 321, but .*llama has 320 tokens; lower it, or set it"
    ):
        check_places(config(models, method=KD | {"top_k": 321}))


def test_validate_knows_heads_of_other_widths(models: dict[str, str], tmp_path: Path) -> None:
    """Of the configuration's own method: a baseline that does not fit is left out of a comparison, with the reason."""
    small = str(make_tiny_model(tmp_path / "small", "llama", vocabulary=290))

    def mixed(method: Any, **changes: Any) -> Config:
        release = {"logits": "coordinator", "assessed": "agents"}
        agents = [{"model": model, "release": release} for model in (models["llama"], small)]
        return config(models, agents=agents, method=method, **changes)

    with pytest.raises(
        ConfigError, match=r"\[kd\] kd needs .* same tokens; a1 \(.*small\) has 290, a0 \(.*llama\) has 320\."
    ):
        check_places(mixed(KD))
    check_places(mixed(KD | {"vocabularies": "groups"}))
    check_places(mixed("local", baselines={"kd": KD}))
    served = {"server_model": True, "vocabularies": "aligned", "precision": "fp16"}
    check_places(mixed(KD | served, server={"model": small}))
    with pytest.raises(ConfigError, match=r"server \(.*small\) has 290, a0 \(.*llama\) has 320\. Use"):
        check_places(config(models, method=KD | {"server_model": True}, server={"model": small}))


class Recorder:
    def __init__(self) -> None:
        self.failed: set[str] = set()
        self.events: list[dict[str, Any]] = []

    def record(self, kind: str, **body: Any) -> None:
        self.events.append({"kind": kind} | body)


def test_logits_of_another_form_cost_their_sender_only() -> None:
    def dense(width: int, problems: int) -> Knowledge:
        logp = np.full((problems, width), -np.log(width), dtype=np.float32)
        return Knowledge(np.ones(problems, dtype=np.int32), width, logp)

    fed: Any = Recorder()
    known = {"a": dense(4, 3), "b": dense(5, 3), "c": dense(4, 3), "d": dense(4, 2)}
    assert list(_of_one_form(fed, known, 3)) == ["a", "c"]
    assert fed.failed == {"b", "d"} and [event["verb"] for event in fed.events] == ["know", "know"]
    assert _of_one_form(fed, {"d": dense(4, 2)}, 3) == {}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("sparse", [True, False])
def test_logits_survive_the_wire(precision: Any, sparse: bool) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (7, 50)).astype(np.float32)
    known = pack(logits, np.array([3, 0, 4]), 6 if sparse else None)
    if sparse:
        known = known.trim(0.8)
    answer = decode(encode(Logits.of(known, precision)))
    assert isinstance(answer, Logits)
    found = answer.knowledge()
    error = {"fp32": 0.0, "fp16": 0.01, "int8": 0.04}[precision]
    assert found.lengths.tolist() == [3, 0, 4] and found.width == 50
    assert np.abs(found.logp[known.listed] - known.logp[known.listed]).max() <= error
    if sparse:
        assert np.array_equal(found.ids, known.ids) and np.array_equal(found.listed, known.listed)


def test_the_end_of_a_kd_run_is_stored(ledger: Ledger) -> None:
    assert sorted(last_checkpoint(ledger, "kd").body["agents"]) == ["a0", "a1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": [2**31 - 1] * 2}, "expected values for 4294967294 positions, found 12"),
        ({"lengths": [-1, 3]}, "expected lengths of 0 or more"),
        ({"counts": [2**31 - 1, 1, 1]}, "expected counts of 3 positions that sum to 12"),
        ({"ids": [9] * 12}, "every id once in a row"),
        ({"ids": [50, *range(1, 12)]}, "expected ids of 0 to 49"),
        ({"logp": [0.0] * 12}, "sum to 1"),
        ({"strange": [0] * 3}, "found other arrays"),
    ],
)
def test_bad_logits_are_refused_before_they_take_memory(change: dict[str, list[float]], message: str) -> None:
    known = pack(np.random.default_rng(0).normal(0, 1, (3, 50)), np.array([1, 2]), 4)
    tensors = Logits.of(known, "fp32").tensors
    for name, values in change.items():
        dtype = {"ids": np.uint16, "logp": np.float32}.get(name, np.int32)
        tensors[name] = np.array(values, dtype=dtype)
    with pytest.raises(PayloadError, match=message):
        Logits(tensors, 50).check()
