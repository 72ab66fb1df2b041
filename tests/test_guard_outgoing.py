"""What leaves an agent is what its guard let go; of the rest only rules and counts are told."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import inspect
from small import ROUTED, bodies, make_models, run, small_config
from sums import call, make_agent, plant

from peertune.agent import Agent
from peertune.agent.learner import Learner
from peertune.assemble import rules_of
from peertune.config.guarding import Guarding
from peertune.engines.base import METRICS, Argument, Host, Ref
from peertune.errors import AgentError
from peertune.guard.outgoing import GROUPS, Blocked, Guard, Rules
from peertune.identity import identity
from peertune.ledger import COORDINATOR
from peertune.lm.model import LanguageModel
from peertune.payloads import PAYLOADS, Number, Picks, Record, Records, Texts, Verdicts, decode, encode

MAIL = "anna.canary@clinic.org"
TOKEN = "ghp_" + "0aB1" * 9
PRIVATE = "The patient of ward seven was moved to the clinic by the lake on the second of May, when her fever fell."
CAREFUL = Rules(secrets="redact", personal="redact", copies="redact")
BLOCKING = Rules(secrets="block", personal="block", copies="block")


def guard_of(rules: Rules) -> Guard:
    return Guard({"texts": rules, "records": rules}, [PRIVATE], ["a prompt that everybody has"])


# Policies


@pytest.mark.parametrize("rules", [CAREFUL, BLOCKING, Rules()])
def test_where_nothing_is_found_the_payload_is_the_same_object(rules: Rules) -> None:
    for payload in (Texts(("def f(x):\n    return x + 1", "", "Grüße")), Records((Record("a", "b"),)), Verdicts((1,))):
        assert guard_of(rules).check(payload)[0] is payload


@pytest.mark.parametrize(
    ("text", "left", "verdict"),
    [
        (f"write to {MAIL}.", "write to [email].", "redacted: personal.email 1"),
        (f"{TOKEN} {TOKEN}", "[secret] [secret]", "redacted: secrets.github 2"),
        (f"He said: {PRIVATE}", "[copy]", "redacted: copies.copy 1"),
        (f"https://anna:{TOKEN}@clinic.org", "https[secret]", "redacted: personal.email 1, secrets.basic_auth 1"),
        ("nothing to see", "nothing to see", "nothing found"),
    ],
)
def test_what_is_found_is_taken_out_and_counted(text: str, left: str, verdict: str) -> None:
    guard = guard_of(CAREFUL)
    payload, found = guard.check(Texts(("first", text)))
    assert payload == Texts(("first", left)) and str(found) == verdict
    assert guard.check(payload)[0] is payload
    assert guard.passes("texts", text) is (text == left)


def test_each_group_has_its_own_rule() -> None:
    text = f"{TOKEN} {MAIL} and then she went on to tell us this: {PRIVATE}"
    for group in GROUPS:
        payload, verdict = guard_of(replace(Rules(), **{group: "redact"})).check(Texts((text,)))
        assert isinstance(payload, Texts)
        there = [part in payload.items[0] for part in (TOKEN, MAIL, PRIVATE[40:80])]
        assert there == [each != group for each in GROUPS]
        assert [verdict.of(each) for each in GROUPS] == [int(each == group) for each in GROUPS]


def test_what_is_blocked_is_named_by_rule_and_count() -> None:
    with pytest.raises(Blocked) as caught:
        guard_of(BLOCKING).check(Texts((f"{TOKEN} {MAIL}", f"or b{MAIL}", PRIVATE)))
    assert str(caught.value) == (
        "its guard holds back texts: copies.copy 1, personal.email 2, secrets.github 1; see `guard` in its "
        "configuration"
    )
    assert caught.value.code == "blocked"


def test_one_group_that_blocks_stops_what_another_would_redact() -> None:
    guard = guard_of(Rules(secrets="block", personal="redact"))
    assert guard.check(Texts((MAIL,)))[0] == Texts(("[email]",))
    with pytest.raises(Blocked, match=r"its guard holds back texts: secrets\.github 1;"):
        guard.check(Texts((MAIL, TOKEN)))


def test_records_are_guarded_on_both_sides() -> None:
    payload, verdict = guard_of(CAREFUL).check(Records((Record(f"to {MAIL}", f"{MAIL}: {TOKEN}"),)))
    assert payload == Records((Record("to [email]", "[email]: [secret]"),))
    assert str(verdict) == "redacted: personal.email 2, secrets.github 1"


def test_a_kind_without_rules_is_not_examined() -> None:
    payload, verdict = Guard({"records": CAREFUL}).check(Texts((MAIL,)))
    assert payload == Texts((MAIL,)) and str(verdict) == "not examined"
    assert str(guard_of(CAREFUL).check(Verdicts((1,)))[1]) == "not examined"


def has_free_text(kind: Any) -> bool:
    """Does a value of this type hold text that is no name, choice or pattern? Keys of a dict are names."""
    match kind:
        case inspect.StrType():
            return kind.pattern is None and (kind.max_length is None or kind.max_length > 200)
        case inspect.StructType():
            return any(has_free_text(field.type) for field in kind.fields)
        case inspect.VarTupleType():
            return has_free_text(kind.item_type)
        case inspect.DictType():
            return has_free_text(kind.value_type)
        case inspect.UnionType():
            return any(map(has_free_text, kind.types))
    return False


def test_no_payload_kind_with_text_escapes_the_guard() -> None:
    with_text = {name for name, kind in PAYLOADS.items() if has_free_text(inspect.type_info(kind))}
    assert with_text == {"texts", "records"} == set(Guarding.model_fields)
    for name in with_text:
        assert set(Guarding.model_fields[name].default.model_dump()) <= set(GROUPS)


# At the host, with true agents


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return make_models(tmp_path_factory.mktemp("models"))


WHICH = Picks((0, 1))  # 1 + 1 and 2 + 2


@pytest.fixture
def pair(models: dict[str, str], tmp_path: Path) -> dict[str, Agent]:
    """Two agents; a has drafted a text with a canary, and one without."""
    lm = LanguageModel.load(models["llama"])
    agents = {name: make_agent(lm, tmp_path, name, tested=False) for name in "ab"}
    plant(agents["a"], {1: f"2, says {MAIL}", 2: "4"})
    call(agents["a"], "draft", WHICH, 0.0, 0, 0)
    return agents


def under(agent: Agent, rules: Rules) -> Host:
    agent._guard = Guard({"texts": rules})
    agent._desk._may_leave = partial(agent._guard.passes, "texts")
    return Host({agent.name: agent})


def shared(host: Host, agents: dict[str, Agent]) -> tuple[list[Any], AgentError | None]:
    """a shares, b accepts: the rows of both, and why it failed."""
    host.agents = agents
    rows, failure = host.run(SHARE, [Argument(None, encode(WHICH))])
    untested = Argument(None, encode(Number(0)))
    more, later = host.run(ACCEPT, [Argument(None, encode(WHICH)), Argument(SHARE, None), untested])
    return rows + more, failure or later


SHARE, ACCEPT = Ref("a", 1, "share"), Ref("b", 2, "accept")


def test_a_canary_does_not_arrive_and_the_bytes_are_those_that_left(pair: dict[str, Agent]) -> None:
    host = under(pair["a"], CAREFUL)
    rows, failure = shared(host, pair)
    assert failure is None
    raw = host.release(SHARE, "b")
    assert decode(raw) == Texts(("2, says [email]", "4"))
    (transfer,) = [row.body for row in rows if row.kind == "transfer"]
    assert transfer == {"source": "a", "destination": "b", "payload": "texts", "bytes": len(raw)}
    metrics = {(row.body["agent"], row.body["name"]): row.body["value"] for row in rows if row.kind == "metric"}
    assert {key: value for key, value in metrics.items() if "redacted" in key[1]} == {("a", "personal_redacted"): 1.0}
    assert host.verdict(SHARE) == "redacted: personal.email 1"
    assert {lesson.text for lesson in pair["b"]._record.lessons.values()} == {"2, says [email]", "4"}


def test_an_agent_without_rules_sends_what_it_wrote(pair: dict[str, Agent]) -> None:
    host = under(pair["a"], Rules())
    _, failure = shared(host, pair)
    assert failure is None and host.verdict(SHARE) == "not examined"
    assert {lesson.text for lesson in pair["b"]._record.lessons.values()} == {f"2, says {MAIL}", "4"}


def test_a_blocked_answer_is_a_failure_of_its_author(pair: dict[str, Agent]) -> None:
    host = under(pair["a"], BLOCKING)
    rows, failure = shared(host, pair)
    cause = "its guard holds back texts: personal.email 1; see `guard` in its configuration"
    assert failure and (failure.agent, failure.verb, failure.cause, failure.code) == ("a", "share", cause, "blocked")
    failures = [row.body for row in rows if row.kind == "failure"]
    assert failures == [{"agent": "a", "verb": "share", "cause": cause}] * 2
    assert not [row for row in rows if row.kind == "transfer"]
    for caller in ("b", COORDINATOR, "a"):
        with pytest.raises(AgentError, match="holds back"):
            host.release(SHARE, caller)
    assert not pair["b"]._record.lessons
    host.clear()
    assert host.verdict(SHARE) == ""


@pytest.mark.parametrize("rules", [CAREFUL, BLOCKING])
def test_what_the_author_expected_of_a_guarded_text_stays_at_home(pair: dict[str, Agent], rules: Rules) -> None:
    """From the logits of its tokens the text can be read."""
    under(pair["a"], Rules())
    free = call(pair["a"], "express", WHICH, 4).knowledge()
    under(pair["a"], rules)
    kept = call(pair["a"], "express", WHICH, 4).knowledge()
    assert free.lengths[0] > 0 and kept.lengths[0] == 0
    assert kept.lengths[1] == free.lengths[1]


# In a run


ROUND = {"rounds": 1, "evaluation": {"every": 1}, "method": ROUTED, "task": {"transfer": 3, "probe": 2, "test": 2}}


def test_in_a_run_a_canary_arrives_only_from_who_has_no_rule(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every model writes a canary; a0 has the default guard, a1 none, a2 one that blocks."""
    monkeypatch.setattr(Learner, "complete", lambda learner, problems, sampling: [f"  return '{MAIL}'"] * len(problems))
    sent: dict[str, set[str]] = {name: set() for name in ("a0", "a1", "a2")}
    release = Host.release

    def noted(host: Host, ref: Ref, caller: str) -> bytes:
        raw = release(host, ref, caller)
        if raw and isinstance(payload := decode(raw), Texts):
            sent[ref.owner] |= set(payload.items)
        return raw

    monkeypatch.setattr(Host, "release", noted)
    rules = [None, {"texts": {"personal": "off"}}, {"texts": {"personal": "block"}}]
    agents = [{"model": models["llama"], **({"guard": each} if each else {})} for each in rules]
    ledger = run(tmp_path / "run", small_config({}, "", agents=agents, **ROUND))
    assert sent == {"a0": {"  return '[email]'\n"}, "a1": {f"  return '{MAIL}'\n"}, "a2": set()}
    assert {body["agent"] for body in bodies(ledger, "metric") if body["name"] == "personal_redacted"} == {"a0"}
    failures = bodies(ledger, "failure")
    assert {(body["agent"], body["verb"]) for body in failures} == {("a2", "share")}
    assert all("its guard holds back texts: personal.email" in body["cause"] for body in failures)
    for path in (tmp_path / "run").glob("*"):  # the run's own files; an agent's are in a folder
        assert path.is_dir() or MAIL.encode() not in path.read_bytes(), path


