"""Averaging adapters when agents fail, answer what cannot be, or are put back: each costs its own part only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from fedavg_parts import Make, distance, fedavg, maker, models_and_questions, of_kind

from peertune.agent import Agent
from peertune.errors import MethodError
from peertune.methods.shared import UNSURE
from peertune.payloads import Texts, Weights


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return models_and_questions(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def make(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Make:
    return maker(models, tmp_path_factory)


@contextmanager
def failing(name: str, verb: str, answer: Any = None) -> Iterator[None]:
    """In the block that agent's verb raises, or answers what `answer` makes of its answer."""
    original = getattr(Agent, verb)

    def instead(agent: Agent, *args: Any) -> Any:
        if agent.name != name:
            return original(agent, *args)
        if answer is None:
            raise ValueError("no")
        return answer(original(agent, *args))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agent, verb, instead)
        yield


def altered(**change: Any) -> Any:
    """An answer with its first tensor, or the number of examples, changed."""

    def alter(weights: Weights) -> Weights:
        name = min(weights.tensors)
        tensors = {**weights.tensors, name: change.get("tensor", lambda tensor: tensor)(weights.tensors[name])}
        return Weights(tensors, change.get("examples", weights.examples))

    return alter


@pytest.mark.parametrize(
    ("verb", "answer", "cause"),
    [
        ("load", None, "ValueError"),
        ("fit", None, "ValueError"),
        ("adapter", None, "ValueError"),
        (
            "adapter",
            altered(tensor=lambda tensor: tensor[:2]),
            "lora_A.weight: expected the shape (4, 64), found (2, 64)",
        ),
        ("adapter", altered(tensor=lambda tensor: tensor * np.float32("nan")), "NaN"),
        ("adapter", altered(tensor=lambda tensor: tensor * 0 + 1e7), "holds numbers beyond 1e+06; lower learning_rate"),
        ("adapter", altered(examples=0), "no training example"),
        ("adapter", lambda weights: Weights({}, 5), "expected the shape (4, 64), found None"),
        (
            "adapter",
            lambda weights: Weights({**weights.tensors, "base_model.alien": np.zeros(2, np.float32)}, 5),
            "base_model.alien: expected the shape None, found (2,)",
        ),
    ],
)
def test_a_failing_agent_costs_its_own_part_only(make: Make, verb: str, answer: Any, cause: str) -> None:
    group = make(method=fedavg("fedex"))
    group.round(1)
    with failing("a1", verb, answer):
        rows = group.round(2)
    (failure,) = of_kind(rows, "failure")
    assert (failure["agent"], failure["verb"]) == ("a1", verb) and cause in failure["cause"]
    assert of_kind(rows, "aggregation")[0]["agents"] == ["a0", "a2"]
    assert not of_kind([*group.round(3), *group.deploy()], "failure")
    found = [group.delta(name) for name in group.facts]
    assert distance(found[1], found[0]) < 1e-6 and distance(found[2], found[0]) < 1e-6


def test_a_round_without_an_answer_changes_nothing(make: Make) -> None:
    group = make(ranks=(4,), method="fedavg")
    group.round(1)
    before = group.shared
    with failing("a0", "fit"):
        assert not of_kind(group.round(2), "aggregation")
    after = group.shared
    assert after.version == before.version and all(after.factors[name] is each for name, each in before.factors.items())
    assert not of_kind(group.round(3), "failure")


def test_without_any_adapter_there_is_no_start(make: Make) -> None:
    group = make(ranks=(4,), method="fedavg")
    with failing("a0", "adapter"), pytest.raises(MethodError, match="none came that can be used"):
        group.method.init(group.fed)


def test_an_agent_that_was_put_back_is_not_given_a_change_of_what_it_does_not_have(make: Make) -> None:
    group = make(method=fedavg("rolora"))
    before = group.fed["a1"].checkpoint(Texts(()))
    receipt = group.fed.fetch(before)
    group.fed.end_round()
    group.round(1)
    group.fed["a1"].restore(receipt)
    group.fed.end_round()
    rows = group.round(2)
    (failure,) = of_kind(rows, "failure")
    assert (failure["agent"], failure["verb"]) == ("a1", "load")
    assert "expected what changed after version 0, found it after version 1" in failure["cause"]
    assert of_kind(rows, "aggregation")[0]["agents"] == ["a0", "a2"] and group.shared.held["a1"] == UNSURE
    assert not of_kind(group.round(3), "failure")
    assert not of_kind(group.deploy(), "failure")
    assert distance(group.delta("a1"), group.delta("a0")) < 1e-6


def test_a_private_factor_stays_at_home_also_after_a_failure(make: Make) -> None:
    group = make(method=fedavg("fedsa"))
    group.round(1)
    with failing("a1", "fit"):
        group.round(2)
    own = {name: tensor for name, tensor in group.adapter("a1").items() if "lora_B" in name}
    assert group.shared.held["a1"] == UNSURE
    assert not of_kind(group.deploy(), "failure")
    found, others = (group.adapter(name) for name in ("a1", "a0"))
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())
    assert all(torch.equal(found[name], others[name]) for name in found if "lora_A" in name)
