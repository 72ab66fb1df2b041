"""What comes late is learnt from when it comes, what fits no exchange is refused, and a run can be killed meanwhile."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_safetensors
from small import bodies, last_checkpoint, make_models, resume, run, small_config

from peertune.clock import Availability, Clock
from peertune.engines.base import Barrier, Engine, Ref
from peertune.errors import ConfigError
from peertune.experiment import Experiment, Interrupted
from peertune.federation import Federation
from peertune.ledger import Ledger
from peertune.matchmakers import MATCHMAKERS
from peertune.matchmakers.base import Matchmaker, Pair
from peertune.matchmakers.linucb import LinUCB
from peertune.methods import Budget, Knexa, Run
from peertune.methods.base import Public, State
from peertune.methods.book import REWARD_LIMIT, Book, Report
from peertune.methods.evidence import Evidence
from peertune.payloads import Change, Claims, Gain, Payload, Profile, Texts, Verdicts, decode, encode
from peertune.report.tables import result_tables

NAMES = ["a", "b", "c", "d"]
RUN = Run(rounds=6, seed=0, budget=Budget(1, 2), transfer=(Public("x", True),) * 16)
SET = {"type": "knexa", "route": "set", "matchmaker": {"type": "linucb", "max_students": 3}, "max_pairs": 4}


@dataclass
class Scripted(Engine):
    """Agents that answer at once: `gains[agent]` in the order of its lessons (the last one stays), 0.5 by default."""

    gains: dict[str, list[Gain]] = field(default_factory=dict)
    calls: list[tuple[str, str, tuple[Any, ...]]] = field(default_factory=list)
    answers: dict[int, Payload | None] = field(default_factory=dict)

    def submit(self, ref: Ref, args: Sequence[bytes | Ref]) -> None:
        values = tuple(arg if isinstance(arg, Ref) else decode(arg) for arg in args)
        self.calls.append((ref.owner, ref.verb, values))
        self.answers[ref.id] = self._answer(ref, values)

    def _answer(self, ref: Ref, values: tuple[Any, ...]) -> Payload | None:
        match ref.verb:
            case "profile":
                place = NAMES.index(ref.owner)
                return Profile(tuple(float(np.cos(place * 7 + number)) for number in range(32)))
            case "draft":
                count = len(values[0].items)
                return Claims((100,) * count, (1,) * count, (0,) * count)
            case "share":
                return Texts(("text",) * len(values[0].items))
            case "accept" | "inspect":
                return Verdicts((1,) * len(values[0].items))
            case "learn":
                mine = self.gains.get(ref.owner, [gain(0.5)])
                return mine.pop(0) if len(mine) > 1 else mine[0]
        return None

    def fetch(self, ref: Ref) -> bytes:
        answer = self.answers[ref.id]
        return b"" if answer is None else encode(answer)

    def end_round(self, busy: Collection[str] = ()) -> Barrier:
        self.answers.clear()
        return Barrier({}, [], [])

    def close(self) -> None:
        """Nothing was started."""


def gain(reward: float, kept: bool = True) -> Gain:
    return Gain(Change(200.0, 200.0 - reward, 0.1), None, 0.0, kept)


def straggling(seed: int = 0, **rules: Any) -> tuple[Clock, str]:
    """A clock of four agents, and which of them is slow."""
    rules = {"stragglers": 0.25, "slowdown": 2.0, "quorum": 0.75} | rules
    clock = Clock(NAMES, Availability(**rules), seed)
    clock.begin(1)
    for number, name in enumerate(NAMES):
        clock.charge(Ref(name, number, "fit"), [1])
    slow = max(NAMES, key=clock.free)
    clock.restore(None)
    return clock, slow


def method(matchmaker: Matchmaker | None = None, **changes: Any) -> Knexa:
    return Knexa(
        run=RUN, matchmaker=matchmaker or LinUCB(max_students=3), route="set", max_pairs=4, byte_weight=0.0, **changes
    )


def equal(one: State, other: State) -> bool:
    """Bit for bit."""
    return {key: (value.dtype, value.shape, value.tobytes()) for key, value in one.items()} == {
        key: (value.dtype, value.shape, value.tobytes()) for key, value in other.items()
    }


# What comes late

# A round of an ordinary agent: fit 1, 16 drafts 1, learn 4; the straggler needs twice as long. All learn.
# Round 1: claims at 4, lessons end at 8 and 12; it closes at 8. Round 2, without the straggler: claims at 10, lessons
# until 14; at 12 the late gain comes. Round 3 has all four again.


def play(fed: Federation, knexa: Knexa, rounds: int, state: State | None = None) -> tuple[list[State], list[list[Any]]]:
    """The states after every round, the first one before, and each round's rows."""
    states, rows = [state or knexa.init(fed)], []
    for t in range(1, rounds + 1):
        fed.begin_round(t)
        states.append(knexa.round(states[-1], fed, t))
        rows.append(fed.end_round().rows)
    return states, rows


