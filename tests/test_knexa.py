"""KNEXA-FL, round by round, on true agents with planted texts: who learns what from whom, and what is known of it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save
from sums import PROBE, TRANSFER, WRONG, Direct, call, make_agent, plant, right, run_of
from tiny import make_tiny_model

from peertune.agent import Agent
from peertune.agent.faults import Liar
from peertune.errors import MethodError
from peertune.federation import Federation, RoundLog
from peertune.ledger import COORDINATOR
from peertune.lm.model import LanguageModel
from peertune.matchmakers import LinUCB, Uniform
from peertune.matchmakers.router import Router
from peertune.methods import Knexa
from peertune.methods.base import State
from peertune.payloads import Change, Claims, Gain, Profile, Receipt, Texts, Verdicts, Weights
from peertune.profiles import AgentRecord

# what each can: a the first, b the second, c the third; d nothing at all; nobody the fourth
SKILLS: dict[str, dict[int, str]] = {"a": right(1), "b": {**right(2), 3: WRONG}, "c": {**right(3), 1: WRONG}, "d": {}}
PROBES = dict.fromkeys((20, 21, 22), WRONG)
Build = Callable[..., "Group"]


class Group:
    """Agents, a federation over them, and the method's state as it goes."""

    def __init__(self, agents: dict[str, Agent], method: Knexa) -> None:
        self.agents, self.method = agents, method
        self.engine = Direct(agents)
        self.fed = Federation(self.engine, list(agents))
        self.state: State = method.init(self.fed)
        self.t = 0

    def play(self) -> RoundLog:
        """One round; a state that the method changed in place would not go unseen."""
        self.t += 1
        before = {key: array.copy() for key, array in self.state.items()}
        given, self.state = self.state, self.method.round(self.state, self.fed, self.t)
        assert all(np.array_equal(given[key], array) for key, array in before.items())
        assert self.state.keys() == before.keys()
        assert all(np.isfinite(array).all() for array in self.state.values())
        return self.fed.end_round()

    def lessons(self) -> dict[str, dict[int, str]]:
        return {
            name: {problem: lesson.text for problem, lesson in sorted(agent._record.lessons.items())}
            for name, agent in self.agents.items()
        }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama"))


@pytest.fixture
def build(source: str, tmp_path: Path) -> Build:
    def build(
        skills: Mapping[str, dict[int, str]] = SKILLS,
        kinds: Mapping[str, type[Agent]] | None = None,
        public: bool = True,
        folder: str = "one",
        **options: Any,
    ) -> Group:
        """`public`: do public problems have tests? `options`: of the method."""
        lm = LanguageModel.load(source, "cpu")
        agents = {
            name: make_agent(lm, tmp_path / folder, name, (kinds or {}).get(name, Agent), public) for name in skills
        }
        for name, agent in agents.items():
            plant(agent, {**PROBES, **skills[name]})
        settings: dict[str, Any] = {"matchmaker": LinUCB(), "router": Router(floor=0.0), "audit": 2} | options
        return Group(agents, Knexa(run=run_of(tested=public), **settings))

    return build


def bodies(log: RoundLog, kind: str) -> list[dict[str, Any]]:
    return [row.body for row in log.rows if row.kind == kind]


def moved(log: RoundLog, payload: str) -> list[tuple[str, str]]:
    return [(row["source"], row["destination"]) for row in bodies(log, "transfer") if row["payload"] == payload]


def failures(log: RoundLog) -> set[tuple[str, str]]:
    return {(row["agent"], row["verb"]) for row in bodies(log, "failure")}


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


LIAR = {"d": Liar}
FLUENT = SKILLS | {"d": right(1, 2, 3, 4)}


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


# Protocols


def with_bases(group: Group, bases: str) -> Group:
    """`bases`: a letter for the base and the vocabulary of each agent; equal ones can exchange more than text."""
    facts = [{"name": name, "adapter": base, "vocabulary": base} for name, base in zip("abcd", bases, strict=True)]
    group.method = replace(group.method, run=replace(group.method.run, agents=tuple(facts)))
    for agent in group.agents.values():
        agent._release |= {"weights": "agents", "logits": "agents"}
    return group


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
