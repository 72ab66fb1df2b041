"""What every engine must do, whoever carries the calls.

A module with a fixture `running` (an engine of toy agents, their folder, and who shares a process with whom) is held to
it by `from contract import *`.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import DEADLY, FAULTS, FIRST, INVALID, NAMES, QUIET, SECRET, fault

from peertune.engines.base import Engine, Ref
from peertune.errors import AgentError
from peertune.federation import Federation, RoundLog
from peertune.payloads import Picks, Profile, Texts, Verdicts, encode

PICKS = Picks((1, 2))
FIT = {"a0": 3.9, "a1": 4.8, "a2": 5.7, "a3": 6.6}  # 0.9 * (place + 1) + 3
DRAFTED = {name: value + 0.5 for name, value in FIT.items()}  # a draft moves its author by the temperature


class Bench:
    """One running engine, the agents in their first state, and the traces they leave."""

    def __init__(self, engine: Engine, folder: Path, groups: list[list[str]]) -> None:
        self.engine, self.folder, self.groups = engine, folder, groups
        self.fed = Federation(engine, NAMES)

    def beside(self, agent: str) -> list[str]:
        """Who lives in the process of that agent, itself included; nobody if that is the coordinator's own."""
        return next((sorted(group) for group in self.groups if agent in group), [])

    def trace(self, agent: str) -> list[str]:
        """The verbs that the agent ran since the test began."""
        path = self.folder / f"{agent}.trace"
        return [line.split()[1] for line in path.read_text().splitlines()] if path.exists() else []

    def forget(self) -> None:
        for path in self.folder.glob("*.trace"):
            path.unlink()
        for path in self.folder.glob("*/errors.log"):
            path.unlink()

    def end(self) -> RoundLog:
        return self.fed.end_round()


@pytest.fixture
def bench(running: tuple) -> Iterator[Bench]:
    bench = Bench(*running)
    bench.end()
    for agent in bench.fed.agents:
        agent.restore(FIRST)
    bench.end()
    bench.forget()
    yield bench


@pytest.fixture
def processes(bench: Bench) -> Bench:
    if not bench.groups:
        pytest.skip("agents in the coordinator's own process take it with them")
    return bench


def transfers(log: RoundLog) -> list[tuple]:
    keys = ("source", "destination", "payload", "bytes")
    return [tuple(row.body[key] for key in keys) for row in log.rows if row.kind == "transfer"]


def failures(log: RoundLog) -> list[tuple]:
    return [(row.body["agent"], row.body["verb"], row.body["cause"]) for row in log.rows if row.kind == "failure"]


def bad_fit(name: str) -> int:
    return -1 - list(FAULTS).index(name)


# Answers and rows


def test_a_round_has_the_same_answers_and_rows_on_every_engine(bench: Bench) -> None:
    fed = bench.fed
    for agent in fed.agents:
        agent.fit(3)
    profiles = fed.gather({agent.name: agent.profile() for agent in fed.agents[:4]})
    claims = fed.gather({agent.name: agent.draft(PICKS, 0.5) for agent in fed.agents[:4]})
    pairs = [("a0", "a1"), ("a2", "a3"), ("a1", "a0"), ("a3", "a2")]
    found = fed.gather({pair: fed[pair[1]].accept(PICKS, fed[pair[0]].share(PICKS)) for pair in pairs})
    gains = fed.gather({pair: fed[pair[1]].learn(0.25, 2) for pair in pairs})
    assert [profile.values[0] for profile in profiles.values()] == pytest.approx([FIT[name] for name in profiles])
    assert {name: claimed.surprise[0] / 10 for name, claimed in claims.items()} == pytest.approx(DRAFTED)
    assert [verdicts.passed for verdicts in found.values()] == [(1, 0)] * 4
    assert [gain.private.before for gain in gains.values()] == pytest.approx([DRAFTED[pair[1]] for pair in pairs])
    assert [gain.kilobytes for gain in gains.values()] == [0.026] * 4
    log = bench.end()
    texts = len(encode(Texts(("1 a0:4.400000", "2 a0:4.400000"))))
    assert [row for row in transfers(log) if row[2] == "texts" and row[0] != "coordinator"] == [
        ("a0", "a1", "texts", texts),
        ("a2", "a3", "texts", texts),
        ("a1", "a0", "texts", texts),
        ("a3", "a2", "texts", texts),
    ]
    assert [row.kind for row in log.rows[:11]] == ["transfer", "metric"] * 5 + ["transfer"]
    assert "shut" not in {row.body["agent"] for row in log.rows if row.kind == "metric"}  # its policy keeps them
    drafts, pulls, lessons = 4 * (4 + 1), 4 * (1 + 2 + 1 + 1), 4 * (4 + 1)  # arguments, then what came of them
    assert len(log.rows) == 11 + 4 + drafts + pulls + lessons


