"""Rounds of KNEXA-FL in which agents fail, answer what cannot be, or after which the run is stopped."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from knexa_parts import FLUENT, LIAR, Build, bodies, builder, failures, moved, with_bases
from safetensors.numpy import load, save
from sums import right, run_of
from tiny import make_tiny_model

from peertune.agent import Agent
from peertune.errors import MethodError
from peertune.matchmakers import LinUCB, Uniform
from peertune.matchmakers.router import Router
from peertune.methods import Knexa
from peertune.payloads import Change, Claims, Gain, Receipt, Texts, Verdicts, Weights


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama"))


@pytest.fixture
def build(source: str, tmp_path: Path) -> Build:
    return builder(source, tmp_path)


# Agents that fail


def broken(agent: Agent, verb: str, answer: Any) -> None:
    def fail(*args: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    setattr(agent, verb, fail)


@pytest.mark.parametrize("route", ["set", "prompt"])
@pytest.mark.parametrize("verb", ["fit", "draft", "share", "accept", "inspect", "learn", "profile"])
def test_a_failing_agent_costs_its_own_exchanges_only(build: Build, route: Any, verb: str) -> None:
    group = build(route=route, tested=False)
    broken(group.agents["b"], verb, RuntimeError("its private words"))
    for _ in range(2):
        log = group.play()
        assert failures(log) <= {("b", verb)}
        assert "private words" not in str(log)
        if verb in ("draft", "profile") and (verb, route) != ("profile", "prompt"):
            assert not [row for row in bodies(log, "pair") if "b" in (row["source"], row["receiver"])]
    receivers = {row["receiver"] for row in bodies(log, "pair")}
    assert receivers - {"b"}  # the others went on


WRONG_SIZES = [
    ("draft", Claims((1,), (1,), (0,))),
    ("draft", Claims((), (), ())),
    ("draft", Claims((1,) * 99, (1,) * 99, (0,) * 99)),
    ("accept", Verdicts(())),
    ("accept", Verdicts((1,) * 99)),
    ("inspect", Verdicts((1,) * 99)),
    ("share", Texts(())),
    ("share", Texts(("x",) * 99)),
]


@pytest.mark.parametrize("route", ["set", "prompt"])
@pytest.mark.parametrize(("verb", "answer"), WRONG_SIZES)
def test_an_answer_of_the_wrong_size_costs_its_exchange(build: Build, route: Any, verb: str, answer: Any) -> None:
    group = build(route=route, tested=False, keep_best=False)
    broken(group.agents["b"], verb, answer)
    log = group.play()
    assert failures(log) <= {("b", verb)}
    assert {row["receiver"] for row in bodies(log, "pair")} - {"b"}


@pytest.mark.parametrize("answer", [RuntimeError(), Texts(("x",) * 99)])
def test_a_source_that_fails_is_trusted_less(build: Build, answer: Any) -> None:
    group = build(tested=False)
    broken(group.agents["b"], "share", answer)
    group.play()
    good, bad = group.state["evidence/counts"].T
    assert good[1] == 0 and bad[1] > 0
    assert bad[[0, 2, 3]].sum() == 0


def test_the_second_source_is_asked_when_the_first_does_not_answer(build: Build) -> None:
    skills = {"a": {}, "b": right(1), "c": right(1)}
    group = build(skills, router=Router(explore=False, floor=0.0), retries=1, audit=0)
    broken(group.agents["b"], "share", RuntimeError())
    log = group.play()
    assert moved(log, "texts") == [("c", "a")] and group.lessons()["a"] == {0: "2"}


@pytest.mark.parametrize(("retries", "known"), [(0, {}), (1, {0: "2"})])
def test_retries_bound_the_sources_of_a_prompt(build: Build, retries: int, known: dict[int, str]) -> None:
    """The liar, which is believed first, spoils the only pull."""
    skills = {"a": {}, "b": right(1), "d": right(1, 2, 3, 4)}
    group = build(skills, LIAR, router=Router(explore=False, floor=0.0), retries=retries, audit=0)
    group.play()
    assert group.lessons()["a"] == known


@pytest.mark.parametrize("route", ["set", "prompt"])
def test_a_gain_whose_error_is_next_to_nothing_can_be_recorded(build: Build, route: Any) -> None:
    """1e9 / 1e-310 is beyond what a number can hold, and the ledger holds numbers only."""
    group = build(route=route, tested=False)
    gain = Gain(Change(1e9, 0.0, 1e-310), Change(1.0, 0.5, 0.1), 0.0, True)
    for agent in group.agents.values():
        broken(agent, "learn", gain)
    rows = bodies(group.play(), "pair")
    assert rows and json.dumps(rows, allow_nan=False)
    assert {(row["signal_to_noise"], row["probe_signal_to_noise"]) for row in rows} == {(None, 5.0)}


def test_an_adapter_that_fits_nobody_costs_its_source_trust(build: Build) -> None:
    group = with_bases(build(route="set", protocols=("adapter",), matchmaker=Uniform()), "xxxx")
    for agent in group.agents.values():
        broken(agent, "adapter", Weights({"x": np.zeros(1, np.float32)}, 1))
    log = group.play()
    sources = {source for source, _ in moved(log, "weights")}
    assert failures(log) == {(source, "adapter") for source in sources}
    good, bad = group.state["evidence/counts"].T
    assert good.sum() == 0 and {name for name, count in zip("abcd", bad, strict=True) if count} == sources


def test_agents_that_all_fail_leave_a_round_without_exchanges(build: Build) -> None:
    for route in ("set", "prompt"):
        group = build(route=route, folder=route)
        for agent in group.agents.values():
            broken(agent, "draft", RuntimeError())
        assert bodies(group.play(), "pair") == []


# The state


@pytest.mark.parametrize("route", ["set", "prompt"])
def test_a_run_that_was_stopped_goes_on_the_same(build: Build, route: Any) -> None:
    """Agents from their checkpoints, lessons with them; the method's state through its file."""
    options: dict[str, Any] = {"route": route, "tested": False, "audit": 1}
    whole, half, rest = (build(FLUENT, LIAR, folder=name, **options) for name in ("whole", "same", "same"))
    logs = [whole.play() for _ in range(4)]
    for expected in logs[:2]:
        assert half.play().rows == expected.rows
    receipts = {agent.name: half.fed.fetch(agent.checkpoint(Texts(()))) for agent in half.fed.agents}
    for name, receipt in receipts.items():
        assert isinstance(receipt, Receipt)
        rest.fed[name].restore(receipt)
    rest.fed.end_round()
    rest.state, rest.t = load(save({key: np.asarray(array) for key, array in half.state.items()})), 2
    for expected in logs[2:]:
        assert rest.play().rows == expected.rows
    assert rest.lessons() == whole.lessons()


def test_a_failed_lesson_shows_no_less_in_a_run_that_was_stopped(build: Build) -> None:
    options: dict[str, Any] = {"tested": False, "audit": 0}
    whole, rest = (build(folder=name, **options) for name in ("same", "same"))
    broken(whole.agents["a"], "learn", RuntimeError())
    whole.play()
    del whole.agents["a"].learn
    for agent in whole.fed.agents:
        receipt = whole.fed.fetch(agent.checkpoint(Texts(())))
        assert isinstance(receipt, Receipt)
        rest.fed[agent.name].restore(receipt)
    for group in (whole, rest):
        group.fed.end_round()
    rest.state, rest.t = whole.state, 1
    assert rest.play().rows == whole.play().rows


@pytest.mark.parametrize(("names", "transfer", "message"), [(1, 1, "at least 2 agents, found 1"), (2, 0, "public")])
def test_what_cannot_be_is_refused(names: int, transfer: int, message: str) -> None:
    run = run_of()
    method = Knexa(run=replace(run, transfer=run.transfer[:transfer]), matchmaker=LinUCB())
    with pytest.raises(MethodError, match=message):
        method.check([{}] * names)
