"""Runs of split learning that are stopped, spread over workers, or in which a client or the server fails in a step."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import bodies, resume, run
from split_parts import (
    ROUNDS,
    SPLIT,
    STEPS,
    V1,
    adapter_of,
    config_of,
    difference,
    integers,
    models_and_questions,
    stored,
)

from peertune.agent import Agent
from peertune.ledger import SERVER, Ledger
from peertune.payloads import Activations, Gradient


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return models_and_questions(tmp_path_factory.mktemp("models"))


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
