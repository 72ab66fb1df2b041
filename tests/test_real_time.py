"""Rounds that close without who is slow, hung or gone: on the embedded engine's processes, and at sites."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contract import failures, transfers
from held import FOUR, Yard
from toy import FIRST, fault

from peertune.clock import Asynchrony, RealClock
from peertune.federation import Federation, RoundLog
from peertune.payloads import Picks, Profile, Verdicts

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