def of(rows: Sequence[Any], kind: str) -> list[dict[str, Any]]:
    return [row.body for row in rows if row.kind == kind]


def test_rounds_and_late_gains_have_exact_times() -> None:
    clock, slow = straggling()
    engine = Scripted()
    _, rows = play(Federation(engine, NAMES, clock), method(), 3)
    times = [(body["start"], body["end"], body["absent"], body["busy"]) for each in rows for body in of(each, "clock")]
    assert times == [(0.0, 8.0, {}, [slow]), (8.0, 14.0, {slow: "at work"}, []), (14.0, 22.0, {}, [slow])]
    asked = [len([1 for _, verb, _ in engine.calls if verb == "fit"]), len(engine.calls)]
    assert asked[0] == 4 + 3 + 4
    due = {(place, pair["receiver"]): pair["due"] for place, each in enumerate(rows) for pair in of(each, "pair")
           if "due" in pair}  # fmt: skip
    assert due == {(0, slow): 12.0, (2, slow): 26.0}
    assert [len(of(each, "late")) for each in rows] == [0, 1, 0]
    (late,) = of(rows[1], "late")
    (pair,) = [pair for pair in of(rows[0], "pair") if pair["receiver"] == slow]
    assert {key: late[key] for key in ("agreed", "due", "source", "receiver", "reward")} == {
        "agreed": 1, "due": 12.0, "source": pair["source"], "receiver": slow, "reward": 0.5
    }  # fmt: skip


def test_a_late_gain_updates_the_matchmaker_when_it_comes_with_the_context_that_was_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matched: list[list[Pair]] = []
    seen: list[State] = []
    original = LinUCB.match

    def match(self: LinUCB, state: State, *args: Any) -> list[Pair]:
        seen.append(state)
        matched.append(original(self, state, *args))
        return matched[-1]

    monkeypatch.setattr(LinUCB, "match", match)
    clock, slow = straggling()
    rewards = dict(zip(NAMES, (0.1, 0.2, 0.3, 0.4), strict=True))
    fed = Federation(Scripted({name: [gain(reward), gain(-reward)] for name, reward in rewards.items()}), NAMES, clock)
    policy = LinUCB(max_students=3)
    states, _ = play(fed, method(policy), 2)

    def after(state: State, pairs: Sequence[Pair], sign: float) -> State:
        for pair in pairs:
            exact = gain(sign * rewards[pair.receiver]).private
            state = policy.update(state, pair, exact.before - exact.after)
        return state

    (waiting,) = [pair for pair in matched[0] if pair.receiver == slow]
    first = after(policy.init(0), [pair for pair in matched[0] if pair is not waiting], 1)
    assert equal(_part(states[1]), first) and equal(seen[1], first)  # not before its time
    second = after(after(first, [waiting], 1), matched[1], -1)  # it comes at 12, the others at 14
    assert equal(_part(states[2]), second)
    held = {key: array for key, array in states[1].items() if key.startswith("book/")}
    assert held["book/contexts"].tobytes() == waiting.context.tobytes()
    assert not [key for key in states[2] if key.startswith("book/")]


def _part(state: State, name: str = "matchmaker") -> State:
    return {key.removeprefix(f"{name}/"): array for key, array in state.items() if key.startswith(f"{name}/")}