def test_nothing_runs_before_somebody_waits(bench: Bench) -> None:
    ref = bench.fed["a0"].profile()
    bench.fed["a1"].fit(1)
    assert bench.trace("a0") == bench.trace("a1") == []
    bench.fed.fetch(ref)
    assert bench.trace("a0") == ["profile"]
    bench.end()
    assert bench.trace("a1") == ["fit"]


def test_an_agent_runs_its_calls_in_the_order_of_the_text(bench: Bench) -> None:
    a0, a1 = bench.fed["a0"], bench.fed["a1"]
    first, then = a0.profile(), None
    a0.fit(5)
    a0.accept(PICKS, a1.share(PICKS))
    a0.learn(0.5, 1)
    a0.fit(0)
    then = a0.profile()
    after, before = bench.fed.fetch(then), bench.fed.fetch(first)
    assert isinstance(after, Profile) and isinstance(before, Profile) and after != before
    assert bench.trace("a0") == ["profile", "fit", "accept", "learn", "fit", "profile"]


def test_a_verb_without_an_answer_is_fetched_as_none_and_moves_nothing(bench: Bench) -> None:
    assert bench.fed.fetch(bench.fed["a0"].fit(1)) is None
    assert [row[:3] for row in transfers(bench.end())] == [("coordinator", "a0", "number")]


# References


def test_a_ref_moves_once_from_owner_to_receiver_and_is_counted_with_its_true_size(bench: Bench) -> None:
    bench.fed["a1"].accept(PICKS, bench.fed["a0"].share(PICKS))
    log = bench.end()
    moved = [row for row in transfers(log) if row[0] != "coordinator"]
    assert moved == [("a0", "a1", "texts", len(encode(Texts(("1 a0:1.000000", "2 a0:1.000000")))))]
    assert not [row for row in transfers(log) if row[1] == "coordinator"]


def test_the_coordinator_receives_what_is_fetched_and_nothing_else(bench: Bench) -> None:
    refs = [agent.profile() for agent in bench.fed.agents[:3]]
    profile = bench.fed.fetch(refs[1])
    assert isinstance(profile, Profile)
    received = [row for row in transfers(bench.end()) if row[1] == "coordinator"]
    assert received == [("a1", "coordinator", "profile", len(encode(profile)))]


def test_one_ref_twice_in_a_call(bench: Bench) -> None:
    texts = bench.fed["a0"].share(PICKS)
    with pytest.raises(AgentError, match=r"a1\.accept failed: TypeError"):  # texts are no picks
        bench.fed.fetch(bench.fed._submit("a1", "accept", (texts, texts, 0)))
    assert [row[:3] for row in transfers(bench.end()) if row[0] == "a0"] == [("a0", "a1", "texts")] * 2


