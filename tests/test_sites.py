"""Sites and their engine without a network: the contract, and what only they have to keep."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from toy import NAMES, described, fault
from toy_sites import SESSION, Village

from peertune.engines import account, post
from peertune.engines.base import Argument, Entry, Ref
from peertune.engines.flare import FlareEngine
from peertune.engines.seal import Plain
from peertune.engines.worker import Done, Refused, Started, Value, Withheld
from peertune.errors import AgentError, ConfigError, PayloadError, PeertuneError
from peertune.federation import Federation
from peertune.ledger import COORDINATOR
from peertune.payloads import Gradient, Number, Profile, Verdicts, encode, kind_of

pytest.register_assert_rewrite("contract")

from contract import *  # noqa: E402, F403
from contract import FIT, PICKS, failures, is_alive  # noqa: E402

Start = Callable[..., Village]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    folder = tmp_path_factory.mktemp("toys")
    village = Village(folder)
    yield village.engine, folder, [[name] for name in NAMES]
    village.close()


@pytest.fixture
def villages() -> Iterator[Start]:
    """Starts villages, and closes them in the end."""
    started: list[Village] = []

    def start(*args: Any, **more: Any) -> Village:
        started.append(Village(*args, **more))
        return started[-1]

    yield start
    for village in started:
        village.close()


# Deadlines and refusals


def test_an_agent_that_hangs_past_the_deadline_costs_nobody_else(tmp_path: Path, villages: Start) -> None:
    fed = Federation(villages(tmp_path, deadline=1.0).engine, NAMES)
    found = fed.gather({"hanging": fed["a0"].share(fault("hang")), "other": fed["a1"].profile()})
    assert list(found) == ["other"]
    after = fed["a0"].profile()
    log = fed.end_round()
    assert failures(log) == [
        ("a0", "share", "no answer within 1 s; its process was stopped"),
        ("a0", "profile", "its process was lost earlier in this round"),
    ]
    assert log.lost == ["a0"] and after.owner == "a0"
    assert isinstance(fed.fetch(fed["a0"].profile()), Profile)


def test_an_agent_hands_out_answers_while_it_works(tmp_path: Path, villages: Start) -> None:
    fed = Federation(villages(tmp_path, deadline=3.0).engine, NAMES)
    texts = fed["a0"].share(PICKS)
    fed["a0"].share(fault("hang"))
    began = time.monotonic()
    assert isinstance(fed.fetch(fed["a1"].accept(PICKS, texts)), Verdicts)
    assert time.monotonic() - began < 2.5
    fed.end_round()


@pytest.mark.parametrize(
    ("spec", "kind"), [({"refusal": "no model at /nowhere"}, ConfigError), ({"crash": "1"}, PeertuneError)]
)
def test_agents_that_cannot_be_built(tmp_path: Path, villages: Start, spec: dict[str, str], kind: type) -> None:
    with pytest.raises(kind, match=r"^a1: (no model at /nowhere$|its process ended while it loaded)"):
        villages(tmp_path, **spec)


def test_closing_leaves_no_process(tmp_path: Path, villages: Start) -> None:
    village = villages(tmp_path)
    for agent in (fed := Federation(village.engine, NAMES)).agents:
        agent.fit(1)
    fed.end_round()
    living = [int(path.read_text().split()[0]) for path in tmp_path.glob("*.trace")]
    assert len(living) == len(NAMES) and all(map(is_alive, living))
    village.close()
    assert not any(map(is_alive, living))


# Who may ask what


@pytest.fixture
def village(tmp_path: Path, villages: Start) -> Village:
    return villages(tmp_path, names=("a0", "a1"))


def question(village: Village, caller: str, message: post.Question) -> post.Answer:
    raw = village.sites["a0"].answer(caller, type(message).__name__.lower(), msgspec.msgpack.encode(message))
    return msgspec.msgpack.decode(raw, type=post.Answer)


@pytest.mark.parametrize("caller", ["a1", "stranger", "server"])
def test_only_the_coordinator_may_submit_drain_and_clear(village: Village, caller: str) -> None:
    order = post.Order(Ref("a0", 0, "fit"), [])
    for message in (post.Submit(SESSION, 0, [order]), post.Drain(SESSION, 0), post.Clear(SESSION, 0)):
        answer = question(village, caller, message)
        assert isinstance(answer, Refused) and f"{caller} may not" in answer.message
    assert not (Path(village.folder) / "a0.trace").exists()


def test_a_stranger_gets_nothing_and_an_agent_no_description(village: Village) -> None:
    assert isinstance(question(village, "stranger", post.Get(SESSION, 0, Ref("a0", 0, "share"), 0.0)), Refused)
    assert isinstance(question(village, "a1", post.Get(SESSION, 0, Ref("a0", post.FACTS, "facts"), 0.0)), Refused)


def test_a_question_of_another_session_or_for_another_agent_is_refused(village: Village) -> None:
    for message in (post.Drain("toys/2", 0), post.Get(SESSION, 0, Ref("a1", 0, "fit"), 0.0)):
        assert isinstance(question(village, COORDINATOR, message), Refused)


DEEP = b"\x82\xa4type\xa6Submit\xa4more" + b"\x91" * 100_000


@pytest.mark.parametrize(
    "raw", [b"", b"\xc1", b"\x81\xa4type\xa3Get", DEEP, msgspec.msgpack.encode(post.Clear(SESSION, 0))]
)
def test_bytes_that_are_no_question_are_refused(village: Village, raw: bytes) -> None:
    answer = msgspec.msgpack.decode(village.sites["a0"].answer(COORDINATOR, "submit", raw), type=post.Answer)
    assert isinstance(answer, Refused) and "not a valid message" in answer.message


@pytest.mark.parametrize("round", [-1, 1 << 32, 1 << 63])
def test_rounds_are_bounded(village: Village, round: int) -> None:
    for message in (post.Submit(SESSION, round, []), post.Clear(SESSION, round), post.Drain(SESSION, round)):
        answer = question(village, COORDINATOR, message)
        assert isinstance(answer, Refused) and "not a valid message" in answer.message
    assert question(village, COORDINATOR, post.Drain(SESSION, 0)) == post.Drained([], False)


def test_a_call_that_arrives_twice_runs_once(village: Village, tmp_path: Path) -> None:
    submit = post.Submit(SESSION, 0, [post.Order(Ref("a0", 7, "fit"), [Argument(None, encode(Number(1)))])])
    for _ in range(3):
        assert isinstance(question(village, COORDINATOR, submit), post.Accepted)
    drained = question(village, COORDINATOR, post.Drain(SESSION, 0))
    assert isinstance(drained, post.Drained) and [ref.id for ref, _ in drained.calls] == [7]
    assert question(village, COORDINATOR, post.Drain(SESSION, 0)) == drained
    question(village, COORDINATOR, post.Clear(SESSION, 0))
    question(village, COORDINATOR, post.Clear(SESSION, 0))
    question(village, COORDINATOR, submit)  # late, of a round that has ended
    assert question(village, COORDINATOR, post.Drain(SESSION, 1)) == post.Drained([], False)
    assert (tmp_path / "a0.trace").read_text().count("fit") == 1


def test_an_answer_that_is_kept_once_can_be_asked_for_again_by_whoever_lost_it(village: Village) -> None:
    """Only by the one that has it already: the line may fail after the site has let go."""
    site = village.sites["a0"]
    answers = [Value(encode(Gradient({"gradient/g": np.zeros(2, np.float32)}, step=1)))]
    site._round.seen.add(0)
    site._round.done[0] = (Ref("a0", 0, "split_loss"), Done([], None, (0.0, 0.0)))
    site._child.aside = lambda message: answers.pop()  # type: ignore[method-assign]
    get = post.Get(SESSION, 0, Ref("a0", 0, "split_loss"), 0.0)
    first = question(village, "a1", get)
    assert isinstance(first, Value) and question(village, "a1", get) == first and not answers


# Lines that fail


def test_a_line_that_fails_for_a_while_changes_nothing(village: Village) -> None:
    """Every second question is lost on its way there, or its answer on its way back."""
    lines, asked = village.lines(), itertools.count()

    def shaky(name: str) -> post.Line:
        def carry(verb: str, raw: bytes, seconds: float) -> bytes:
            turn = next(asked) % 4
            answer = b"" if turn == 0 else lines[name](verb, raw, seconds)
            if turn in (0, 2):
                raise ConnectionError("cut")
            return answer

        return carry

    fed = Federation(FlareEngine({name: shaky(name) for name in lines}, SESSION, patience=20.0), list(lines))
    for agent in fed.agents:
        agent.fit(3)
    profiles = fed.gather({agent.name: agent.profile() for agent in fed.agents})
    assert [profiles[name].values[0] for name in lines] == pytest.approx([FIT[name] for name in lines])
    assert not failures(fed.end_round())


def test_a_slow_line_gets_more_time_as_long_as_the_site_lives() -> None:
    given: list[float] = []
    needed = post.LONGEST + 100.0

    def slow(verb: str, raw: bytes, seconds: float) -> bytes:
        if verb == "get":
            return msgspec.msgpack.encode(post.Pending())
        given.append(seconds)
        if seconds < needed:
            raise TimeoutError("too slow")
        return msgspec.msgpack.encode(post.Accepted())

    assert post.ask(slow, post.Clear(SESSION, 0), 0.0) == post.Accepted()
    assert given == [post.LONGEST + transit for transit in post.TRANSIT[:3]]
    given.clear()
    needed = 1e9
    with pytest.raises(ConnectionError, match="too slow"):
        post.ask(slow, post.Clear(SESSION, 0), 0.0)
    assert given == [post.LONGEST + transit for transit in post.TRANSIT]


def test_a_line_with_nobody_at_its_end_is_given_up_at_once() -> None:
    asked: list[tuple[str, float]] = []

    def dead(verb: str, raw: bytes, seconds: float) -> bytes:
        asked.append((verb, seconds))
        raise TimeoutError("nothing")

    with pytest.raises(ConnectionError, match="nothing"):
        post.ask(dead, post.Clear(SESSION, 0), 0.0)
    assert asked == [("clear", post.LONGEST + post.TRANSIT[0]), ("get", post.BEAT)]


def test_a_sign_of_life_is_for_everybody_and_says_nothing(village: Village) -> None:
    sign = post.Get(SESSION, 0, Ref("", post.LIFE, ""), 0.0)
    assert question(village, "a1", sign) == question(village, COORDINATOR, sign) == post.Pending()
    assert post.alive(village.lines()["a0"], "another session")


def test_a_site_out_of_reach_fails_its_own_calls_and_nobody_elses(village: Village) -> None:
    cut: set[str] = set()

    def carry(name: str, verb: str, raw: bytes, seconds: float) -> bytes:
        if name in cut:
            raise ConnectionError("no route")
        return village.lines()[name](verb, raw, seconds)

    names = list(village.sites)
    fed = Federation(FlareEngine({name: partial(carry, name) for name in names}, SESSION, patience=0.5), names)
    cut.add("a0")
    found = fed.gather({"a0": fed["a0"].profile(), "a1": fed["a1"].profile()})
    assert list(found) == ["a1"]
    log = fed.end_round()
    assert failures(log) == [("a0", "profile", "a0 is out of reach: no route")] and log.lost == ["a0"]
    with pytest.raises(AgentError, match=r"a0\.profile failed: a0 is still out of reach"):
        fed.fetch(fed["a0"].profile())
    assert fed.end_round().lost == ["a0"]
    cut.clear()
    assert isinstance(fed.fetch(fed["a0"].profile()), Profile)


LIES = [
    Entry("done", {}),  # which would end the run
    Entry("metric", {"agent": "a1", "name": "memory", "value": math.nan}),
    Entry("metric", {"agent": "a1", "name": "memory"}),
    Entry("metric", {"agent": "a0", "name": "memory", "value": 1.0}),
    Entry("metric", {"agent": "a1", "name": "wealth", "value": 1.0}),
    Entry("transfer", {"source": "a1", "destination": "a0", "payload": "texts", "bytes": 1}),
    Entry("transfer", {"source": "a0", "destination": "a1", "payload": "texts", "bytes": -1}),
    Entry("failure", {"agent": "a0", "verb": "profile", "cause": "x" * (1 << 15)}),
]


def test_a_site_speaks_for_its_own_calls_only(village: Village) -> None:
    def carry(name: str, verb: str, raw: bytes, seconds: float) -> bytes:
        answer = village.lines()[name](verb, raw, seconds)
        found = msgspec.msgpack.decode(answer, type=post.Answer)
        if name == "a0" or not isinstance(found, post.Drained):
            return answer
        lies = [(Ref(owner, id, "profile"), Done([], None, (0.0, 0.0))) for owner, id in (("a0", 0), ("a1", 9))]
        for _, done in found.calls:
            done.rows += LIES
        return msgspec.msgpack.encode(msgspec.structs.replace(found, calls=found.calls + lies))

    names = list(village.sites)
    fed = Federation(FlareEngine({name: partial(carry, name) for name in names}, SESSION), names)
    fed.gather({"a0": fed["a0"].share(fault("raise")), "a1": fed["a1"].profile()})
    log = fed.end_round()
    assert [name for name, *_ in failures(log)] == ["a0", "a1"] and len(log.timings) == 2
    assert (
        failures(log)[1][-1] == f"its site said {len(LIES)} things of the call that no site can say; they are left out"
    )
    assert not any(row in LIES for row in log.rows)


NO_FACTS: list[list[dict[str, Any]]] = [
    [],
    [{"name": "a0"}],
    [described("a1")],
    [described("a0"), described("a0")],
    [described("a0") | {"note": "x"}],
    [described("a0") | {"model": "x" * 5000}],
    [described("a0") | {"family": "two\nlines"}],
    [described("a0") | {"fingerprint": 1}],
    [described("a0") | {"train": -1}],
    [described("a0") | {"parameters": 1 << 60}],
    [described("a0") | {"scale": math.nan}],
    [described("a0") | {"histogram": [math.inf]}],
    [described("a0") | {"histogram": [0.0] * 100}],
]


def describing(answer: Started | Refused) -> FlareEngine:
    """An engine whose one site, of a0, answers so whatever it is asked."""
    return FlareEngine({"a0": lambda verb, raw, seconds: msgspec.msgpack.encode(answer)}, SESSION)


def test_a_site_describes_its_own_agent() -> None:
    engine = describing(Started([described("a0")]))
    assert engine.facts == [described("a0")]
    engine.close()
    for facts in NO_FACTS:
        with pytest.raises(PeertuneError, match="^the site of a0 does not describe its agent$"):
            describing(Started(facts))


def test_what_a_site_says_of_a_call_is_bounded() -> None:
    ref = Ref("a1", 0, "profile")
    row = Entry("metric", {"agent": "a1", "name": "memory", "value": 1.0})
    found = account.checked(ref, Done([row] * (account.ROWS + 3), None, (0.0, 0.0))).rows
    assert found[:-1] == [row] * account.ROWS and "said 3 things" in found[-1].body["cause"]
    assert len(account.reason(Withheld(("a1", "profile", "x" * (1 << 20), "error"))).cause) == account.MOST


def test_what_a_site_says_of_its_refusal_is_bounded() -> None:
    for code, kind in ((1, PeertuneError), (2, ConfigError)):
        with pytest.raises(kind, match="^a0: xxx") as caught:
            describing(Refused("x" * (1 << 20), code))
        assert len(str(caught.value)) < 1 << 15


# The seal


class Envelope(Plain):
    """A seal that shows: it says what it is for, and opens nothing else."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.verdicts: list[str] = []

    def close(self, destination: str, round: int, raw: bytes, call: int = 0, verdict: str = "") -> bytes:
        self.seen.append(raw)
        self.verdicts.append(verdict)
        return f"{round}:{call}:".encode() + raw[::-1]

    def open(self, source: str, round: int, sealed: bytes, call: int = 0) -> bytes:
        label = f"{round}:{call}:".encode()
        if not sealed.startswith(label):
            raise PayloadError(f"{source} sealed this for something else")
        return sealed.removeprefix(label)[::-1]


def test_what_goes_to_another_agent_is_sealed_and_what_goes_to_the_coordinator_is_not(
    tmp_path: Path, villages: Start
) -> None:
    envelope = Envelope()
    fed = Federation(villages(tmp_path, seal=envelope).engine, NAMES)
    fed.fetch(fed["a0"].profile())
    assert isinstance(fed.fetch(fed["a1"].accept(PICKS, fed["a0"].share(PICKS))), Verdicts)
    assert [kind_of(raw) for raw in envelope.seen] == ["texts"] and envelope.verdicts == ["examined by a0"]
    envelope.close = lambda destination, round, raw, call=0, verdict="": Envelope.close(  # type: ignore
        envelope, destination, round, raw, call + 1
    )
    with pytest.raises(
        AgentError, match=r"a0\.share failed: its answer is not valid: a0 sealed this for something else"
    ):
        fed.fetch(fed["a2"].accept(PICKS, fed["a0"].share(PICKS)))
