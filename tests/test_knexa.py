"""KNEXA-FL, round by round, on true agents with planted texts: who learns what from whom, and what is known of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from knexa_parts import FLUENT, LIAR, SKILLS, Build, bodies, builder, failures, moved, with_bases
from sums import PROBE, TRANSFER, WRONG, call, right
from tiny import make_tiny_model

from peertune.agent import Agent
from peertune.agent.faults import Liar
from peertune.ledger import COORDINATOR
from peertune.matchmakers import LinUCB, Uniform
from peertune.matchmakers.router import Router
from peertune.payloads import Claims, Profile
from peertune.profiles import AgentRecord


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama"))


@pytest.fixture
def build(source: str, tmp_path: Path) -> Build:
    return builder(source, tmp_path)


# A source for every prompt


def test_everybody_learns_from_whoever_is_right(build: Build) -> None:
    group = build(retries=3)
    log = group.play()
    assert group.lessons() == dict.fromkeys("abcd", {0: "2", 1: "4", 2: "6"})
    assert not failures(log)
    pairs = {(row["source"], row["receiver"]): row for row in bodies(log, "pair")}
    assert pairs.keys() == {(s, r) for s in "abc" for r in "abcd" if s != r}  # several sources of one receiver
    assert all(row["texts"] == row["useful"] == 1 and row["predicted"] is None for row in pairs.values())


def test_texts_that_fail_the_tests_at_home_are_neither_offered_nor_moved(build: Build) -> None:
    group = build()
    group.play()
    called = [name for name, verb in group.engine.calls if verb == "share"]
    assert "d" not in called  # its drafts are empty; the others' wrong ones are withheld
    assert all(WRONG not in texts.values() for texts in group.lessons().values())


def test_the_reward_is_equation_3_of_the_receivers_gain(build: Build) -> None:
    for reward, prefix in (("probe", "probe_"), ("private", "")):
        group = build(reward=reward, gain_weight=2.0, byte_weight=0.5, folder=reward)
        for row in bodies(group.play(), "pair"):
            gain = row[f"{prefix}before"] - row[f"{prefix}after"]
            assert row["reward"] == pytest.approx(2.0 * gain - 0.5 * row["kilobytes"], abs=1e-12)
            assert row["kept"] is True and row["error"] >= 0 and row["probe_error"] >= 0
            assert row["kilobytes"] > 0


def test_what_an_agent_has_verified_it_is_not_sent_again(build: Build) -> None:
    group = build(retries=3)
    group.play()
    log = group.play()
    assert moved(log, "texts") == [] and bodies(log, "pair") == []
    assert group.lessons() == dict.fromkeys("abcd", {0: "2", 1: "4", 2: "6"})
    assert group.engine.calls[-4:] == [(name, "learn") for name in "abcd"]  # they rehearse what they know


def test_without_tests_texts_are_taken_as_they_are(build: Build) -> None:
    group = build(tested=False)
    group.play()
    texts = {text for lessons in group.lessons().values() for text in lessons.values()}
    assert WRONG in texts


# Audits


def test_an_audit_in_round_1_and_no_more_where_texts_are_tested(build: Build) -> None:
    group = build()
    group.play()
    first = [name for name, verb in group.engine.calls if verb == "inspect"]
    group.engine.calls.clear()
    group.play()
    assert not [verb for _, verb in group.engine.calls if verb == "inspect"]
    assert first == []  # all probe drafts are wrong here, and withheld by who tests them


@pytest.mark.parametrize("options", [{"tested": False}, {"public": False}])
def test_an_audit_in_every_round_where_texts_cannot_be_tested(build: Build, options: dict[str, Any]) -> None:
    group = build(**options)
    for t in (1, 2, 3):
        group.engine.calls.clear()
        log = group.play()
        assert sorted(name for name, verb in group.engine.calls if verb == "inspect") == list("abcd")
        tried = group.state["router/tried"].sum((1, 2))
        assert np.allclose(tried, 2 * sum(0.7**age for age in range(t)))  # two texts a round, and they fade
        assert not failures(log)
    assert group.state["router/right"].sum() == 0


def test_no_audit_without_a_probe_or_if_none_is_wanted(build: Build) -> None:
    group = build(tested=False, audit=0)
    group.play()
    assert not [verb for _, verb in group.engine.calls if verb == "inspect"]


def test_each_round_audits_another_part_of_the_probe(build: Build) -> None:
    asked = [build(tested=False, folder="x").method._audited(t) for t in (1, 2, 3)]
    assert asked == [(TRANSFER, TRANSFER + 1), (TRANSFER + 2, TRANSFER), (TRANSFER + 1, TRANSFER + 2)]
    assert PROBE == 3


# A liar


def test_a_liars_texts_never_become_lessons_of_who_tests_them(build: Build) -> None:
    group = build(FLUENT, LIAR, retries=3)
    for _ in range(2):
        group.play()
    for name in "abc":
        assert group.lessons()[name] == {0: "2", 1: "4", 2: "6"}


def test_a_liar_loses_its_students(build: Build) -> None:
    """The fourth problem nobody can, so everybody goes on asking; here is who they ask, first in round 1."""
    skills = {name: {1: WRONG, 2: WRONG, 3: WRONG, 4: WRONG} for name in "abc"} | {"d": right(1, 2, 3, 4)}
    group = build(skills, LIAR, retries=0, router=Router(explore=False, floor=0.3), audit=0)
    pulls = []
    for _ in range(4):
        log = group.play()
        pulls.append(sum(source == "d" for source, _ in moved(log, "texts")))
    assert pulls[0] == 3 and pulls[-1] == 0
    trust = group.state["evidence/counts"]
    assert trust[3, 0] == 0 and trust[3, 1] > 0  # nothing good, something bad
    assert (trust[:3] == 0).all()


def test_an_audit_exposes_a_liar_where_texts_cannot_be_tested(build: Build) -> None:
    skills = {name: {**texts, **right(20, 21, 22)} for name, texts in SKILLS.items()} | {"d": FLUENT["d"]}
    group = build(skills, LIAR, public=False, audit=3, router=Router(explore=False, floor=0.3), retries=0)
    log = group.play()
    router, state = group.method.router, group.state
    credit = router.credit({key.removeprefix("router/"): state[key] for key in state if key.startswith("router/")})
    assert credit[3, :, 3].max() < 0.5  # so sure, and wrong
    for _ in range(2):
        log = group.play()
    pulled = [pair for pair in moved(log, "texts") if pair[0] == "d"]
    assert len(pulled) <= 1  # its auditor alone


# One source for all prompts


def test_the_papers_exchange_accepts_every_text(build: Build) -> None:
    """`route: set` with all gates off: whatever the source wrote for the transfer set is learnt, and only that."""
    group = build(route="set", tested=False, keep_best=False, reward="private", matchmaker=LinUCB())
    learnt: dict[str, dict[int, str]] = {}
    for name, agent in group.agents.items():
        spy_on_lessons(agent, learnt, name)
    log = group.play()
    pairs = bodies(log, "pair")
    assert len(pairs) == 2 and len({row[role] for row in pairs for role in ("source", "receiver")}) == 4
    for row in pairs:
        written = {number - 1: text for number, text in SKILLS[row["source"]].items()}
        assert learnt[row["receiver"]] == written
        assert row["texts"] == row["useful"] == len(written)
    assert group.lessons() == dict.fromkeys("abcd", {})
    assert moved(log, "texts") == [(row["source"], row["receiver"]) for row in pairs]


def spy_on_lessons(agent: Agent, learnt: dict[str, dict[int, str]], name: str) -> None:
    original = agent._desk.rows

    def rows(record: AgentRecord) -> Any:
        learnt[name] = {problem: lesson.text for problem, lesson in record.lessons.items()}
        return original(record)

    agent._desk.rows = rows


def test_a_pair_with_gates_moves_only_what_is_offered_and_needed(build: Build) -> None:
    group = build({"a": right(1, 2), "b": {**right(1, 3), 2: WRONG}}, route="set")
    log = group.play()
    (row,) = bodies(log, "pair")
    assert (row["texts"], row["useful"]) == (1, 1)
    assert group.lessons()[row["receiver"]] == {0: "2", 1: "4", 2: "6"}


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_evidence_counts_texts_that_were_of_use(build: Build, share: float) -> None:
    skills = {"a": right(1, 2), "b": right(1, 2)} if share else {"a": FLUENT["d"], "b": FLUENT["d"]}
    group = build(skills, {} if share else {"a": Liar, "b": Liar}, route="set", tested=True, matchmaker=Uniform())
    if share:
        for agent in group.agents.values():
            agent._desk._public.verify = lambda problems, texts, tested: [None] * len(texts)
    (row,) = bodies(group.play(), "pair")
    good, bad = group.state["evidence/counts"][["a", "b"].index(row["source"])]
    assert (good, bad) == (share, 1 - share)


def test_a_rolled_back_lesson_counts_half(build: Build) -> None:
    group = build(route="set", tested=False, rollback=0.0, matchmaker=Uniform())
    for agent in group.agents.values():
        rising(agent)
    rows = bodies(group.play(), "pair")
    assert rows and not any(row["kept"] for row in rows)
    for row in rows:
        expected = [0.5, 0.5] if row["texts"] else [0.0, 0.0]
        assert group.state["evidence/counts"]["abcd".index(row["source"])].tolist() == expected


def rising(agent: Agent) -> None:
    """Every loss that the agent measures is greater than the one before."""
    original, count = agent._learner.losses, iter(range(10**6))
    agent._learner.losses = lambda rows: original(rows) + np.array([[100.0 * next(count), 0.0]])


def test_a_source_that_offers_nothing_earns_no_trust(build: Build) -> None:
    group = build({"a": {}, "b": {}}, route="set", matchmaker=Uniform())
    (row,) = bodies(group.play(), "pair")
    assert row["texts"] == 0 and (group.state["evidence/counts"] == 0).all()


# What the coordinator sees


@pytest.mark.parametrize("route", ["set", "prompt"])
@pytest.mark.parametrize("tested", [True, False])
def test_no_text_reaches_the_coordinator(build: Build, route: Any, tested: bool) -> None:
    group = build(FLUENT, LIAR, route=route, tested=tested)
    for _ in range(2):
        log = group.play()
        kinds = {row["payload"] for row in bodies(log, "transfer") if row["destination"] == COORDINATOR}
        assert kinds <= {"claims", "verdicts", "gain"} | ({"profile"} if route == "set" else set())
        assert all(COORDINATOR not in pair for pair in moved(log, "texts"))
    assert all(array.dtype.kind in "if" for array in group.state.values())


# Protocols


def test_a_pair_may_exchange_its_adapter(build: Build) -> None:
    group = with_bases(build(route="set", protocols=("adapter",), matchmaker=Uniform()), "xxxx")
    before = {name: call(agent, "adapter").tensors for name, agent in group.agents.items()}
    log = group.play()
    rows = bodies(log, "pair")
    assert len(rows) == 2 and {(row["protocol"], row["texts"]) for row in rows} == {("adapter", 0)}
    assert moved(log, "weights") == [(row["source"], row["receiver"]) for row in rows] and not moved(log, "texts")
    size = sum(array.nbytes for array in before["a"].values())
    assert all(row["kilobytes"] == size / 1000 for row in rows)


def test_adapters_go_between_equal_bases_only(build: Build) -> None:
    group = with_bases(build(route="set", protocols=("adapter",), matchmaker=Uniform(), max_pairs=1), "xyzx")
    for _ in range(4):
        (row,) = bodies(group.play(), "pair")
        assert {row["source"], row["receiver"]} == {"a", "d"}
    group = with_bases(build(route="set", protocols=("text", "adapter"), matchmaker=Uniform(), folder="two"), "wxyz")
    assert {row["protocol"] for row in bodies(group.play(), "pair")} == {"text"}


def test_texts_may_travel_with_what_their_author_expected(build: Build) -> None:
    settings = {"route": "set", "matchmaker": Uniform(), "tested": False, "keep_best": False}
    plain = with_bases(build(**settings, protocols=("text",)), "xxxx")
    soft = with_bases(build(**settings, protocols=("logits",), folder="two"), "xxxx")
    taught = bodies(plain.play(), "pair")
    log = soft.play()
    rows = bodies(log, "pair")
    assert [(row["source"], row["receiver"]) for row in rows] == [(row["source"], row["receiver"]) for row in taught]
    assert moved(log, "logits") == moved(log, "texts") == [(row["source"], row["receiver"]) for row in rows]
    for hard, row in zip(taught, rows, strict=True):
        assert (row["protocol"], row["texts"], row["useful"]) == ("logits", hard["texts"], hard["useful"])
        assert row["kilobytes"] > hard["kilobytes"]
        assert row["after"] != hard["after"]  # the same texts teach something else


def test_logits_go_between_equal_vocabularies_only(build: Build) -> None:
    group = with_bases(build(route="set", protocols=("text", "logits"), matchmaker=Uniform()), "wxyz")
    assert {row["protocol"] for row in bodies(group.play(), "pair")} == {"text"}


@pytest.mark.parametrize(("rollback", "counts"), [(None, (1.0, 0.0)), (0.0, (0.5, 0.5))])
def test_an_adapter_that_does_harm_costs_trust(
    build: Build, monkeypatch: pytest.MonkeyPatch, rollback: float | None, counts: tuple[float, float]
) -> None:
    group = with_bases(build(route="set", protocols=("adapter",), matchmaker=Uniform(), rollback=rollback), "xxxx")
    for agent in group.agents.values():
        before, after = np.array([[1.0, 1.0]]), np.array([[2.0, 1.0]])
        losses = iter([before, before, after, after])  # of validation and probe
        monkeypatch.setattr(agent, "fit", lambda steps: None)
        monkeypatch.setattr(agent, "profile", lambda agent=agent: Profile((0.0,) * 31 + (float(ord(agent.name)),)))
        monkeypatch.setattr(agent, "draft", lambda which, *gates: Claims(*[(0,) * len(which.items)] * 3))
        monkeypatch.setattr(agent._learner, "losses", lambda rows, losses=losses: next(losses))
    rows = bodies(group.play(), "pair")
    assert len(rows) == 2
    for row in rows:
        place = "abcd".index(row["source"])
        assert row["kept"] is (rollback is None)
        assert tuple(group.state["evidence/counts"][place]) == counts