def test_one_ref_for_several_receivers_and_for_one_receiver_twice(bench: Bench) -> None:
    fed = bench.fed
    texts = fed["a0"].share(PICKS)
    calls = [fed[name].accept(PICKS, texts) for name in ("a1", "a2", "a1", "a3")]
    assert all(isinstance(fed.fetch(call), Verdicts) for call in calls)
    destinations = [row[1] for row in transfers(bench.end()) if row[0] == "a0"]
    assert destinations == ["a1", "a2", "a1", "a3"]


def test_an_agents_own_answer_is_not_a_transfer_and_needs_no_permission(bench: Bench) -> None:
    a0 = bench.fed["a0"]
    before = bench.fed.fetch(a0.profile())
    a0.load(a0.adapter())  # weights are released to nobody
    after = bench.fed.fetch(a0.profile())
    assert isinstance(before, Profile) and isinstance(after, Profile)
    assert after.values[:4] == pytest.approx(before.values[:4], abs=1e-6)
    log = bench.end()
    assert not failures(log) and not [row for row in transfers(log) if row[2] == "weights"]


def test_a_ref_ends_with_its_round(bench: Bench) -> None:
    old = bench.fed["a0"].profile()
    bench.fed.fetch(old)
    bench.end()
    with pytest.raises(AgentError, match=r"a0\.profile failed: .*dropped when the round ended"):
        bench.fed.fetch(old)


def test_an_old_ref_costs_its_receiver_one_call_and_nobody_waits(bench: Bench) -> None:
    old = bench.fed["a0"].share(PICKS)
    bench.end()
    late = bench.fed["a1"].accept(PICKS, old)
    other = bench.fed["a1"].profile()
    with pytest.raises(AgentError, match=r"a0\.share failed: .*dropped when the round ended"):
        bench.fed.fetch(late)
    assert isinstance(bench.fed.fetch(other), Profile)
    assert [row[:2] for row in failures(bench.end())] == [("a0", "share")]


def test_the_barrier_runs_what_nobody_asked_for(bench: Bench) -> None:
    bench.fed["a1"].accept(PICKS, bench.fed["a0"].share(PICKS))
    bench.end()
    assert bench.trace("a0") == ["share"] and bench.trace("a1") == ["accept"]


def test_timings_stand_apart_from_the_rows(bench: Bench) -> None:
    bench.fed["a0"].fit(1)
    log = bench.end()
    (timing,) = log.timings
    assert timing.body["agent"] == "a0" and timing.body["verb"] == "fit"
    assert timing.body["seconds"] >= 0 and timing.body["cpu_seconds"] >= 0
    assert all("seconds" not in row.body for row in log.rows)


# The release policy


@pytest.mark.parametrize("verb", ["share", "adapter"])
def test_the_coordinator_does_not_get_texts_or_weights(bench: Bench, verb: str) -> None:
    args = (PICKS,) if verb == "share" else ()
    ref = getattr(bench.fed["a0"], verb)(*args)
    for _ in range(2):
        with pytest.raises(AgentError, match=rf"a0\.{verb} failed: a0 does not release \w+ to coordinator"):
            bench.fed.fetch(ref)
    assert not [row for row in transfers(bench.end()) if row[1] == "coordinator"]


def test_an_agent_does_not_get_weights_and_the_round_goes_on(bench: Bench) -> None:
    fed = bench.fed
    fed["a1"].load(fed["a0"].adapter())
    fed["a1"].fit(1)
    log = bench.end()
    cause = "a0 does not release weights to a1; see `release` in its configuration"
    assert failures(log) == [("a0", "adapter", cause)]
    assert not [row for row in transfers(log) if row[0] == "a0"]
    assert bench.trace("a1") == ["fit"]  # `load` was not even begun


def test_an_agent_that_releases_nothing(bench: Bench) -> None:
    fed = bench.fed
    assert fed.gather({"profile": fed["shut"].profile(), "grade": fed["shut"].grade()}) == {}
    fed["a0"].accept(PICKS, fed["shut"].share(PICKS))
    log = bench.end()
    assert [row[:2] for row in failures(log)] == [("shut", "profile"), ("shut", "grade"), ("shut", "share")]
    assert not [row for row in transfers(log) if row[0] == "shut"]


