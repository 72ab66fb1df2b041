"""What a method may touch, and that neither processes nor their timing show in what it sees."""

import inspect
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import toy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from toy import FIRST, INVALID, NAMES, QUIET, fault

from peertune.agent import VERBS, Agent
from peertune.config.schema import Release
from peertune.engines.base import ANSWERS, Barrier, Engine, Entry, Ref
from peertune.errors import AgentError
from peertune.federation import NEVER, AgentHandle, Federation
from peertune.payloads import Number, Picks, Texts, encode

PICKS = Picks((1, 2))
TEXTS = Texts(("one", "two"))


class Script(Engine):
    """An engine without agents: remembers what it was asked, answers what it was given."""

    def __init__(self, answers: dict[int, bytes] | None = None, rows: dict[int, list[Entry]] | None = None) -> None:
        self.answers, self.rows, self.calls = answers or {}, rows or {}, []

    def submit(self, ref: Ref, args: Any) -> None:
        self.calls.append((ref, list(args)))

    def fetch(self, ref: Ref) -> bytes:
        if ref.id not in self.answers:
            raise AgentError(ref.owner, ref.verb, "no answer")
        return self.answers[ref.id]

    def end_round(self, busy: Any = ()) -> Barrier:
        return Barrier(self.rows, [], [])

    def close(self) -> None:
        """Nothing was started."""


def metric(value: int) -> Entry:
    return Entry("metric", {"value": value})


def test_rows_stand_in_the_order_of_the_text_whatever_the_order_of_arrival() -> None:
    fed = Federation(Script(rows={2: [metric(2)], 0: [metric(0), metric(10)], 1: [metric(1)]}), ["a", "b"])
    fed["a"].profile()
    fed.record("pair", source="a", receiver="b")
    fed["b"].profile()
    fed["a"].adapter()
    assert fed.end_round().rows == [
        metric(0),
        metric(10),
        Entry("pair", {"source": "a", "receiver": "b"}),
        metric(1),
        metric(2),
    ]
    assert fed.end_round().rows == []


def test_arguments_are_counted_and_refs_are_not() -> None:
    engine = Script()
    fed = Federation(engine, ["a", "b"])
    fed["b"].accept(PICKS, fed["a"].share(PICKS), tested=True)
    fed["b"].learn(0.25, 3)
    sent = [(row.body["destination"], row.body["payload"], row.body["bytes"]) for row in fed.end_round().rows]
    picks, number = len(encode(PICKS)), lambda value: len(encode(Number(value)))
    assert sent == [
        ("a", "picks", picks),
        ("b", "picks", picks),
        ("b", "number", number(1)),
        *(("b", "number", number(value)) for value in (0.25, 3, NEVER, 0)),
    ]
    (share, _), (_, args), _ = engine.calls
    assert args[1] == share


def test_gather_leaves_out_what_failed_and_records_it_once() -> None:
    fed = Federation(Script(answers={0: encode(TEXTS)}), ["a", "b"])
    found = fed.gather({"good": fed["a"].share(PICKS), "bad": fed["b"].share(PICKS)})
    assert found == {"good": TEXTS}
    assert fed.gather({"again": Ref("b", 1, "share")}) == {}
    assert fed.failed == {"b"}
    failures = [row.body for row in fed.end_round().rows if row.kind == "failure"]
    assert failures == [{"agent": "b", "verb": "share", "cause": "no answer"}]


def test_a_handles_methods_are_the_agents_verbs() -> None:
    methods = {name: method for name, method in inspect.getmembers(AgentHandle, inspect.isfunction) if name[0] != "_"}
    assert set(methods) == VERBS == set(ANSWERS)
    for name, method in methods.items():
        here, there = (inspect.signature(function) for function in (method, getattr(Agent, name)))
        assert list(here.parameters) == list(there.parameters)
        assert there.return_annotation is ANSWERS[name]