def test_where_nothing_is_found_a_guard_changes_nothing(models: dict[str, str], tmp_path: Path) -> None:
    def events(folder: str, **rules: str) -> list[Any]:
        ledger = run(tmp_path / folder, small_config(models, "llama gpt2", guard={"texts": rules}, **ROUND))
        return [(event.kind, event.arm, event.round, event.body) for event in ledger.events() if event.kind != "run"]

    with_guard = events("on", copies="redact")
    assert with_guard == events("off", secrets="off", personal="off")
    assert [body for kind, _, _, body in with_guard if kind == "transfer" and body["payload"] == "texts"]


# In the configuration


def test_the_guard_is_an_agents_own_or_the_runs(models: dict[str, str]) -> None:
    agents = [{"model": models["llama"]}, {"model": models["llama"], "guard": {"texts": {"copies": "block"}}}]
    config = small_config({}, "", agents=agents, guard={"texts": {"personal": "block"}})
    rules = [rules_of(party.guard or config.guard)["texts"] for party in config.parties().values()]
    assert rules == [Rules("redact", "block", "off"), Rules("redact", "redact", "block")]


def test_the_default_guard_is_no_part_of_a_runs_identity(models: dict[str, str]) -> None:
    """Runs that began before there was a guard go on."""
    agents = [{"model": models["llama"]}] * 2
    plain = identity(small_config({}, "", agents=agents), [], None, [])
    assert "guard" not in json.dumps(plain["config"])
    other = identity(small_config({}, "", agents=agents, guard={"records": {"personal": "off"}}), [], None, [])
    assert other["config"]["guard"]["records"] == {"secrets": "redact", "personal": "off"}


def test_what_a_guard_took_out_may_be_told(models: dict[str, str]) -> None:
    assert {f"{group}_redacted" for group in GROUPS} <= set(METRICS)