def test_an_agent_that_releases_everything(bench: Bench) -> None:
    fed = bench.fed
    texts = fed["open"].share(PICKS)
    assert isinstance(fed.fetch(texts), Texts)
    fed["a0"].load(fed["open"].adapter())
    log = bench.end()
    assert [row[:3] for row in transfers(log) if row[0] == "open"] == [
        ("open", "coordinator", "texts"),
        ("open", "a0", "weights"),
    ]


# Failures


@pytest.mark.parametrize("name", QUIET)
def test_a_failing_agent_costs_its_own_exchange_only(bench: Bench, name: str) -> None:
    fed = bench.fed
    bad = fed["a1"].accept(PICKS, fed["a0"].share(fault(name)))
    good = fed["a3"].accept(PICKS, fed["a2"].share(PICKS))
    gains = fed.gather({"bad": bad, "good": good})
    assert list(gains) == ["good"]
    log = bench.end()
    ((agent, verb, cause),) = failures(log)  # exactly one row, though owner, receiver and coordinator all saw it
    assert (agent, verb) == ("a0", "share") and cause and "\n" not in cause
    assert bench.trace("a1") == []
    assert not log.lost
    assert isinstance(fed.fetch(fed["a0"].profile()), Profile)  # the agent itself goes on


@pytest.mark.parametrize("name", INVALID)
def test_an_answer_that_does_not_decode_fails_at_its_receiver_and_names_its_sender(bench: Bench, name: str) -> None:
    fed = bench.fed
    with pytest.raises(AgentError, match=r"open\.share failed: its answer is not valid"):
        fed.fetch(fed["a1"].accept(PICKS, fed["open"].share(fault(name))))
    with pytest.raises(AgentError, match=r"open\.share failed: its answer is not valid"):
        fed.fetch(fed["open"].share(fault(name)))
    log = bench.end()
    assert {row[:2] for row in failures(log)} == {("open", "share")}
    assert not [row for row in transfers(log) if row[0] == "open"]


def test_private_text_in_an_exception_stays_in_the_agents_own_log(bench: Bench) -> None:
    with pytest.raises(AgentError) as caught:
        bench.fed.fetch(bench.fed["a0"].share(fault("private")))
    log = bench.end()
    assert SECRET not in str(caught.value) and SECRET not in str(log)
    assert caught.value.cause == "RuntimeError (details in the agent's own log)"
    assert SECRET in (bench.folder / "a0" / "errors.log").read_text()


def test_a_log_that_cannot_be_written_costs_no_more_than_the_log(bench: Bench) -> None:
    (bench.folder / "a2").write_text("a file where a folder should be")
    with pytest.raises(AgentError, match=r"a2\.share failed: ValueError"):
        bench.fed.fetch(bench.fed["a2"].share(fault("raise")))
    assert not bench.end().lost
    (bench.folder / "a2").unlink()


@pytest.mark.parametrize("verb", ["no_such_verb", "profile"])
def test_calls_that_an_agent_does_not_understand(bench: Bench, verb: str) -> None:
    ref = bench.fed._submit("a0", verb, (1, 2, 3))
    with pytest.raises(AgentError, match=rf"a0\.{verb} failed: \w+Error"):
        bench.fed.fetch(ref)


def test_two_failures_of_one_agent_are_two_rows(bench: Bench) -> None:
    fed = bench.fed
    fed.gather({name: fed["a0"].share(fault(name)) for name in ("raise", "own")})
    fed["a0"].fit(bad_fit("raise"))
    assert [row[1:] for row in failures(bench.end())] == [
        ("share", "ValueError (details in the agent's own log)"),
        ("share", "the loss is not a number"),
        ("fit", "ValueError (details in the agent's own log)"),
    ]