def test_what_has_come_is_known_when_the_next_pairs_are_chosen() -> None:
    """Three times as slow, the straggler is at work for two rounds; its gain is known at the match of round 3."""
    clock, slow = straggling(slowdown=3.0)
    knexa = method()
    states, rows = play(Federation(Scripted(), NAMES, clock), knexa, 3)
    assert [body["end"] for each in rows for body in of(each, "clock")] == [10.0, 16.0, 22.0]
    assert [len(of(each, "late")) for each in rows] == [0, 0, 1]  # due at 18, claims of round 3 at 18
    order = [row.kind for row in rows[2] if row.kind in ("late", "pair")]
    assert order[0] == "late"
    counts = [int(_part(state)["rewards"][0]) for state in states]
    assert counts == [0, 3, 6, 10]


def test_a_late_roll_back_costs_the_source_its_trust_when_it_comes() -> None:
    clock, slow = straggling()
    gains = {slow: [gain(-0.2, kept=False), gain(0.1)]}
    fed = Federation(Scripted(gains), NAMES, clock)
    states, rows = play(fed, method(rollback=0.0), 2)
    row = NAMES.index(of(rows[1], "late")[0]["source"])
    first, second = (_part(state, "evidence")["counts"] for state in states[1:])
    assert first[:, 1].sum() == 0.0
    assert second[row, 1] == pytest.approx(0.9 * 0.5) and second[:, 1].sum() == second[row, 1]
    others = [name for name in range(4) if name != row]
    taught = [sum(NAMES.index(pair["source"]) == at for pair in of(rows[1], "pair")) for at in range(4)]
    assert second[others, 0].tolist() == pytest.approx([0.9 * first[at, 0] + taught[at] for at in others])


@pytest.mark.parametrize(
    ("reward", "quorum", "regretted"), [(-0.2, 1.0, True), (-0.2, 0.75, False), (-150.0, 1.0, False)]
)
def test_routing_knows_no_roll_back_before_its_time_nor_a_refused_one(
    reward: float, quorum: float, regretted: bool
) -> None:
    clock, slow = straggling(quorum=quorum)
    fed = Federation(Scripted({slow: [gain(reward, kept=False)]}), NAMES, clock)
    routed = Knexa(run=RUN, matchmaker=LinUCB(), byte_weight=0.0, rollback=0.0)
    state = {**routed.init(fed), "router/right": np.zeros((4, 1, 5)), "router/tried": np.zeros((4, 1, 5))}
    state["router/right"][:] = state["router/tried"][:] = 50.0
    states, rows = play(fed, routed, 1, state)
    counts = _part(states[1], "evidence")["counts"]
    assert len(of(rows[0], "pair")) > 0
    assert counts[:, 1].sum() == (0.5 if regretted else 0.0)


@pytest.mark.parametrize("name", sorted(set(MATCHMAKERS) - {"oracle"}))
@pytest.mark.parametrize("away", [[], ["b"], ["b", "c", "d"], NAMES])
def test_every_policy_bears_that_agents_are_away(name: str, away: list[str]) -> None:
    clock = Clock(NAMES, Availability(present=dict.fromkeys(away, ((3, None),))))
    engine = Scripted()
    for policy in (MATCHMAKERS[name](), MATCHMAKERS[name](max_students=3)):
        engine.calls.clear()
        fed = Federation(engine, NAMES, clock)
        play(fed, Knexa(run=RUN, matchmaker=policy, route="set"), 2)
        assert not {agent for agent, _, _ in engine.calls} & set(away)
        clock.restore(None)


@pytest.mark.parametrize("away", [[], ["b"], ["b", "c", "d"], NAMES])
def test_routing_bears_that_agents_are_away(away: list[str]) -> None:
    clock = Clock(NAMES, Availability(present=dict.fromkeys(away, ((2, None),))))
    engine = Scripted()
    probing = Run(rounds=6, seed=0, budget=Budget(1, 2), transfer=RUN.transfer, probe=(Public("x", False),) * 4)
    fed = Federation(engine, NAMES, clock)
    play(fed, Knexa(run=probing, matchmaker=LinUCB(), audit=2), 1)
    there = set(NAMES) - set(away)
    assert {agent for agent, verb, _ in engine.calls if verb == "learn"} == there
    auditors = [agent for agent, verb, _ in engine.calls if verb == "inspect"]
    assert sorted(auditors) == (sorted(there) if len(there) > 1 else [])


# The book


def federation(now: float = 0.0) -> Federation:
    fed = Federation(Scripted(), NAMES, Clock(NAMES, Availability()))
    fed.clock.now = now
    return fed


