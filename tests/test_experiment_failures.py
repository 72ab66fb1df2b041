"""True agents by themselves and in runs: lessons are measured on fixed items, and what fails or diverges is undone."""

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from experiment_parts import TWO, spoil, workers
from small import bodies, make_models, run, small_config

from peertune.assemble import Spec, build_agents
from peertune.errors import PeertuneError
from peertune.payloads import Number, Picks, Texts


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return make_models(tmp_path_factory.mktemp("models"))


def build(models: dict[str, str], folder: Path, *names: str, **changes: Any) -> list[Any]:
    config = small_config(models, TWO, **changes)
    agents, _ = build_agents(msgspec.json.encode(Spec(config.model_dump_json(), str(folder))), list(names))
    return [agents[name] for name in names]


def numbers(*values: float) -> list[Any]:
    return [Number(value) for value in values]


def state_of(agent: Any) -> tuple[dict[str, bytes], bytes]:
    """Everything that a checkpoint would hold."""
    tensors = {name: tensor.numpy().tobytes() for name, tensor in agent._learner.trainer.state().items()}
    return tensors, msgspec.msgpack.encode(agent._record)


TAUGHT = [Picks((0, 1)), Texts(("    return xs\n",) * 2), *numbers(0)]
LEARN = numbers(0.5, 3, 1e9, 1)


def test_before_and_after_are_measured_on_the_same_fixed_items(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peertune.agent.learner

    measured: list[tuple] = []
    original = peertune.agent.learner.losses
    monkeypatch.setattr(
        peertune.agent.learner,
        "losses",
        lambda lm, adapter, rows: measured.append(tuple(row.ids for row in rows)) or original(lm, adapter, rows),
    )
    (agent,) = build(models, tmp_path, "a0")
    agent.call("accept", TAUGHT)
    gains = [agent.call("learn", numbers(0.5, 2, 1e9, 1)) for _ in range(2)]
    private, probe = measured[:2]
    assert measured == [private, probe] * 4 and private != probe
    assert gains[1].private.before == gains[0].private.after  # nothing else happened in between
    assert gains[1].probe.before == gains[0].probe.after
    assert gains[0].private.before != gains[0].private.after
    assert gains[0].probe.before != gains[0].probe.after


# Agents that fail


@pytest.mark.parametrize(("verb", "args"), [("fit", numbers(3)), ("learn", LEARN)])
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError()])
def test_a_verb_that_raises_half_way_is_undone(
    models: dict[str, str], tmp_path: Path, verb: str, args: list[Any], error: Exception
) -> None:
    (agent,) = build(models, tmp_path, "a0")
    agent.call("fit", numbers(2))
    agent.call("accept", TAUGHT)
    before, steps, original = state_of(agent), [0], agent._learner.trainer.step

    def step(*args: Any) -> float:
        steps[0] += 1
        if steps[0] == 3:
            raise error
        return original(*args)

    agent._learner.trainer.step = step
    with pytest.raises(type(error)):
        agent.call(verb, args)
    assert steps == [3]
    assert state_of(agent) == before


@pytest.mark.parametrize(("verb", "args"), [("fit", numbers(3)), ("learn", LEARN)])
def test_training_that_diverges_is_undone_also_when_only_the_last_step_did_it(
    models: dict[str, str], tmp_path: Path, verb: str, args: list[Any]
) -> None:
    training = {"learning_rate": 1e30, "warmup_steps": 0}
    for steps in (1, 3):
        (agent,) = build(models, tmp_path, "a0", training=training)
        agent.call("accept", TAUGHT)
        before = state_of(agent)
        with pytest.raises(PeertuneError, match="put back"):
            agent.call(verb, [Number(steps) if arg == Number(3) else arg for arg in args])
        assert state_of(agent) == before
        agent.call("profile", [])  # still a working agent
        assert all(np.isfinite(value) for _, value in agent.take_metrics())


def test_poisoned_weights_cost_their_agent_its_exchanges_and_nobody_else(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(original: Any, agent: Any, steps: int) -> None:
        original(agent, steps)
        if agent.name == "a1":
            with torch.no_grad():
                for parameter in agent._lm.trainable("a1").values():
                    parameter.fill_(float("nan"))

    spoil(monkeypatch, "fit", poison)
    ledger = run(tmp_path / "run", small_config(models))
    failures = bodies(ledger, "failure", "knexa")
    assert {body["agent"] for body in failures} == {"a1"}
    assert {body["verb"] for body in failures} >= {"fit", "profile"}
    assert {pair[role] for pair in bodies(ledger, "pair") for role in ("source", "receiver")} <= {"a0", "a2", "a3"}
    assert len(bodies(ledger, "pair")) == 2
    assert {body["agent"] for body in bodies(ledger, "scores")} == {"a0", "a2", "a3"}
    assert len(bodies(ledger, "done")) == 2


@pytest.mark.parametrize("verb", ["fit", "profile", "draft", "share", "accept", "learn", "grade"])
def test_an_agent_that_always_fails_in_one_verb(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def behave(original: Any, agent: Any, *args: Any) -> Any:
        if agent.name == "a2":
            raise KeyError("its private words")
        return original(agent, *args)

    spoil(monkeypatch, verb, behave)
    config = small_config(models)
    seen: list[dict[str, Any]] = []
    ledger = run(tmp_path / "run", config, lambda event, body: seen.append(body) if event == "failure" else None)
    failures = [(event.body, event.phase, event.round, event.arm) for event in ledger.events("failure")]
    cause = "KeyError (details in the agent's own log)"
    assert failures and all(body == {"agent": "a2", "verb": verb, "cause": cause} for body, *_ in failures)
    assert len({tuple(place) for _, *place in failures}) == len(failures)  # once a phase
    assert len(seen) == len(failures)
    assert len(bodies(ledger, "done")) == 2
    assert "its private words" in (tmp_path / "run" / "agents" / "a2" / "errors.log").read_text()
    assert b"its private words" not in (tmp_path / "run" / "ledger.sqlite").read_bytes()


def test_a_worker_that_is_killed_in_a_round_costs_its_agents_that_round(models: dict[str, str], tmp_path: Path) -> None:
    killed: list[int] = []

    def watch(event: str, body: dict[str, Any]) -> None:
        if event == "call" and (body["arm"], body["round"], body["verb"]) == ("knexa", 1, "profile") and not killed:
            killed.append(workers()[0])
            os.kill(killed[0], 9)

    ledger = run(tmp_path / "run", small_config(models, engine={"workers": 2}), watch)
    failures = [event for event in ledger.events("failure")]
    assert failures and {event.round for event in failures} == {1}
    assert all("process" in event.body["cause"] for event in failures)
    assert {event.round for event in ledger.events("checkpoint", "knexa")} == {1, 2}
    assert len({body["agent"] for body in bodies(ledger, "scores", "knexa")}) == 4  # all are there again