def test_an_answer_of_the_wrong_kind_fails_its_own_call(bench: Bench) -> None:
    """A well-formed payload that is not what the verb answers would otherwise break the method."""
    with pytest.raises(AgentError, match=r"a0\.profile failed: .* expected profile, found scores"):
        bench.fed.fetch(Ref("a0", bench.fed["a0"].grade().id, "profile"))
    with pytest.raises(AgentError, match=r"a0\.profile failed: .* expected profile, found nothing"):
        bench.fed.fetch(Ref("a0", bench.fed["a0"].fit(1).id, "profile"))


# Workers that die or hang


@pytest.mark.parametrize("name", DEADLY)
def test_a_dying_worker_is_an_error_and_not_a_hang(processes: Bench, name: str) -> None:
    fed = processes.fed
    kept = fed.fetch(fed["a0"].profile())
    fed["a0"].fit(7)
    with pytest.raises(AgentError, match=r"a0\.share failed: its process ended unexpectedly"):
        fed.fetch(fed["a0"].share(fault(name)))
    with pytest.raises(AgentError, match=r"a0\.profile failed: its process was lost earlier in this round"):
        fed.fetch(fed["a0"].profile())
    log = processes.end()
    assert sorted(log.lost) == processes.beside("a0")
    assert [row[:2] for row in failures(log)] == [("a0", "share"), ("a0", "profile")]
    assert fed.fetch(fed["a0"].profile()) == kept  # there again, in its first state


def test_a_dying_worker_spares_the_agents_of_others(processes: Bench) -> None:
    fed = processes.fed
    gains = {
        "dead source": fed["a1"].accept(PICKS, fed["a0"].share(fault("kill"))),
        "sound": fed["a2"].accept(PICKS, fed["a1"].share(PICKS)),
    }
    assert list(fed.gather(gains)) == (["sound"] if "a2" not in processes.beside("a0") else [])
    processes.end()


def test_what_a_dead_worker_had_handed_over_stays_with_its_receiver(processes: Bench) -> None:
    if "a1" in processes.beside("a0"):
        pytest.skip("nobody else is left")
    fed = processes.fed
    texts = fed["a0"].share(PICKS)
    fed.fetch(fed["a1"].accept(PICKS, texts))
    fed.gather({"kill": fed["a0"].share(fault("kill"))})
    with pytest.raises(AgentError, match=r"a0\.share failed: its answer was lost with its process"):
        fed.fetch(fed["a2"].accept(PICKS, texts))
    log = processes.end()
    assert [row[:3] for row in transfers(log) if row[0] == "a0"] == [("a0", "a1", "texts")]


def test_a_worker_that_dies_while_idle_is_started_again_at_the_barrier(processes: Bench) -> None:
    fed = processes.fed
    texts = fed["open"].share(fault("idle"))
    assert isinstance(fed.fetch(texts), Texts)
    pid = process_of(processes, "open")
    deadline = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < deadline:
        os.sched_yield()
    log = processes.end()
    assert "open" in log.lost
    assert isinstance(fed.fetch(fed["open"].profile()), Profile)


def test_a_worker_that_dies_idle_is_noticed_by_the_next_call(processes: Bench) -> None:
    fed = processes.fed
    fed.fetch(fed["a0"].profile())
    os.kill(process_of(processes, "a0"), signal.SIGKILL)
    with pytest.raises(AgentError, match=r"a0\.profile failed: its process ended unexpectedly"):
        fed.fetch(fed["a0"].profile())
    assert "a0" in processes.end().lost


def process_of(bench: Bench, agent: str) -> int:
    return int((bench.folder / f"{agent}.trace").read_text().splitlines()[-1].split()[0])


def is_alive(pid: int) -> bool:
    """Is anything of it left? Its first thread can be gone before the others, and nobody is told until all are."""
    try:
        dead = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not dead or len(os.listdir(f"/proc/{pid}/task")) > 1
    except (FileNotFoundError, ProcessLookupError):
        return False
