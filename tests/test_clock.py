"""Virtual time: exact finish times, quorum and deadline, who is there; without `availability` it stands still."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_federation import Script

from peertune.clock import Availability, Clock, cost
from peertune.engines.base import Entry, Ref
from peertune.errors import AgentError
from peertune.federation import Federation
from peertune.payloads import Picks, Profile, Verdicts, encode

NAMES = ["a", "b", "c", "d"]
PROFILE = encode(Profile((0.0,) * 32))
PICKS = Picks(tuple(range(32)))


def clock(names: Sequence[str] = NAMES, seed: int = 0, **rules: Any) -> Clock:
    return Clock(names, Availability(**rules), seed)


def federation(clock: Clock, answers: int = 64) -> Federation:
    """Every call of it is answered with a profile."""
    return Federation(Script(answers=dict.fromkeys(range(answers), PROFILE)), NAMES, clock)


def slow(clock: Clock) -> list[str]:
    """Who needs more than one unit for a step."""
    clock.begin(1)
    for number, name in enumerate(NAMES):
        clock.charge(Ref(name, number, "fit"), [1])
    found = [name for name in NAMES if clock.free(name) > 1]
    clock.restore(None)
    return found


# How long work takes


def test_what_calls_cost() -> None:
    assert cost("fit", [8]) == 8.0
    assert cost("learn", [0.25, 24, 1e9, 1]) == 48.0
    assert cost("draft", [PICKS, 0.0, 0, 1]) == 2.0
    for verb in ("profile", "share", "accept", "inspect", "grade", "checkpoint", "adapter"):
        assert cost(verb, [PICKS]) == 0.0


def test_a_call_begins_when_its_agent_is_free_and_its_arguments_are_there() -> None:
    time = clock(stragglers=0.25, slowdown=10.0)
    (straggler,) = slow(time)
    quick, other, *_ = [name for name in NAMES if name != straggler]
    assert time.begin(1) == NAMES
    time.charge(Ref(straggler, 0, "fit"), [2])  # 0 .. 20
    time.charge(Ref(quick, 1, "fit"), [3])  # 0 .. 3
    time.charge(Ref(straggler, 2, "share"), [PICKS])  # at 20
    time.charge(Ref(quick, 3, "accept"), [PICKS, Ref(straggler, 2, "share"), 1])  # at 20: waits for the texts
    time.charge(Ref(quick, 4, "learn"), [0.5, 4, 1e9, 1])  # 20 .. 28
    time.charge(Ref(other, 5, "draft"), [PICKS, 0.0, 0, 1])  # 0 .. 2
    finishes = [time.finish(Ref("", number, "")) for number in range(6)]
    assert finishes == [20.0, 3.0, 20.0, 20.0, 28.0, 2.0]
    assert (time.free(straggler), time.free(quick), time.free(other), time.now) == (20.0, 28.0, 2.0, 0.0)
    assert time.wait([Ref("", 1, ""), Ref("", 5, "")]) == {Ref("", 1, ""), Ref("", 5, "")}
    assert time.now == 3.0
    time.charge(Ref(other, 6, "fit"), [1])  # nobody is asked before the coordinator asks: 3 .. 4
    assert time.free(other) == 4.0


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_stragglers_are_a_share_drawn_by_the_seed(share: float, count: int) -> None:
    drawn = [tuple(slow(clock(seed=seed, stragglers=share))) for seed in range(20)]
    assert {len(names) for names in drawn} == {count}
    assert drawn == [tuple(slow(clock(seed=seed, stragglers=share))) for seed in range(20)]
    assert len(set(drawn)) > 1 or count in (0, 4)


# When a round closes


@pytest.mark.parametrize(
    ("quorum", "deadline", "closes"),
    [(1.0, None, 40.0), (0.75, None, 3.0), (0.7, None, 3.0), (0.5, None, 2.0), (0.01, None, 1.0), (1.0, 2.5, 2.5),
     (0.25, 2.5, 1.0)],
)  # fmt: skip
def test_a_round_closes_at_the_quorum_or_the_deadline(quorum: float, deadline: float | None, closes: float) -> None:
    time = clock(quorum=quorum, deadline=deadline)
    fed = federation(time)
    fed.begin_round(1)
    steps = dict(zip(NAMES, (1, 2, 3, 40), strict=True))
    refs = {}
    for name in NAMES:
        fed[name].fit(steps[name])
        refs[name] = fed[name].profile()
    assert set(fed.reports(refs)) == set(NAMES)  # also those that come later
    assert fed.now == closes
    assert [fed.free(name) for name in NAMES] == [1.0, 2.0, 3.0, 40.0]
    (entry,) = [row for row in fed.end_round().rows if row.kind == "clock"]
    busy = [name for name in NAMES if steps[name] > closes]
    assert entry.body == {"start": 0.0, "end": closes, "absent": {}, "missed": [], "busy": busy}


def test_a_round_without_reports_closes_on_the_work_of_its_agents() -> None:
    time = clock(quorum=0.5)
    fed = federation(time)
    fed.begin_round(1)
    for steps, agent in enumerate(fed.agents, start=1):
        agent.fit(steps)
    fed.end_round()
    assert (fed.now, time.state) == (2.0, [2.0, 1.0, 2.0, 3.0, 4.0])
    fed.begin_round(2)
    assert [agent.name for agent in fed.agents] == ["a", "b"]  # the others are still at work
    assert [agent.name for agent in fed.everyone] == NAMES


def test_an_answer_that_misses_the_deadline_is_left_out_and_is_no_failure() -> None:
    time = clock(deadline=2.0)
    fed = federation(time)
    fed.begin_round(1)
    fed["a"].fit(1)
    fed["b"].fit(3)
    assert set(fed.gather({"a": fed["a"].profile(), "b": fed["b"].profile()})) == {"a"}
    assert fed.now == 2.0 and not fed.failed
    with pytest.raises(AgentError, match=r"^b\.profile failed: its answer had not come at the deadline of the round"):
        fed.fetch(fed["b"].profile())
    rows = fed.end_round().rows
    assert [row.kind for row in rows if row.kind != "transfer"] == ["clock"]
    assert rows[-1].body == {"start": 0.0, "end": 2.0, "absent": {}, "missed": ["b"], "busy": ["b"]}
    assert sum(row.body.get("source") == "b" for row in rows) == 0  # nobody saw it


def test_when_all_are_at_work_the_round_begins_with_the_first_that_is_free() -> None:
    time = clock(["a", "b"], quorum=0.5)
    time.begin(1)
    time.charge(Ref("a", 0, "fit"), [5])
    time.charge(Ref("b", 1, "fit"), [9])
    time.close_on([1.0])
    time.end()
    assert (time.begin(2), time.now) == (["a"], 5.0)
    assert time.end() == {"start": 5.0, "end": 5.0, "absent": {"b": "at work"}, "missed": [], "busy": ["b"]}


# Who is there


def test_agents_join_leave_and_return() -> None:
    time = clock(present={"b": [(3, None)], "c": [(1, 1), (4, 5)], "d": []})
    there = ["".join(time.begin(t)) for t in range(1, 8)]
    assert there == ["ac", "a", "ab", "abc", "abc", "ab", "ab"]
    time.begin(2)
    body = time.end()
    assert body and body["absent"] == {"b": "away", "c": "away", "d": "away"}


def test_nobody_is_there() -> None:
    time = clock(present=dict.fromkeys(NAMES, ()))
    assert time.begin(1) == []
    assert time.wait([]) == set()
    body = time.end()
    assert body and (body["start"], body["end"], set(body["absent"])) == (0.0, 0.0, set(NAMES))


def test_dropouts_are_a_function_of_seed_round_and_agent() -> None:
    def present(seed: int, names: Sequence[str] = NAMES) -> list[list[str]]:
        time = clock(names, seed, dropout=0.3)
        return [time.begin(t) for t in range(1, 201)]

    assert present(0) == present(0) != present(1)
    fewer = [[name for name in there if name != "d"] for there in present(0)]
    assert fewer == present(0, NAMES[:3])  # one more agent changes nobody else's fate
    time = clock(dropout=0.3)
    assert time.begin(117) == present(0)[116]  # nor do the rounds before
    for level in (0.1, 0.3, 0.5):
        time = clock([f"a{row}" for row in range(50)], dropout=level)
        missing = sum(50 - len(time.begin(t)) for t in range(1, 101))
        assert abs(missing / 5000 - level) < 0.02
    higher, lower = clock(dropout=0.5), clock(dropout=0.1)
    assert all(set(higher.begin(t)) <= set(lower.begin(t)) for t in range(1, 101))  # levels are nested


# A value that can be saved


@settings(derandomize=True)
@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), max_size=30),
    quorum=st.floats(0.1, 1.0),
    deadline=st.none() | st.floats(0.5, 60.0),
    seed=st.integers(0, 5),
)
def test_a_restored_clock_goes_on_as_if_it_had_not_stopped(
    steps: list[tuple[int, int]], quorum: float, deadline: float | None, seed: int
) -> None:
    rules: dict[str, Any] = {"quorum": quorum, "deadline": deadline, "stragglers": 0.5, "dropout": 0.2}
    whole = clock(seed=seed, **rules)
    last = 0.0
    for t in range(1, 6):
        resumed = clock(seed=seed, **rules)
        resumed.restore(whole.state)
        bodies = [play(each, t, steps) for each in (whole, resumed)]
        assert bodies[0] == bodies[1] and whole.state == resumed.state
        assert bodies[0]["start"] >= last and bodies[0]["end"] >= bodies[0]["start"]  # time never runs back
        last = bodies[0]["end"]


def play(time: Clock, t: int, steps: list[tuple[int, int]]) -> dict[str, Any]:
    there = time.begin(t)
    calls = [(Ref(there[row % len(there)], number, "fit"), count) for number, (row, count) in enumerate(steps) if there]
    for ref, count in calls:
        time.charge(ref, [count])
    time.wait([ref for ref, _ in calls[::2]])
    time.close_on([time.finish(ref) for ref, _ in calls])
    body = time.end()
    assert body is not None
    return body


# Without `availability`


def test_time_stands_still_without_availability() -> None:
    fed = Federation(Script(answers={1: PROFILE, 3: PROFILE}), NAMES)
    fed.begin_round(1)
    assert fed.agents == fed.everyone
    fed["a"].fit(100)
    assert set(fed.gather({"a": fed["a"].profile()})) == {"a"}
    fed["b"].fit(7)
    assert set(fed.reports({"b": fed["b"].profile()})) == {"b"}
    assert (fed.now, fed.free("a"), fed.clock.state) == (0.0, 0.0, None)
    assert {row.kind for row in fed.end_round().rows} == {"transfer"}


def test_between_rounds_everybody_is_there_and_no_time_passes() -> None:
    time = clock(present={"a": []})
    fed = federation(time)
    fed["a"].fit(100)
    assert fed.fetch(fed["a"].profile()) is not None
    assert (fed.now, [agent.name for agent in fed.agents]) == (0.0, NAMES)
    fed.begin_round(1)
    assert [agent.name for agent in fed.agents] == NAMES[1:]
    fed.end_round()
    assert [agent.name for agent in fed.agents] == NAMES


def test_the_clocks_row_is_the_last_of_its_round() -> None:
    fed = Federation(
        Script(rows={0: [Entry("metric", {"value": 1})]}, answers={1: encode(Verdicts((1,)))}), NAMES, clock()
    )
    fed.begin_round(1)
    fed["a"].fit(2)
    fed.fetch(fed["a"].inspect(Picks((0,)), Ref("a", 0, "fit")))
    assert [row.kind for row in fed.end_round().rows][-1] == "clock"
    assert [row.kind for row in fed.end_round().rows if row.kind == "clock"] == []  # once a round