def pair(source: str = "a", receiver: str = "b", number: float = 0.0) -> Pair:
    return Pair(source, receiver, np.arange(64.0) + number, 0.25, 0.75, "logits", 0.1)


def refusals(fed: Federation) -> list[dict[str, Any]]:
    return of(fed.end_round().rows, "refused")


def test_reports_come_in_the_order_of_their_time_then_of_their_number() -> None:
    fed = federation(now=5.0)
    book = Book({}, fed, 1)
    numbers = [book.agree(pair(number=place), 1.0) for place in range(4)]
    for number, due in zip(numbers, (5.0, 3.0, 3.0, 5.5), strict=True):
        assert book.take(Report(number, "a", "b", 0.1), due)
    assert [each.number for each in book.come()] == [numbers[1], numbers[2], numbers[0]]
    assert book.come() == []
    fed.clock.now = 6.0
    later = Book(book.state, fed, 3)
    (last,) = later.come()
    assert (last.number, later.age(last), last.agreed) == (numbers[3], 2, 1)
    assert later.state == {} and later.agree(pair(), 1.0) not in numbers


def test_what_is_awaited_can_be_saved_as_it_is() -> None:
    book = Book({}, federation(), 4)
    asked = [pair(), pair("c", "d", 0.1), Pair("d", "a", np.full(64, -1 / 3), math.nan)]
    for place, each in enumerate(asked):
        assert book.take(
            Report(book.agree(each, place / 3), each.source, each.receiver, place / 7, kept=place != 1), 9.5
        )
    book.agree(pair("b", "c"), 1.0)  # nobody reports it: given up
    fed = federation(now=10.0)
    again = Book(book.state, fed, 5)
    assert equal(again.state, book.state)
    found = again.come()
    for each, wanted in zip(found, asked, strict=True):
        for part in fields(Pair):  # also those that a later version may add
            np.testing.assert_array_equal(getattr(each.pair, part.name), getattr(wanted, part.name), part.name)
    assert [(each.share, each.reward, each.kept) for each in found] == [
        (place / 3, place / 7, place != 1) for place in range(3)
    ]


SPOILT = {
    "no number": ({"number": 17}, "no exchange 17 is open"),
    "a pair never formed": (dict(source="c"), "is another pair's, not that of c and b"),
    "the roles exchanged": (dict(source="b", receiver="a"), "is another pair's, not that of b and a"),
    "NaN": (dict(reward=math.nan), "a reward of nan is not a number within"),
    "infinite": (dict(reward=-math.inf), "a reward of -inf is not a number within"),
    "too much": (dict(reward=100.1), "a reward of 100.1 is not a number within"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_report_that_cannot_be_is_refused_and_changes_nothing(what: str) -> None:
    change, cause = SPOILT[what]
    fed = federation()
    book = Book({}, fed, 1)
    first, second = book.agree(pair(), 1.0), book.agree(pair("c", "d"), 1.0)
    assert book.take(Report(second, "c", "d", 0.5), due=7.0)
    before = book.state
    good = {"number": first, "source": "a", "receiver": "b", "reward": 0.1}
    assert not book.take(Report(**{**good, **change}), due=3.0)
    assert equal(book.state, before) and book.come() == []
    (body,) = refusals(fed)
    assert body["agent"] == {**good, **change}["receiver"] and body["exchange"] == {**good, **change}["number"]
    assert cause in body["cause"]
    assert book.take(Report(**good), due=3.0)  # the exchange is still open for its true report


def test_a_second_report_is_refused_before_and_after_the_first_has_come() -> None:
    fed = federation(now=1.0)
    book = Book({}, fed, 1)
    number = book.agree(pair(), 1.0)
    for due in (1.0, 2.0):
        assert book.take(Report(number, "a", "b", 0.1), due) is (due == 1.0)
    assert [each.reward for each in book.come()] == [0.1]
    assert not book.take(Report(number, "a", "b", 0.3), 1.0)
    first, second = (body["cause"] for body in refusals(fed))
    assert first.endswith("has been reported before") and "has been settled" in second


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-1, 6), st.sampled_from("ab"), st.floats()), max_size=12))
def test_whatever_is_reported_each_exchange_is_settled_at_most_once(reports: list[tuple[int, str, float]]) -> None:
    fed = federation()
    book = Book({}, fed, 1)
    numbers = [book.agree(pair(), 1.0) for _ in range(4)]
    for place, source, reward in reports:
        number = numbers[place] if 0 <= place < 4 else place
        before = book.state
        if not book.take(Report(number, source, "b", reward), due=0.0):
            assert equal(book.state, before)
    settled = book.come()
    assert len({each.number for each in settled}) == len(settled)
    assert all(abs(each.reward) <= REWARD_LIMIT for each in settled)
    assert len(settled) + len(refusals(fed)) == len(reports)


