"""Rounds that close without who is slow, hung or gone: on the embedded engine's processes, and at sites."""

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from asynchrony_parts import RUN, SET, equal
from contract import failures, transfers
from held import FOUR, Yard
from held_runs import true_sites
from small import bodies, make_models, run, small_config
from toy import FIRST, PATH_HERE, fault

from peertune.assemble import Spec
from peertune.config.schema import Config
from peertune.engines.local import Listener, LocalEngine
from peertune.experiment import Experiment, Interrupted
from peertune.federation import Federation, RoundLog
from peertune.ledger import Ledger
from peertune.machine import seating
from peertune.matchmakers.base import Pair
from peertune.matchmakers.linucb import LinUCB
from peertune.methods import Knexa
from peertune.methods.base import State
from peertune.payloads import Picks, Profile, Verdicts
from peertune.realtime import Asynchrony, RealClock
from peertune.report.tables import result_tables

PICKS = Picks((1, 2))
Start = Callable[..., tuple[Yard, Federation]]


@pytest.fixture(params=["local", "sites"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Starts four agents and a federation of them, and ends them."""
    yards: list[Yard] = []

    def begin(rounds: int = 9, deadline: float = 60.0, patience: float = 60.0, **rules: Any) -> tuple[Yard, Federation]:
        yards.append(Yard(tmp_path, request.param, deadline, patience))
        clock = RealClock(FOUR, yards[-1].engine, Asynchrony(**rules), rounds)
        return yards[-1], Federation(yards[-1].engine, FOUR, clock)

    yield begin
    for yard in yards:
        yard.close()


def clock_of(log: RoundLog) -> dict[str, Any]:
    (body,) = [row.body for row in log.rows if row.kind == "clock"]
    assert body["unit"] == "s" and 0 <= body["start"] <= body["end"]
    return {key: body[key] for key in ("absent", "missed", "busy")}


def lessons(fed: Federation, t: int) -> dict[str, Any]:
    """A round in which all who are there learn: who has reported."""
    fed.begin_round(t)
    return fed.reports({agent.name: agent.learn(0.5, 1) for agent in fed.agents}, {name: name for name in FOUR})


def back(fed: Federation, t: int) -> list[str]:
    """Who is back at round `t`, waiting for the news."""
    end = time.monotonic() + 20
    while not (found := fed.rejoin(t)) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def test_a_round_closes_at_its_quorum_and_the_late_report_comes_in_a_later_one(start: Start) -> None:
    yard, fed = start(rounds=3, quorum=0.75)
    yard.hold("a1", "learn")
    assert set(lessons(fed, 1)) == {"a0", "a2", "a3"}
    log = fed.end_round()
    assert clock_of(log) == {"absent": {}, "missed": ["a1"], "busy": ["a1"]}
    assert ("a1", "coordinator") not in [row[:2] for row in transfers(log)]
    assert [agent.name for agent in fed.agents] == ["a0", "a2", "a3"] and list(fed.busy) == ["a1"]

    assert fed.rejoin(2) == [] and fed.late() == []  # the next round has the others only
    assert set(lessons(fed, 2)) == {"a0", "a2", "a3"}
    assert clock_of(fed.end_round()) == {"absent": {"a1": "at work"}, "missed": [], "busy": ["a1"]}
    assert yard.trace("a1") == []

    yard.release("a1", "learn")
    assert fed.rejoin(3) == ["a1"]
    log = fed.end_round()  # what it did is told now, once
    assert [row[:3] for row in transfers(log)] == [("a1", "coordinator", "gain")]
    (late,) = fed.late()
    assert (late.agent, late.agreed, late.about, late.report.kept) == ("a1", 1, "a1", True)
    assert fed.late() == [] and yard.trace("a1") == ["learn"]
    assert set(lessons(fed, 3)) == set(FOUR)
    assert clock_of(fed.end_round()) == {"absent": {}, "missed": [], "busy": []}


def test_a_wait_goes_on_after_the_timeout_and_nobody_waits_twice_for_the_same(start: Start) -> None:
    yard, fed = start(timeout=0.6)
    yard.hold("a0", "profile")
    fed.begin_round(1)
    began = time.monotonic()
    found = fed.gather({agent.name: agent.profile() for agent in fed.agents})
    assert set(found) == {"a1", "a2", "a3"} and 0.6 <= time.monotonic() - began < 5.0
    began = time.monotonic()
    assert set(fed.reports({agent.name: agent.learn(0.5, 1) for agent in fed.agents})) == {"a1", "a2", "a3"}
    assert time.monotonic() - began < 0.6
    log = fed.end_round()
    assert clock_of(log) == {"absent": {}, "missed": ["a0"], "busy": ["a0"]} and not failures(log)
    yard.release("a0", "profile")
    assert back(fed, 2) == ["a0"]
    assert [row[2] for row in transfers(fed.end_round())] == ["gain"]  # nobody wants the profile any more
    assert [late.agent for late in fed.late()] == ["a0"] and yard.trace("a0") == ["profile", "learn"]


def test_without_reports_a_round_closes_on_the_work_of_its_agents(start: Start) -> None:
    yard, fed = start(quorum=0.5)
    for name in ("a1", "a2"):
        yard.hold(name, "fit")
    fed.begin_round(1)
    for agent in fed.agents:
        agent.fit(1)
    assert clock_of(fed.end_round()) == {"absent": {}, "missed": ["a1", "a2"], "busy": ["a1", "a2"]}
    for name in ("a1", "a2"):
        yard.release(name, "fit")


def test_the_last_round_waits_for_everybody_and_one_with_nobody_for_the_first(start: Start) -> None:
    yard, fed = start(rounds=3, quorum=0.25, timeout=0.4)
    for name in FOUR:
        yard.hold(name, "learn")
    assert lessons(fed, 1) == {}
    assert clock_of(fed.end_round())["busy"] == list(FOUR) and fed.agents == []
    yard.release("a2", "learn")
    assert fed.rejoin(2) == ["a2"]  # waits
    fed.end_round()
    assert set(lessons(fed, 2)) == {"a2"}
    fed.end_round()
    for name in ("a0", "a1", "a3"):
        yard.release(name, "learn")
    assert fed.rejoin(3) == ["a0", "a1", "a3"]
    fed.end_round()
    assert [late.agent for late in fed.late()] == ["a2", "a0", "a1", "a3"]
    assert set(lessons(fed, 3)) == set(FOUR)
    assert clock_of(fed.end_round()) == {"absent": {}, "missed": [], "busy": []}


def test_a_hung_agent_is_a_failure_after_the_deadline_and_there_again(start: Start) -> None:
    yard, fed = start(deadline=2.0, quorum=0.75)
    fed.begin_round(1)
    calls = {agent.name: agent.share(fault("hang") if agent.name == "a3" else PICKS) for agent in fed.agents}
    assert set(fed.clock.close(calls.values())) == {ref for name, ref in calls.items() if name != "a3"}
    log = fed.end_round()
    assert clock_of(log)["busy"] == ["a3"] and not failures(log) and not log.lost
    assert back(fed, 2) == ["a3"]
    log = fed.end_round()
    assert failures(log) == [("a3", "share", "no answer within 2 s; its process was stopped")] and log.lost == ["a3"]
    fed["a3"].restore(FIRST)
    assert isinstance(fed.fetch(fed["a3"].profile()), Profile)


def test_an_agent_that_died_at_work_is_a_failure_and_there_again(start: Start) -> None:
    yard, fed = start(timeout=0.5)
    yard.hold("a3", "share")
    fed.begin_round(1)
    assert set(fed.gather({agent.name: agent.share(fault("kill")) if agent.name == "a3" else agent.profile()
                           for agent in fed.agents})) == {"a0", "a1", "a2"}  # fmt: skip
    assert clock_of(fed.end_round())["busy"] == ["a3"]
    yard.release("a3", "share")
    assert back(fed, 2) == ["a3"]
    log = fed.end_round()
    assert [row[:2] for row in failures(log)] == [("a3", "share")] and log.lost == ["a3"]
    assert isinstance(fed.fetch(fed["a3"].profile()), Profile)


def test_who_waits_for_a_slow_agents_answer_goes_on_without_it(start: Start) -> None:
    """The receiver is not late because its source is."""
    yard, fed = start(timeout=1.5, patience=0.5)
    yard.hold("a0", "share")
    fed.begin_round(1)
    verdicts = fed.gather(
        {name: fed[name].accept(PICKS, fed[source].share(PICKS)) for name, source in (("a1", "a0"), ("a2", "a3"))}
    )
    assert set(verdicts) == {"a2"} and isinstance(verdicts["a2"], Verdicts) and fed.failed == {"a0"}
    assert set(fed.reports({"a1": fed["a1"].learn(0.5, 1)})) == {"a1"}
    log = fed.end_round()
    assert clock_of(log) == {"absent": {}, "missed": ["a0"], "busy": ["a0"]}
    assert failures(log)[0][:2] == ("a0", "share") and "which a1 waited for it" in failures(log)[0][2]


# What comes late is learnt from


def test_a_late_gain_updates_the_matchmaker_when_it_comes_with_the_context_that_was_scored(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    matched: list[list[Pair]] = []
    original = LinUCB.match

    def match(self: LinUCB, state: State, *args: Any) -> list[Pair]:
        matched.append(original(self, state, *args))
        return matched[-1]

    monkeypatch.setattr(LinUCB, "match", match)
    yard, fed = start(rounds=3, quorum=0.75)
    policy = LinUCB(max_students=3)
    knexa = Knexa(run=RUN, matchmaker=policy, route="set", max_pairs=4, byte_weight=0.0)
    states, rows = [knexa.init(fed)], []
    for t in (1, 2, 3):
        yard.hold("a1", "learn") if t == 1 else yard.release("a1", "learn") if t == 3 else None
        fed.rejoin(t)
        fed.end_round()
        fed.begin_round(t)
        states.append(knexa.round(states[-1], fed, t))
        rows.append([row for row in fed.end_round().rows if row.kind in ("pair", "late")])
    told = [{row.body["receiver"]: row.body for row in each if row.kind == "pair"} for each in rows]
    (late,) = [row.body for each in rows for row in each if row.kind == "late"]
    assert [set(each) for each in told] == [{"a0", "a2", "a3"}, {"a0", "a2", "a3"}, set(FOUR)]
    (waiting,) = [pair for pair in matched[0] if pair.receiver == "a1"]
    assert (late["agreed"], late["source"], late["receiver"]) == (1, waiting.source, "a1")

    expected = policy.init(0)
    for t, reports in enumerate(told):
        pairs = [(waiting, late["reward"])] if t == 2 else []  # it came before the pairs of round 3
        pairs += [(pair, reports[pair.receiver]["reward"]) for pair in matched[t] if pair.receiver in reports]
        for pair, reward in pairs:
            expected = policy.update(expected, pair, reward)
        assert equal({key: states[t + 1][f"matchmaker/{key}"] for key in expected}, expected)
        assert not [key for key in states[t + 1] if key.startswith("book/")]


@pytest.mark.parametrize("route", ["prompt", "set"])
def test_late_lessons_stand_in_the_ledger_with_the_round_that_they_are_of(start: Start, route: Any) -> None:
    yard, fed = start(rounds=2, quorum=0.75)
    knexa = Knexa(run=RUN, matchmaker=LinUCB(max_students=3), route=route, max_pairs=4, byte_weight=0.0)
    state = knexa.init(fed)
    for t in (1, 2):
        yard.hold("a1", "learn") if t == 1 else yard.release("a1", "learn")
        fed.rejoin(t)
        fed.end_round()
        fed.begin_round(t)
        state = knexa.round(state, fed, t)
        log = fed.end_round()
        mine = [row.body for row in log.rows if row.kind == "pair" and row.body["receiver"] == "a1"]
        assert not mine if t == 1 else {body.get("agreed") for body in mine} == {1, None}


# True runs


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return make_models(tmp_path_factory.mktemp("models"))


def config(models: dict[str, str], **changes: Any) -> Config:
    sections = {"method": SET | {"max_pairs": 2}, "rounds": 4, "engine": {"workers": "auto"}}
    return small_config(models, "llama gpt2", **sections | {"asynchrony": {"quorum": 0.5}} | changes)


def held(experiment: Experiment, gates: Path) -> Experiment:
    def begin(config: Config, folder: Path, listener: Listener) -> LocalEngine:
        groups, environments = seating(config)
        assert groups == [["a1"], ["a0"]]  # one each, by model
        environments = [each | PATH_HERE | {"GATES": str(gates)} for each in environments]
        spec = msgspec.json.encode(Spec(config.model_dump_json(), str(folder)))
        return LocalEngine("held_runs:build_true", spec, groups, environments=environments, listener=listener)

    experiment.start = begin
    return experiment


def test_a_run_goes_on_without_a_slow_agent_is_stopped_meanwhile_and_takes_it_back(
    models: dict[str, str], tmp_path: Path
) -> None:
    """a1 is at work when the run is stopped after round 1. Then it is slow from its lesson of round 2 to the beginning
    of round 4. (Four starts of true agents take their time.)
    """
    gate = tmp_path / "a1.learn"

    def watch(event: str, body: dict[str, Any]) -> None:
        match event, body.get("arm"), body.get("round"):
            case "begin", "knexa", 1 | 2:
                gate.touch()
            case "round", "knexa", 1:
                experiment.request_stop()
            case "begin", "knexa", 4:
                gate.unlink()

    experiment = held(Experiment.create(tmp_path / "run", config(models), watch), tmp_path)
    with pytest.raises(Interrupted):
        experiment.run()
    gate.unlink()
    held(Experiment.reopen(tmp_path / "run", watch), tmp_path).run()
    ledger = Ledger.read(tmp_path / "run" / "ledger.sqlite")
    ledger.verify()
    times = [(event.body["start"], event.body["end"]) for event in ledger.events("clock")]
    assert sorted(times) == times and all(end <= start for (_, end), (start, _) in pairwise(times))
    rounds = [(event.body["absent"], event.body["busy"]) for event in ledger.events("clock")]
    assert rounds == [({}, ["a1"]), ({}, ["a1"]), ({"a1": "at work"}, ["a1"]), ({}, [])]
    first, *states, last = [event.body["agents"]["a1"] for event in ledger.events("checkpoint")]
    assert states == [first] * 3 and last != first  # the warm start's, until it was done
    (late,) = [(event.round, event.body["agreed"], event.body["receiver"]) for event in ledger.events("late")]
    assert late == (4, 2, "a1")  # the lesson of round 1 never was
    told = [(each.round, each.body.get("agreed")) for each in ledger.events("pair") if each.body["receiver"] == "a1"]
    assert told == [(4, 2), (4, None)]
    graded = [(event.round, event.body["agent"]) for event in ledger.events("scores", "knexa")]
    assert graded == [(2, "a0"), (4, "a0"), (4, "a1")] and bodies(ledger, "failure") == []
    table = {table.title: table for table in result_tables(ledger)}["Rounds in real time"]
    assert [row[7] for row in table.rows] == ["–", "–", "–", "a1"]


def test_a_run_goes_on_without_a_site_that_is_out_of_reach_until_the_last_round(
    models: dict[str, str], tmp_path: Path
) -> None:
    cut: set[str] = set()

    def watch(event: str, body: dict[str, Any]) -> None:
        match event, body.get("arm"), body.get("round"):
            case "begin", "knexa", 2:
                cut.add("a1")
            case "begin", "knexa", 4:
                cut.clear()

    experiment = Experiment.create(tmp_path / "run", config(models, asynchrony={"timeout": 60}), watch)
    experiment.start = lambda config, folder, listener: true_sites(config, folder, cut)
    experiment.run()
    ledger = Ledger.read(tmp_path / "run" / "ledger.sqlite")
    assert [event.body["absent"] for event in ledger.events("clock")] == [{}, {}, {"a1": "out of reach"}, {}]
    assert {(event.round, event.body["agent"]) for event in ledger.events("failure")} == {(2, "a1")}
    states = [event.body["agents"]["a1"] for event in ledger.events("checkpoint")]
    assert states[0] != states[1] == states[2] == states[3] != states[4]
    assert "a1" in {event.body["receiver"] for event in ledger.events("pair") if event.round == 4}


def test_rules_that_let_nobody_be_late_change_nothing(models: dict[str, str], tmp_path: Path) -> None:
    method = SET | {"max_pairs": 2}
    without = run(tmp_path / "a", small_config(models, "llama gpt2", method=method))
    engine = {"workers": 2}
    trivial = run(tmp_path / "b", small_config(models, "llama gpt2", method=method, engine=engine, asynchrony={}))
    one, other = ([event for event in ledger.events() if event.kind != "run"] for ledger in (without, trivial))
    assert [(each.kind, each.round, each.body) for each in one] == [
        (each.kind, each.round, each.body) for each in other
    ]
    assert "asynchrony" not in bodies(without, "run")[0]["config"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"availability": {"dropout": 0.1}}, "asynchrony is in real time, availability in virtual time"),
        ({"engine": {"workers": 1}}, "asynchrony needs a process for each of 2 parties"),
        ({"engine": {"workers": 0}}, "and engine.workers is 0; remove it"),
        ({"asynchrony": {"timeout": 600}}, "asynchrony.timeout is 600 s, but a call is stopped after engine.deadline"),
        ({"asynchrony": {"quorum": 0.0}}, "greater than 0"),
        ({"asynchrony": {"timeout": 0}}, "greater than 0"),
    ],
)
def test_rules_that_cannot_be(models: dict[str, str], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(models, **changes)


def test_methods_whose_parties_wait_for_each_other_are_refused(models: dict[str, str]) -> None:
    agents = [{"model": models["llama"], "release": {"records": "agents"}} for _ in range(2)]
    with pytest.raises(ValueError, match="pooled: the parties of centralised wait for each other within a round"):
        config(models, agents=agents, baselines={"pooled": "centralised"})
