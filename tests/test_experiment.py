"""Runs from start to end on tiny true models: the same whatever the workers, and fair to all arms."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from experiment_parts import TWO, spoil
from small import PAPER, ROUTED, bodies, last_checkpoint, make_models, run, small_config
from tiny import make_tiny_model

from peertune.agent import VERBS, Agent
from peertune.assemble import BUILDER, Spec
from peertune.engines.local import LocalEngine
from peertune.errors import AgentError, ConfigError
from peertune.experiment import Experiment
from peertune.federation import Federation
from peertune.ledger import Ledger
from peertune.matchmakers.linucb import LinUCB
from peertune.payloads import Picks

BASELINES = {"local": "local", "random": PAPER | {"matchmaker": "uniform"}, "routed": ROUTED}
ROUNDS = 3


@dataclass
class Spy:
    """A finished run, and what was asked of agents and matchmaker in it."""

    folder: Path
    arm: str = ""
    round: int = 0
    calls: list[tuple[str, int, str, str, tuple]] = field(default_factory=list)  # arm, round, agent, verb, args
    matched: list[list[np.ndarray]] = field(default_factory=list)  # contexts of the pairs that `match` returned
    updated: list[tuple[np.ndarray, float]] = field(default_factory=list)  # context and reward of each `update`

    @property
    def ledger(self) -> Ledger:
        return Ledger.read(self.folder / "ledger.sqlite")

    def watch(self, event: str, body: dict[str, Any]) -> None:
        if event == "begin":
            self.arm, self.round = body["arm"], body["round"]

    def asked(self, arm: str, verb: str) -> list[tuple[int, str, tuple]]:
        return [(t, name, args) for arm_, t, name, verb_, args in self.calls if (arm_, verb_) == (arm, verb)]


def spy_on(patch: pytest.MonkeyPatch, spy: Spy) -> None:
    def spied(verb: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(agent: Any, *args: Any) -> Any:
            spy.calls.append((spy.arm, spy.round, agent.name, verb, args))
            return original(agent, *args)

        return call

    for verb in VERBS:
        patch.setattr(Agent, verb, spied(verb, getattr(Agent, verb)))
    match, update = LinUCB.match, LinUCB.update

    def matching(self: LinUCB, *args: Any) -> Any:
        pairs = match(self, *args)
        spy.matched.append([pair.context.copy() for pair in pairs])
        return pairs

    def updating(self: LinUCB, state: Any, pair: Any, reward: float) -> Any:
        spy.updated.append((pair.context.copy(), reward))
        return update(self, state, pair, reward)

    patch.setattr(LinUCB, "match", matching)
    patch.setattr(LinUCB, "update", updating)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def spy(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Spy:
    """A run of four agents, four arms and three rounds, in this process."""
    spy = Spy(tmp_path_factory.mktemp("runs") / "reference")
    with pytest.MonkeyPatch.context() as patch:
        spy_on(patch, spy)
        run(spy.folder, small_config(models, baselines=BASELINES, rounds=ROUNDS), spy.watch)
    return spy


# Same seed, same run


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_show(models: dict[str, str], tmp_path: Path, spy: Spy, workers: int) -> None:
    config = small_config(models, baselines=BASELINES, rounds=ROUNDS, engine={"workers": workers})
    assert run(tmp_path / "run", config).head == spy.ledger.head


# The arms


def test_every_arm_starts_from_the_state_after_the_warm_start(spy: Spy) -> None:
    start = last_checkpoint(spy.ledger, "start").body["agents"]
    restored = [(name, args[0].digest) for _, _, name, verb, args in spy.calls if verb == "restore"]
    assert restored == list(start.items()) * 4


def test_local_takes_the_steps_of_an_exchange_too(spy: Spy) -> None:
    others = ("random", "routed", "knexa")
    steps = {arm: [args for _, _, args in spy.asked(arm, "fit")] for arm in ("local", *others)}
    assert steps == {"local": [(3,)] * 12} | dict.fromkeys(others, [(1,)] * 12)  # 4 agents, 3 rounds
    assert {args[1] for arm in others for _, _, args in spy.asked(arm, "learn")} == {2}
    assert not spy.asked("local", "learn") and not spy.asked("local", "profile")


def test_the_weight_of_the_teachers_text_rises_from_the_first_to_the_last_round(spy: Spy) -> None:
    for arm in ("knexa", "routed"):
        weights = {(t, args[0]) for t, _, args in spy.asked(arm, "learn")}
        assert weights == {(1, 0.2), (2, 0.35), (3, 0.5)}


def test_half_as_many_pairs_as_agents_and_no_agent_in_two(spy: Spy) -> None:
    for arm in ("random", "knexa"):
        for t in range(1, ROUNDS + 1):
            pairs = [event.body for event in spy.ledger.events("pair", arm) if event.round == t]
            assert len({name for pair in pairs for name in (pair["source"], pair["receiver"])}) == 2 * len(pairs) == 4


def test_the_reward_is_equation_3_of_the_recorded_gain(spy: Spy) -> None:
    assert len(bodies(spy.ledger, "pair", "knexa")) == len(bodies(spy.ledger, "pair", "random")) == 6
    for arm, kind in (("knexa", ""), ("random", ""), ("routed", "probe_")):  # `reward` is private, private, probe
        for pair in bodies(spy.ledger, "pair", arm):
            gain = pair[f"{kind}before"] - pair[f"{kind}after"]
            assert pair["reward"] == pytest.approx(gain - 1e-3 * pair["kilobytes"], abs=1e-12)


def test_the_pair_that_is_rewarded_is_the_one_that_was_scored(spy: Spy) -> None:
    scored = [context.tolist() for round in spy.matched for context in round]
    assert [context.tolist() for context, _ in spy.updated] == scored
    assert [reward for _, reward in spy.updated] == [pair["reward"] for pair in bodies(spy.ledger, "pair", "knexa")]


def test_kilobytes_are_those_of_the_text_that_arrived(spy: Spy) -> None:
    for (_, name, args), pair in zip(spy.asked("knexa", "accept"), bodies(spy.ledger, "pair", "knexa"), strict=True):
        assert pair["receiver"] == name
        assert pair["kilobytes"] == sum(len(text.encode()) for text in args[1].items) / 1000
        assert pair["texts"] == len(args[0].items) == len(args[1].items)


def test_a_lesson_from_several_sources_has_their_bytes_together(spy: Spy) -> None:
    for t in range(1, ROUNDS + 1):
        events = [event.body for event in spy.ledger.events("pair", "routed") if event.round == t]
        pulled = [(name, args[1].items) for round_, name, args in spy.asked("routed", "accept") if round_ == t]
        for pair in events:
            own = [text for name, items in pulled if name == pair["receiver"] for text in items]
            assert pair["kilobytes"] == sum(len(text.encode()) for text in own) / 1000
        assert sum(pair["texts"] for pair in events) == sum(len(items) for _, items in pulled)
    assert bodies(spy.ledger, "pair", "routed")


def test_evaluation_every_second_round_and_after_the_last(spy: Spy) -> None:
    rounds = {arm: {event.round for event in spy.ledger.events("scores", arm)} for arm in ("start", "local", "knexa")}
    assert rounds == {"start": {0}, "local": {2, 3}, "knexa": {2, 3}}


def test_a_failure_costs_nothing_but_its_own_exchange(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spy: Spy
) -> None:
    """The first exchange of round 1 fails; the second is the same as in a run without failures."""
    first, second = [event.body for event in spy.ledger.events("pair", "knexa") if event.round == 1]

    def behave(original: Any, agent: Any, *args: Any) -> Any:
        if agent.name == first["receiver"]:
            raise RuntimeError
        return original(agent, *args)

    spoil(monkeypatch, "learn", behave)
    ledger = run(tmp_path / "run", small_config(models, rounds=ROUNDS))
    pairs = [event.body for event in ledger.events("pair", "knexa") if event.round == 1]
    assert [pair | {"predicted": None} for pair in pairs] == [second | {"predicted": None}]


def test_a_name_that_is_taken(models: dict[str, str], tmp_path: Path, spy: Spy) -> None:
    with pytest.raises(ConfigError, match=r"the run 'reference' exists; .*peertune resume reference"):
        Experiment.create(spy.folder, small_config(models), spy.watch)


# The release policy of real agents


def test_real_agents_keep_texts_from_the_coordinator_and_weights_from_everybody(
    models: dict[str, str], tmp_path: Path
) -> None:
    config = small_config(models, TWO)
    spec = msgspec.json.encode(Spec(config.model_dump_json(), str(tmp_path)))
    engine = LocalEngine(BUILDER, spec, [["a0", "a1"]], inline=True)
    fed = Federation(engine, ["a0", "a1"])
    for ref in (fed["a0"].share(Picks((0,))), fed["a0"].adapter(), fed["a1"].load(fed["a0"].adapter())):
        with pytest.raises(AgentError, match="a0 does not release (texts|weights) to (coordinator|a1)"):
            fed.fetch(ref)
    assert fed.fetch(fed["a0"].profile()) is not None
    engine.close()


# Other people's models and data


def test_a_standard_llama_and_a_users_own_records(tmp_path: Path) -> None:
    model = str(make_tiny_model(tmp_path / "llama", "llama"))

    def records(name: str, count: int, completions: bool = True) -> str:
        rows = [
            {"prompt": f"{name} {index}: name a colour", **({"completion": f" blue {index}"} if completions else {})}
            for index in range(count)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    agents = [{"model": model, "name": name, "data": {"path": records(name, 12)}} for name in ("north", "south")]
    task: Any = {"type": "records", "test": records("test", 4), "transfer": records("transfer", 4, completions=False)}
    ledger = run(tmp_path / "run", small_config({}, "", agents=agents, task=task, rounds=1))
    assert not bodies(ledger, "failure")
    (pair,) = bodies(ledger, "pair")
    assert {pair["source"], pair["receiver"]} == {"north", "south"}
    assert [len(body["correct"]) for body in bodies(ledger, "scores")] == [4] * 4
    assert [facts["train"] for facts in bodies(ledger, "run")[0]["agents"]] == [11, 11]
