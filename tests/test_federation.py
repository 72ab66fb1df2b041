"""What a method may touch, and that neither processes nor their timing show in what it sees."""

import inspect
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import toy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from toy import FIRST, INVALID, NAMES, QUIET

from peertune.agent import VERBS
from peertune.config.schema import Release
from peertune.engines.base import ANSWERS, Barrier, Engine, Entry, Ref
from peertune.errors import AgentError
from peertune.federation import AgentHandle, Federation
from peertune.payloads import Number, Texts, encode

PROMPTS = Texts(("one", "two"))


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

    def end_round(self) -> Barrier:
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
    fed["b"].learn(PROMPTS, fed["a"].answer(PROMPTS), 0.25, 3)
    sent = [(row.body["destination"], row.body["payload"], row.body["bytes"]) for row in fed.end_round().rows]
    text, number = len(encode(PROMPTS)), lambda value: len(encode(Number(value)))
    assert sent == [
        ("a", "texts", text),
        ("a", "number", number(0.0)),
        ("b", "texts", text),
        ("b", "number", number(0.25)),
        ("b", "number", number(3)),
    ]
    (answer, _), (_, args) = engine.calls
    assert args[1] == answer


def test_gather_leaves_out_what_failed_and_records_it_once() -> None:
    fed = Federation(Script(answers={0: encode(PROMPTS)}), ["a", "b"])
    found = fed.gather({"good": fed["a"].answer(PROMPTS), "bad": fed["b"].answer(PROMPTS)})
    assert found == {"good": PROMPTS}
    assert fed.gather({"again": Ref("b", 1, "answer")}) == {}
    failures = [row.body for row in fed.end_round().rows if row.kind == "failure"]
    assert failures == [{"agent": "b", "verb": "answer", "cause": "no answer"}]


def test_a_handles_methods_are_the_agents_verbs() -> None:
    methods = {name: method for name, method in inspect.getmembers(AgentHandle, inspect.isfunction) if name[0] != "_"}
    assert set(methods) == set(VERBS) == set(ANSWERS)
    for name, method in methods.items():
        here, there = (list(inspect.signature(function).parameters) for function in (method, VERBS[name]))
        assert here == there
        answer = inspect.signature(VERBS[name]).return_annotation
        assert answer is ANSWERS[name]


def test_the_toy_keeps_the_release_policy_of_real_agents() -> None:
    assert Release().model_dump() == toy.RELEASE


def test_an_unknown_agent() -> None:
    with pytest.raises(KeyError):
        Federation(Script(), ["a"])["b"]


# Random programs: graphs of calls over four agents, one of which releases nothing

AGENTS = st.sampled_from((*NAMES[:3], "shut"))
EARLIER = st.integers(0, 1_000)  # which of the earlier Refs, counted back
TEXT = st.sampled_from([("one",), ("two", "three"), *((f"!{name}",) for name in (*QUIET, *INVALID))])
STEPS = st.one_of(
    st.tuples(st.just("fit"), AGENTS, st.integers(-3, 4)),
    st.tuples(st.just("profile"), AGENTS),
    st.tuples(st.just("adapter"), AGENTS),
    st.tuples(st.just("answer"), AGENTS, TEXT),
    st.tuples(st.just("relay"), AGENTS, EARLIER),
    st.tuples(st.just("learn"), AGENTS, EARLIER, EARLIER),
    st.tuples(st.just("load"), AGENTS, EARLIER),
    st.tuples(st.just("fetch"), AGENTS, EARLIER),
    st.tuples(st.just("barrier"), AGENTS),
)


def perform(fed: Federation, program: list[tuple]) -> list[Any]:
    """Run `program`; what the coordinator saw, in order."""
    refs = [fed["a0"].answer(PROMPTS)]
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
        case "answer":
            return agent.answer(Texts(rest[0]))
        case "relay":
            return agent.answer(earlier[0], 0.5)
        case "learn":
            return agent.learn(earlier[0], earlier[1], 0.5, 1)
        case "load":
            return agent.load(earlier[0])
    return getattr(agent, verb)()


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Federation]]:
    started = [toy.start(tmp_path_factory.mktemp("toys"), workers) for workers in (0, 1, 3)]
    yield [Federation(engine, NAMES) for engine in started]
    for engine in started:
        engine.close()


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(program=st.lists(STEPS, min_size=1, max_size=14))
@example(program=[("answer", "shut", ("one",)), ("answer", "a1", ("!raise",)), ("learn", "a2", 1, 0)])
@example(
    program=[("answer", "a1", ("!raise",)), ("answer", "shut", ("one",)), ("learn", "a2", 1, 0), ("fetch", "a0", 0)]
)
def test_random_programs_are_the_same_on_every_engine(engines: list[Federation], program: list[tuple]) -> None:
    inline, *others = [perform(fed, program) for fed in engines]
    for other in others:
        assert other == inline
