"""Central baselines: the right text is elected, everybody is taught it, the coordinator sees what it says it sees."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import bodies, last_checkpoint, make_models, resume, run, small_config

from peertune.agent import Agent
from peertune.assemble import Spec, build_agents
from peertune.engines.base import Resident
from peertune.engines.local import LocalEngine
from peertune.errors import MethodError
from peertune.experiment import Experiment, Interrupted
from peertune.federation import NEVER, Federation
from peertune.ledger import COORDINATOR, Ledger
from peertune.methods import Budget, Centralised, CentralText, Run
from peertune.methods.base import Public
from peertune.methods.central_text import Offer, elect, normalised
from peertune.payloads import (
    Change,
    Claims,
    Gain,
    Number,
    Payload,
    Picks,
    Texts,
    Verdicts,
    encode,
)

GAIN = Gain(Change(2.0, 1.5, 0.1), Change(3.0, 2.0, 0.2), 4.0, True)
RUN = Run(rounds=5, seed=0, budget=Budget(3, 7), transfer=(Public("x", True),) * 4)
RIGHT, WRONG = "\n    return xs[:3]", "\n    return xs"


class Part(msgspec.Struct):
    """What an agent plays: its drafts as [text, surprise], by problem; `settled`: problems; `fault`: of a verb."""

    drafts: dict[int, tuple[str, int]] = {}
    settled: tuple[int, ...] = ()
    texts: str = "everyone"
    fault: str = ""


@dataclass
class Planted:
    """An agent of planted texts; keeps what it was told."""

    name: str
    part: Part
    heard: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def call(self, verb: str, args: list[Payload]) -> Payload | None:
        values = tuple(arg.value if isinstance(arg, Number) else arg for arg in args)
        self.heard.append((verb, values))
        if self.part.fault == verb:
            raise ValueError("no")
        short = 1 if self.part.fault == f"short {verb}" else 0
        return getattr(self, f"do_{verb}")(short, *values)

    def do_fit(self, short: int, steps: int) -> None:
        pass

    def do_draft(self, short: int, which: Picks, *gates: float) -> Claims:
        items = which.items[short:]
        surprise = tuple(self.part.drafts.get(problem, ("", 9999))[1] for problem in items)
        offered = tuple(int(problem in self.part.drafts) for problem in items)
        return Claims(surprise, offered, tuple(int(problem in self.part.settled) for problem in items))

    def do_share(self, short: int, which: Picks) -> Texts:
        return Texts(tuple(self.part.drafts[problem][0] for problem in which.items[short:]))

    def do_accept(self, short: int, which: Picks, texts: Texts, tested: int) -> Verdicts:
        return Verdicts(tuple(int(text != WRONG) for text in texts.items[short:]))

    def do_learn(self, short: int, *args: float) -> Gain:
        return GAIN

    def may_pull(self, kind: str, caller: str) -> bool:
        return kind != "texts" or self.part.texts == "everyone" or caller != COORDINATOR

    def outgoing(self, payload: Payload) -> tuple[Payload, str]:
        return payload, "not examined"

    def take_metrics(self) -> list[tuple[str, float]]:
        return []

    def log_path(self) -> None:
        return None

    def told(self, verb: str) -> list[tuple[Any, ...]]:
        return [values for heard, values in self.heard if heard == verb]


CAST: dict[str, Planted] = {}


def build(raw: bytes, names: list[str]) -> tuple[dict[str, Resident], list[dict[str, Any]]]:
    parts = msgspec.json.decode(raw, type=dict[str, Part])
    CAST.clear()
    CAST.update({name: Planted(name, parts[name]) for name in names})
    return dict(CAST), [{"name": name} for name in names]


def play(method: Any, t: int = 1, **parts: Part) -> list[Any]:
    """One round of `method`; the rows of the ledger."""
    engine = LocalEngine("test_central:build", msgspec.json.encode(parts), [list(parts)], inline=True)
    fed = Federation(engine, list(parts))
    state = method.round(method.init(fed), fed, t)
    assert state == {}
    rows = fed.end_round().rows
    engine.close()
    return rows


def of_kind(rows: list[Any], kind: str) -> list[dict[str, Any]]:
    return [row.body for row in rows if row.kind == kind]


# The election


SPLIT = [Offer("a", "p", 300), Offer("b", "q  # why not", 100), Offer("c", " q", 200), Offer("d", "r", 50)]


@pytest.mark.parametrize(("vote", "winner"), [("confidence", "d"), ("majority", "b"), ("fedid", "b")])
def test_who_wins(vote: Any, winner: str) -> None:
    assert elect(SPLIT, vote).source == winner


def test_a_confident_author_outweighs_two_that_are_unsure() -> None:
    offers = [Offer("a", "p", 2000), Offer("b", "p", 2000), Offer("c", "q", 100)]  # 2 * e^-2 = .27 against e^-.1 = .90
    assert elect(offers, "majority").text == "p" and elect(offers, "fedid").text == "q"


def test_a_tie_goes_to_the_surest_author_then_to_the_first() -> None:
    assert elect([Offer("a", "p", 200), Offer("b", "q", 100)], "majority").source == "b"
    for vote in ("majority", "confidence", "fedid"):
        assert elect([Offer("a", "p", 100), Offer("b", "q", 100)], vote).source == "a"


def test_the_elected_text_keeps_its_indentation() -> None:
    text = "\n    if xs:\n        return 1\n    return 2"
    offers = [Offer("a", text, 10), Offer("b", "\nif xs:\n  return   1 # one\n\n  return 2", 500), Offer("c", WRONG, 5)]
    assert elect(offers, "fedid").text == elect(offers, "majority").text == text


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("  a  =  1\n\n\tb", "a = 1\nb"),
        ("a # one\n# two\n  #\nb", "a\nb"),
        ("use #1 and #2", "use #1 and #2"),
        ("x #", "x"),
        ("", ""),
    ],
)
def test_normalised(text: str, form: str) -> None:
    assert normalised(text) == form


@given(st.lists(st.builds(Offer, st.sampled_from("abc"), st.text("pq# \n"), st.integers(0, 9)), min_size=1))
def test_the_winner_is_one_of_the_offers_unchanged(offers: list[Offer]) -> None:
    for vote in ("confidence", "majority", "fedid"):
        assert elect(offers, vote) in offers
    assert elect(offers, "confidence").surprise == min(offer.surprise for offer in offers)


# A round on planted texts


def test_everybody_is_taught_the_surest_text_of_each_problem() -> None:
    rows = play(
        CentralText(run=RUN),
        a=Part({0: (RIGHT, 100), 1: ("one", 900)}),
        b=Part({0: ("zero", 500), 1: ("uno", 300), 3: (WRONG, 10)}),
        c=Part(),
    )
    chosen = (Picks((0, 1, 3)), Texts((RIGHT, "uno", WRONG)), 1)
    assert {name: agent.told("accept") for name, agent in CAST.items()} == dict.fromkeys("abc", [chosen])
    pairs = {(each["source"], each["receiver"]): (each["texts"], each["useful"]) for each in of_kind(rows, "pair")}
    assert pairs == {("a", "b"): (1, 1), ("a", "c"): (1, 1), ("b", "a"): (2, 1), ("b", "c"): (2, 1)}
    assert {each["reward"] for each in of_kind(rows, "pair")} == {1.0 - 0.004}
    assert not of_kind(rows, "failure")


def test_what_goes_up_what_comes_down_and_how_many_bytes() -> None:
    rows = play(CentralText(run=RUN), a=Part({0: (RIGHT, 100), 1: ("one", 900)}), b=Part({1: ("uno", 300)}))
    texts = [
        (each["source"], each["destination"], each["bytes"])
        for each in of_kind(rows, "transfer")
        if each["payload"] == "texts"
    ]
    up, down = len(encode(Texts((RIGHT, "one")))), len(encode(Texts((RIGHT, "uno"))))
    assert texts == [
        ("a", COORDINATOR, up),
        ("b", COORDINATOR, len(encode(Texts(("uno",))))),
        (COORDINATOR, "a", down),
        (COORDINATOR, "b", down),
    ]
    came = {each["payload"] for each in of_kind(rows, "transfer") if each["destination"] == COORDINATOR}
    assert came == {"claims", "texts", "verdicts", "gain"}


def test_a_receiver_is_not_sent_what_it_has_settled() -> None:
    parts = {"a": Part({0: (RIGHT, 100)}, settled=(0, 1)), "b": Part({1: ("uno", 300)}, settled=(1,))}
    play(CentralText(run=RUN), **parts)
    assert CAST["a"].told("accept") == []
    assert CAST["b"].told("accept") == [(Picks((0,)), Texts((RIGHT,)), 1)]
    assert len(CAST["a"].told("learn")) == 1  # from its own texts
    play(CentralText(run=RUN, skip_settled=False), **parts)
    both = [(Picks((0, 1)), Texts((RIGHT, "uno")), 1)]
    assert CAST["a"].told("accept") == CAST["b"].told("accept") == both


def test_gates_and_updates_are_those_of_every_exchange_of_texts() -> None:
    gates = {"tested": False, "confident": True, "keep_best": False, "rollback": 0.25, "temperature": 0.5}
    play(CentralText(run=RUN, kd_weight=(0.0, 0.4), **gates), t=3, a=Part({0: (RIGHT, 1)}), b=Part())
    for agent in CAST.values():
        assert [verb for verb, _ in agent.heard if verb in ("fit", "learn")] == ["fit", "learn"]
        assert agent.told("fit") == [(3,)]
        assert agent.told("draft") == [(Picks((0, 1, 2, 3)), 0.5, 1, 0)]
        assert agent.told("accept")[0][2] == 0
        assert agent.told("learn") == [(0.2, 7, 0.25, 0)]
    play(CentralText(run=RUN), a=Part({0: (RIGHT, 1)}), b=Part())
    assert CAST["b"].told("learn") == [(0.2, 7, NEVER, 1)]


@pytest.mark.parametrize("fault", ["draft", "share", "accept", "short draft", "short share", "short accept"])
def test_a_failing_agent_costs_its_own_texts_only(fault: str) -> None:
    rows = play(
        CentralText(run=RUN),
        a=Part({0: ("best", 1), 1: ("best", 1)}, fault=fault),
        b=Part({0: (RIGHT, 100)}),
        c=Part({1: ("uno", 300)}),
    )
    (failure,) = of_kind(rows, "failure")
    assert (failure["agent"], failure["verb"]) == ("a", fault.removeprefix("short "))
    if fault.startswith("short"):
        asked = {"draft": 4, "share": 2, "accept": 2}[failure["verb"]]
        assert failure["cause"] == f"its answer has {asked - 1} entries for {asked} problems"
    taught = Texts(("best", "best")) if "accept" in fault else Texts((RIGHT, "uno"))
    assert CAST["b"].told("accept") == CAST["c"].told("accept") == [(Picks((0, 1)), taught, 1)]
    assert len(CAST["b"].told("learn")) == len(CAST["c"].told("learn")) == 1


def test_an_agent_that_keeps_its_texts_from_the_coordinator_teaches_nobody() -> None:
    rows = play(CentralText(run=RUN), a=Part({0: ("best", 1)}, texts="agents"), b=Part({0: (RIGHT, 100)}))
    (failure,) = of_kind(rows, "failure")
    assert "a does not release texts to coordinator" in failure["cause"]
    assert CAST["a"].told("accept") == [(Picks((0,)), Texts((RIGHT,)), 1)]


def test_nobody_offers_anything() -> None:
    rows = play(CentralText(run=RUN), a=Part(), b=Part({0: ("   ", 5)}))
    assert not of_kind(rows, "failure") and not of_kind(rows, "pair")
    assert len(CAST["a"].told("learn")) == 1 and not CAST["a"].told("accept")


def test_agents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MethodError, match="at least 2 agents, found 1"):
        CentralText(run=RUN).check([{}])
    with pytest.raises(MethodError, match="needs public prompts"):
        CentralText(run=Run(1, 0, Budget(1, 1), ())).check([{}, {}])


# On true models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return make_models(tmp_path_factory.mktemp("models"))


RELEASED = {"texts": "everyone", "records": "agents"}
ARMS = {
    "pool": "centralised",
    "vote": {"type": "central_text", "vote": "fedid", "tested": False},
}


def federation(models: dict[str, str], **changes: Any) -> Any:
    agents = [{"model": models[name], "release": RELEASED} for name in ("llama", "gpt2", "llama")]
    return small_config(models, **{"agents": agents, "baselines": ARMS, "method": {"type": "knexa"}, **changes})


@pytest.fixture(scope="module")
def ledger(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    ledger = run(tmp_path_factory.mktemp("runs") / "run", federation(models))
    yield ledger
    ledger.close()


def payloads_to(ledger: Ledger, arm: str, to_coordinator: bool) -> set[str]:
    rows = [event.body for event in ledger.events("transfer", arm) if event.phase == "round"]
    return {
        each["payload"]
        for each in rows
        if each["source"] != COORDINATOR and (each["destination"] == COORDINATOR) == to_coordinator
    }


def test_the_coordinator_sees_texts_and_agents_see_each_other_not_at_all(ledger: Ledger) -> None:
    assert not bodies(ledger, "failure")
    assert payloads_to(ledger, "vote", True) == {"texts", "claims", "verdicts", "gain"}
    assert payloads_to(ledger, "vote", False) == set()
    assert "texts" not in payloads_to(ledger, "knexa", True)


def test_updates_are_equal_to_those_of_the_method_it_is_compared_with(ledger: Ledger) -> None:
    def updates(arm: str) -> list[tuple[str, float]]:
        rows = [each for each in bodies(ledger, "metric", arm) if each["name"] == "exchange_updates"]
        return sorted((each["agent"], each["value"]) for each in rows)

    assert updates("vote") == updates("knexa") == [(f"a{at // 2}", 2.0) for at in range(6)]
    assert updates("pool") == [(f"a{at // 2}", 3.0) for at in range(6)]  # all its steps are on everybody's data
    assert updates("start") == []


def test_untested_texts_are_taught_to_all_and_recorded(ledger: Ledger) -> None:
    pairs = bodies(ledger, "pair", "vote")
    assert pairs and all(each["source"] != each["receiver"] and each["texts"] == each["useful"] for each in pairs)
    assert {each["predicted"] for each in pairs} == {None}


# All data in one place


def built(models: dict[str, str], folder: Path, **changes: Any) -> list[Any]:
    """The agents of `federation`, without a run around them."""
    config = federation(models, **changes)
    agents, _ = build_agents(msgspec.json.encode(Spec(config.model_dump_json(), str(folder))), config.agent_names())
    return list(agents.values())


def adapter(agent: Any) -> dict[str, list[float]]:
    return {name: array.tolist() for name, array in agent.call("adapter", []).tensors.items()}


def test_a_pooled_fit_is_a_fit_on_the_data_of_all(models: dict[str, str], tmp_path: Path) -> None:
    pooling, alone, owner = built(models, tmp_path / "p")[0], *built(models, tmp_path / "o")[:2]
    theirs = owner.call("records", [])
    assert [(item.prompt, item.completion) for item in theirs.items] == [
        (example.prompt, example.completion) for example in owner._data.train
    ]
    pooling.call("pool", [theirs])
    added = [alone._learner.encode(item.prompt, item.completion) for item in theirs.items]
    alone._train = [*alone._train, *added]
    for agent in (pooling, alone):
        agent.call("fit", [Number(6)])
    assert adapter(pooling) == adapter(alone)


def test_what_was_pooled_serves_one_fit_only(models: dict[str, str], tmp_path: Path) -> None:
    pooling, alone, owner = built(models, tmp_path / "p")[0], *built(models, tmp_path / "o")[:2]
    theirs = owner.call("records", [])
    receipt = pooling.call("checkpoint", [Texts(())])
    for forget in (("fit", [Number(0)]), ("restore", [receipt])):
        pooling.call("pool", [theirs])
        pooling.call(*forget)
    for agent in (pooling, alone):
        agent.call("fit", [Number(6)])
    assert adapter(pooling) == adapter(alone)


def test_records_go_from_everybody_to_everybody_and_never_to_the_coordinator(ledger: Ledger) -> None:
    moved = [each for each in bodies(ledger, "transfer", "pool") if each["payload"] == "records"]
    names = ("a0", "a1", "a2")
    links = sorted((source, receiver) for source in names for receiver in names if source != receiver)
    assert sorted((each["source"], each["destination"]) for each in moved) == sorted(2 * links)  # two rounds
    assert len({(each["source"], each["bytes"]) for each in moved}) == 3
    assert payloads_to(ledger, "pool", True) == set()
    for arm in ("vote", "knexa"):
        assert "records" not in payloads_to(ledger, arm, False)


def test_the_pool_ends_with_its_arm(models: dict[str, str], ledger: Ledger, tmp_path: Path) -> None:
    """The arms after `centralised` are what they are without it."""
    alone = run(tmp_path / "run", federation(models, baselines={"vote": ARMS["vote"]}))
    for arm in ("vote", "knexa"):
        assert last_checkpoint(alone, arm).body == last_checkpoint(ledger, arm).body
    assert last_checkpoint(ledger, "pool").body["agents"] != last_checkpoint(ledger, "vote").body["agents"]


def test_an_interrupted_arm_ends_as_if_it_had_not_been(models: dict[str, str], ledger: Ledger, tmp_path: Path) -> None:
    def watch(event: str, body: dict[str, Any]) -> None:
        if event == "begin" and (body["arm"], body["round"]) == ("pool", 1):
            experiment.request_stop()

    experiment = Experiment.create(tmp_path / "run", federation(models), watch)
    with pytest.raises(Interrupted):
        experiment.run()
    assert resume(tmp_path / "run").head == ledger.head


def test_a_source_that_gives_nothing_costs_its_own_examples_only(models: dict[str, str], tmp_path: Path) -> None:
    agents = [{"model": models["llama"], "release": RELEASED} for _ in range(3)]
    config = federation(models, agents=agents, method="centralised", baselines={}, task={"transfer": 96})
    experiment = Experiment.create(tmp_path / "run", config, lambda event, body: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agent, "records", _refuse_if_a1(Agent.records))
        experiment.run()
    ledger = Ledger.read(tmp_path / "run" / "ledger.sqlite")
    assert {(each["agent"], each["verb"]) for each in bodies(ledger, "failure")} == {("a1", "records")}
    moved = [
        (each["source"], each["destination"]) for each in bodies(ledger, "transfer") if each["payload"] == "records"
    ]
    assert set(moved) == {("a0", "a1"), ("a0", "a2"), ("a2", "a0"), ("a2", "a1")}
    losses = [each["agent"] for each in bodies(ledger, "metric", "centralised") if each["name"] == "train_loss"]
    assert sorted(losses) == sorted(2 * ["a0", "a1", "a2"])


def _refuse_if_a1(original: Any) -> Any:
    def records(agent: Agent) -> Any:
        if agent.name == "a1":
            raise ValueError("no")
        return original(agent)

    return records


def test_an_agent_may_refuse_whatever_the_method_asks(models: dict[str, str], tmp_path: Path) -> None:
    agents = [{"model": models["llama"], "release": {"texts": "everyone"}}] * 2
    assert not built(models, tmp_path, agents=agents, baselines={})[0].may_pull("records", "a1")


def test_chats_are_refused_because_each_model_has_its_own_template() -> None:
    method = Centralised(run=RUN)
    method.check([{"name": "a", "chats": 0}, {"name": "b", "chats": 0}])
    with pytest.raises(MethodError, match="4 of b are chats in its own model's template; give them as prompt"):
        method.check([{"name": "a", "chats": 0}, {"name": "b", "chats": 4}])


# A server model


def test_a_server_learns_what_was_elected_and_teaches_what_it_writes(models: dict[str, str], tmp_path: Path) -> None:
    fedid = {"type": "central_text", "vote": "fedid", "tested": False, "server_model": True, "keep_best": False}
    agents = [{"model": models[name], "release": {"texts": "everyone"}} for name in ("llama", "gpt2")]
    config = small_config(models, agents=agents, method=fedid, server={"model": models["llama"]})
    ledger = run(tmp_path / "run", config)
    moved = [event.body for event in ledger.events("transfer", "central_text") if event.phase == "round"]
    assert [body["destination"] for body in moved if (body["source"], body["payload"]) == ("server", "texts")] == [
        COORDINATOR
    ] * 2
    assert len([body for body in moved if (body["destination"], body["payload"]) == ("server", "texts")]) == 2
    assert {body["source"] for body in bodies(ledger, "pair")} == {"server"}
    assert not bodies(ledger, "failure")
    before, after = bodies(ledger, "server_scores")
    assert before["metrics"]["test_loss"] != after["metrics"]["test_loss"]


def test_a_server_model_needs_a_server(models: dict[str, str]) -> None:
    agents = [{"model": models["llama"], "release": {"texts": "everyone"}}] * 2
    with pytest.raises(ValueError, match="central_text: `server_model` needs a server; add a section `server:"):
        small_config(models, agents=agents, method={"type": "central_text", "server_model": True})
    with pytest.raises(MethodError, match="needs a server, the run has none"):
        CentralText(run=RUN, server_model=True).check([{}, {}])
