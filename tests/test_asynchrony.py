"""What comes late is learnt from when it comes, and who is away is left out; on agents that answer by a script."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from asynchrony_parts import NAMES, RUN, Scripted, equal, gain, method, of, play, straggling

from peertune.clock import Availability, Clock
from peertune.federation import Federation
from peertune.matchmakers import MATCHMAKERS
from peertune.matchmakers.base import Pair
from peertune.matchmakers.linucb import LinUCB
from peertune.methods import Budget, Knexa, Run
from peertune.methods.base import Public, State

# A round of an ordinary agent: fit 1, 16 drafts 1, learn 4; the straggler needs twice as long. All learn.
# Round 1: claims at 4, lessons end at 8 and 12; it closes at 8. Round 2, without the straggler: claims at 10, lessons
# until 14; at 12 the late gain comes. Round 3 has all four again.


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