def test_a_refused_reward_does_not_stop_the_round_and_teaches_nobody() -> None:
    """One receiver claims that its loss fell by 150 nats: the state is that of a round without its report."""
    knexa, told = method(), {"b": [gain(150.0)]}
    fed = Federation(Scripted(told), NAMES)
    states, rows = play(fed, knexa, 1)
    silent = Federation(Scripted(), NAMES)
    silent.begin_round(1)

    class Deaf(Book):
        def take(self, report: Report, due: float) -> bool:
            return report.receiver != "b" and super().take(report, due)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peertune.methods.knexa.Book", Deaf)
        assert equal(states[1], knexa.round(knexa.init(silent), silent, 1))
    (body,) = of(rows[0], "refused")
    assert body["agent"] == "b" and body["cause"] == "a reward of 150 is not a number within +-100"
    assert sorted(pair["receiver"] for pair in of(rows[0], "pair")) == ["a", "c", "d"]
    routed = Knexa(run=RUN, matchmaker=LinUCB(), byte_weight=0.0)
    _, rows = play(Federation(Scripted(told), NAMES), routed, 1)
    assert [body["agent"] for body in of(rows[0], "refused")] == ["b"]
    assert "b" not in {pair["receiver"] for pair in of(rows[0], "pair")}


def test_regret_fades_like_what_is_regretted() -> None:
    fed = federation()
    evidence = Evidence({"counts": np.array([[0.81, 0.0]] * 4) / 0.9}, fed)
    evidence.regret("a", 1.0, age=2)  # noted as 1 two rounds ago
    assert evidence.state["counts"][0] == pytest.approx([0.405, 0.405])


# True runs


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return make_models(tmp_path_factory.mktemp("models"))


RULES = {"stragglers": 0.25, "slowdown": 3.0, "quorum": 0.75, "dropout": 0.15, "present": {"a3": [[1, 1], [3, None]]}}


def config(models: dict[str, str], **changes: Any) -> Any:
    """With seed 2 and `RULES`, a0 is slow, and its gain of round 1 comes in round 4; a2 misses round 2."""
    return small_config(models, seed=2, method=SET, rounds=4, baselines={"local": "local"}, **changes)