def test_whoever_failed_is_known_until_the_round_ends() -> None:
    fed = Federation(Script(), ["a", "b"])
    fed.gather({"it": fed["b"].profile()})
    assert fed.failed == {"b"}
    fed.end_round()
    assert fed.failed == set()


def test_the_toy_keeps_the_release_policy_of_real_agents() -> None:
    assert Release().model_dump() == toy.RELEASE


def test_an_unknown_agent() -> None:
    with pytest.raises(KeyError):
        Federation(Script(), ["a"])["b"]


# Random programs: graphs of calls over four agents, one of which releases nothing

AGENTS = st.sampled_from((*NAMES[:3], "shut"))
EARLIER = st.integers(0, 1_000)  # which of the earlier Refs, counted back
ASKED = st.sampled_from([Picks((1,)), Picks((2, 3)), *map(fault, (*QUIET, *INVALID))])
STEPS = st.one_of(
    st.tuples(st.just("fit"), AGENTS, st.integers(-3, 4)),
    st.tuples(st.just("profile"), AGENTS),
    st.tuples(st.just("adapter"), AGENTS),
    st.tuples(st.just("draft"), AGENTS, ASKED),
    st.tuples(st.just("share"), AGENTS, ASKED),
    st.tuples(st.just("accept"), AGENTS, ASKED, EARLIER),
    st.tuples(st.just("inspect"), AGENTS, ASKED, EARLIER),
    st.tuples(st.just("both"), AGENTS, EARLIER, EARLIER),
    st.tuples(st.just("learn"), AGENTS),
    st.tuples(st.just("load"), AGENTS, EARLIER),
    st.tuples(st.just("fetch"), AGENTS, EARLIER),
    st.tuples(st.just("barrier"), AGENTS),
)


def perform(fed: Federation, program: list[tuple]) -> list[Any]:
    """Run `program`; what the coordinator saw, in order."""
    refs = [fed["a0"].share(PICKS)]
    seen: list[Any] = []
    for verb, name, *rest in program:
        agent = fed[name]
        earlier = [refs[-1 - number % len(refs)] for number in rest if isinstance(number, int)]
        if verb == "fetch":
            seen.append(msgspec.to_builtins(fed.gather({"it": earlier[0]})))
        elif verb == "barrier":
            seen.append(msgspec.to_builtins(fed.end_round().rows))
        else:
            refs.append(call(agent, verb, rest, earlier))
    seen.append(msgspec.to_builtins(fed.end_round().rows))
    for agent in fed.agents:
        agent.restore(FIRST)
    fed.end_round()
    return seen


def call(agent: AgentHandle, verb: str, rest: list[Any], earlier: list[Ref]) -> Ref:
    match verb:
        case "fit":
            return agent.fit(rest[0])
        case "draft":
            return agent.draft(rest[0], 0.5)
        case "share":
            return agent.share(rest[0])
        case "accept" | "inspect":
            return getattr(agent, verb)(rest[0], earlier[0])
        case "both":  # two arguments that may both be missing
            return agent._call("accept", *earlier, 0)
        case "learn":
            return agent.learn(0.5, 1)
        case "load":
            return agent.load(earlier[0])
    return getattr(agent, verb)()


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Federation]]:
    started = [toy.start(tmp_path_factory.mktemp("toys"), workers) for workers in (0, 1, 3)]
    yield [Federation(engine, NAMES) for engine in started]
    for engine in started:
        engine.close()


@settings(max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(program=st.lists(STEPS, min_size=1, max_size=14))
@example(program=[("share", "shut", PICKS), ("share", "a1", fault("raise")), ("both", "a2", 1, 0)])
@example(program=[("share", "a1", fault("raise")), ("share", "shut", PICKS), ("both", "a2", 1, 0), ("fetch", "a0", 0)])
def test_random_programs_are_the_same_on_every_engine(engines: list[Federation], program: list[tuple]) -> None:
    inline, *others = [perform(fed, program) for fed in engines]
    for other in others:
        assert other == inline