@pytest.fixture(scope="module")
def ledger(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return run(tmp_path_factory.mktemp("runs") / "whole", config(models, availability=RULES))


def test_a_run_with_stragglers_dropouts_and_absences(ledger: Ledger) -> None:
    rounds = [event for event in ledger.events("clock")]
    assert [(event.arm, event.round) for event in rounds] == [
        (arm, t) for arm in ("local", "knexa") for t in range(1, 5)
    ]
    assert all(event.body["absent"]["a3"] == "away" for event in rounds if event.round == 2)
    dropped = [{name for name, why in event.body["absent"].items() if why == "dropped out"} for event in rounds]
    assert dropped[:4] == dropped[4:]  # the same in every arm
    assert dropped[1] == {"a2"}
    assert [(event.arm, event.round, event.body["receiver"]) for event in ledger.events("late")] == [("knexa", 4, "a0")]
    assert len(bodies(ledger, "failure")) == 0
    scored = [(event.arm, event.round, event.body["agent"]) for event in ledger.events("scores")]
    evaluated = [("start", 0), ("local", 2), ("local", 4), ("knexa", 2), ("knexa", 4)]
    assert scored == [(arm, t, f"a{row}") for arm, t in evaluated for row in range(4)]  # also who is not there
    for event in ledger.events("checkpoint", "knexa"):
        assert len(event.body["clock"]) == 5 and set(event.body["agents"]) == {"a0", "a1", "a2", "a3"}


def stopped(folder: Path, config: Any, arm: str, round: int) -> None:
    def watch(event: str, body: dict[str, Any]) -> None:
        if event == "round" and (body["arm"], body["round"]) == (arm, round):
            experiment.request_stop()

    experiment = Experiment.create(folder, config, watch)
    with pytest.raises(Interrupted):
        experiment.run()


@pytest.mark.parametrize("round", [1, 3])
def test_a_run_that_was_stopped_while_a_gain_was_awaited_ends_the_same(
    models: dict[str, str], tmp_path: Path, ledger: Ledger, round: int
) -> None:
    stopped(tmp_path / "run", config(models, availability=RULES), "knexa", round)
    digest = last_checkpoint(Ledger.read(tmp_path / "run" / "ledger.sqlite"), "knexa").body["method"]
    state = load_safetensors((tmp_path / "run" / "coordinator" / "checkpoints" / digest).read_bytes())
    assert state["book/contexts"].shape == (1, 64)
    assert resume(tmp_path / "run").head == ledger.head


def test_a_damaged_checkpoint_takes_the_clock_back_too(models: dict[str, str], tmp_path: Path, ledger: Ledger) -> None:
    stopped(tmp_path / "run", config(models, availability=RULES), "knexa", 2)
    digest = last_checkpoint(Ledger.read(tmp_path / "run" / "ledger.sqlite"), "knexa").body["method"]
    (tmp_path / "run" / "coordinator" / "checkpoints" / digest).unlink()
    assert resume(tmp_path / "run").head == ledger.head


def test_availability_that_takes_nobody_away_changes_only_what_it_adds(models: dict[str, str], tmp_path: Path) -> None:
    without, trivial = (
        run(tmp_path / name, small_config(models, "llama gpt2", method=SET | {"max_pairs": 2}, **changes))
        for name, changes in (("a", {}), ("b", {"availability": {}}))
    )

    def events(ledger: Ledger) -> list[Any]:
        return [(event.arm, event.round, event.phase, event.kind, stripped(event.kind, event.body))
                for event in ledger.events() if event.kind != "clock"]  # fmt: skip

    def stripped(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind == "run":
            body = {**body, "config": {key: value for key, value in body["config"].items() if key != "availability"}}
        return {key: value for key, value in body.items() if (kind, key) != ("checkpoint", "clock")}

    assert events(without) == events(trivial)
    assert len(bodies(trivial, "clock")) == 2
    assert not [body for body in bodies(without, "checkpoint") if set(body) != {"agents", "method"}]
    assert "availability" not in bodies(without, "run")[0]["config"]
    assert {event.kind for event in without.events()} & {"clock", "late", "refused"} == set()


def test_tables_say_what_time_did(ledger: Ledger, tmp_path: Path) -> None:
    tables = {table.title: table for table in result_tables(ledger)}
    table = tables["Rounds in virtual time"]
    assert [row[:2] for row in table.rows] == [[arm, str(t)] for arm in ("local", "knexa") for t in range(1, 5)]
    assert "1 away" in table.rows[1][4]
    assert [row[7] for row in table.rows] == ["–"] * 7 + ["a0"]
    assert "Refused reports" not in tables
    refused = Ledger.create(tmp_path / "ledger.sqlite")
    refused.append("knexa", 2, "round", "refused", {"agent": "b", "exchange": 7, "cause": "no exchange 7 is open"})
    refused.commit()
    from peertune.report.asynchrony import refused_table

    assert refused_table(refused).rows == [["knexa", "2", "b", "no exchange 7 is open"]]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"present": {"zoe": [[1, 2]]}}, "there is no agent 'zoe'; the agents are a0, a1, a2, a3"),
        ({"present": {"a1": [[3, 2]]}}, r"availability.present.a1: expected \[first, last\] rounds of 4"),
        ({"present": {"a1": [[5, None]]}}, r"availability.present.a1: expected \[first, last\] rounds of 4"),
        ({"slowdown": 5.0}, "availability.slowdown is not used, because nobody is slow"),
        ({"dropout": 1.0}, "less than 1"),
        ({"quorum": 0.0}, "greater than 0"),
        ({"deadline": 0}, "greater than 0"),
        ({"stragglers": math.nan}, "stragglers"),
    ],
)
def test_rules_that_cannot_be(models: dict[str, str], rules: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=said):
        config(models, availability=rules)
