"""Runs from start to end on tiny true models: the same whatever the workers, fair to all arms, hard to stop."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from small import PAPER, ROUTED, bodies, last_checkpoint, make_models, resume, run, small_config
from tiny import make_tiny_model

import peertune.checkpoint
from peertune.agent import VERBS, Agent
from peertune.assemble import BUILDER, Spec, build_agents
from peertune.checkpoint import Blobs
from peertune.engines.local import LocalEngine
from peertune.errors import AgentError, ConfigError, PeertuneError, StorageError
from peertune.experiment import Experiment, Interrupted
from peertune.federation import Federation
from peertune.ledger import Ledger
from peertune.matchmakers.linucb import LinUCB
from peertune.payloads import Number, Picks, Texts

TWO = "llama gpt2"
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


@pytest.fixture(scope="module")
def head(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The ledger's head after an undisturbed run of two agents."""
    return run(tmp_path_factory.mktemp("runs") / "undisturbed", small_config(models, TWO)).head


@pytest.fixture(scope="module")
def longer(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with three rounds."""
    return run(tmp_path_factory.mktemp("runs") / "longer", small_config(models, TWO, rounds=3)).head


def spoil(patch: pytest.MonkeyPatch, verb: str, behave: Callable[..., Any]) -> None:
    """Every agent's `verb` becomes `behave(original, agent, *args)`."""
    original = getattr(Agent, verb)
    patch.setattr(Agent, verb, lambda agent, *args: behave(original, agent, *args))


# Same seed, same run


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_does_not_show(models: dict[str, str], tmp_path: Path, spy: Spy, workers: int) -> None:
    config = small_config(models, baselines=BASELINES, rounds=ROUNDS, engine={"workers": workers})
    assert run(tmp_path / "run", config).head == spy.ledger.head


def test_another_seed_is_another_run(models: dict[str, str], tmp_path: Path, head: str) -> None:
    assert run(tmp_path / "run", small_config(models, TWO, seed=1)).head != head
    assert run(tmp_path / "again", small_config(models, TWO)).head == head


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


def test_before_and_after_are_measured_on_the_same_fixed_items(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import peertune.agent.learner

    measured: list[tuple] = []
    original = peertune.agent.learner.losses
    monkeypatch.setattr(
        peertune.agent.learner,
        "losses",
        lambda lm, adapter, rows: measured.append(tuple(row.ids for row in rows)) or original(lm, adapter, rows),
    )
    (agent,) = build(models, tmp_path, "a0")
    agent.call("accept", TAUGHT)
    gains = [agent.call("learn", numbers(0.5, 2, 1e9, 1)) for _ in range(2)]
    private, probe = measured[:2]
    assert measured == [private, probe] * 4 and private != probe
    assert gains[1].private.before == gains[0].private.after  # nothing else happened in between
    assert gains[1].probe.before == gains[0].probe.after
    assert gains[0].private.before != gains[0].private.after
    assert gains[0].probe.before != gains[0].probe.after


def test_evaluation_every_second_round_and_after_the_last(spy: Spy, head: str) -> None:
    rounds = {arm: {event.round for event in spy.ledger.events("scores", arm)} for arm in ("start", "local", "knexa")}
    assert rounds == {"start": {0}, "local": {2, 3}, "knexa": {2, 3}}


# Agents that fail


def build(models: dict[str, str], folder: Path, *names: str, **changes: Any) -> list[Any]:
    config = small_config(models, TWO, **changes)
    agents, _ = build_agents(msgspec.json.encode(Spec(config.model_dump_json(), str(folder))), list(names))
    return [agents[name] for name in names]


def numbers(*values: float) -> list[Any]:
    return [Number(value) for value in values]


def state_of(agent: Any) -> tuple[dict[str, bytes], bytes]:
    """Everything that a checkpoint would hold."""
    tensors = {name: tensor.numpy().tobytes() for name, tensor in agent._learner.trainer.state().items()}
    return tensors, msgspec.msgpack.encode(agent._record)


TAUGHT = [Picks((0, 1)), Texts(("    return xs\n",) * 2), *numbers(0)]
LEARN = numbers(0.5, 3, 1e9, 1)


@pytest.mark.parametrize(("verb", "args"), [("fit", numbers(3)), ("learn", LEARN)])
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError()])
def test_a_verb_that_raises_half_way_is_undone(
    models: dict[str, str], tmp_path: Path, verb: str, args: list[Any], error: Exception
) -> None:
    (agent,) = build(models, tmp_path, "a0")
    agent.call("fit", numbers(2))
    agent.call("accept", TAUGHT)
    before, steps, original = state_of(agent), [0], agent._learner.trainer.step

    def step(*args: Any) -> float:
        steps[0] += 1
        if steps[0] == 3:
            raise error
        return original(*args)

    agent._learner.trainer.step = step
    with pytest.raises(type(error)):
        agent.call(verb, args)
    assert steps == [3]
    assert state_of(agent) == before


@pytest.mark.parametrize(("verb", "args"), [("fit", numbers(3)), ("learn", LEARN)])
def test_training_that_diverges_is_undone_also_when_only_the_last_step_did_it(
    models: dict[str, str], tmp_path: Path, verb: str, args: list[Any]
) -> None:
    training = {"learning_rate": 1e30, "warmup_steps": 0}
    for steps in (1, 3):
        (agent,) = build(models, tmp_path, "a0", training=training)
        agent.call("accept", TAUGHT)
        before = state_of(agent)
        with pytest.raises(PeertuneError, match="put back"):
            agent.call(verb, [Number(steps) if arg == Number(3) else arg for arg in args])
        assert state_of(agent) == before
        agent.call("profile", [])  # still a working agent
        assert all(np.isfinite(value) for _, value in agent.take_metrics())


def test_poisoned_weights_cost_their_agent_its_exchanges_and_nobody_else(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(original: Any, agent: Any, steps: int) -> None:
        original(agent, steps)
        if agent.name == "a1":
            with torch.no_grad():
                for parameter in agent._lm.trainable("a1").values():
                    parameter.fill_(float("nan"))

    spoil(monkeypatch, "fit", poison)
    ledger = run(tmp_path / "run", small_config(models))
    failures = bodies(ledger, "failure", "knexa")
    assert {body["agent"] for body in failures} == {"a1"}
    assert {body["verb"] for body in failures} >= {"fit", "profile"}
    assert {pair[role] for pair in bodies(ledger, "pair") for role in ("source", "receiver")} <= {"a0", "a2", "a3"}
    assert len(bodies(ledger, "pair")) == 2
    assert {body["agent"] for body in bodies(ledger, "scores")} == {"a0", "a2", "a3"}
    assert len(bodies(ledger, "done")) == 2


@pytest.mark.parametrize("verb", ["fit", "profile", "draft", "share", "accept", "learn", "grade"])
def test_an_agent_that_always_fails_in_one_verb(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def behave(original: Any, agent: Any, *args: Any) -> Any:
        if agent.name == "a2":
            raise KeyError("its private words")
        return original(agent, *args)

    spoil(monkeypatch, verb, behave)
    config = small_config(models)
    seen: list[dict[str, Any]] = []
    ledger = run(tmp_path / "run", config, lambda event, body: seen.append(body) if event == "failure" else None)
    failures = [(event.body, event.phase, event.round, event.arm) for event in ledger.events("failure")]
    cause = "KeyError (details in the agent's own log)"
    assert failures and all(body == {"agent": "a2", "verb": verb, "cause": cause} for body, *_ in failures)
    assert len({tuple(place) for _, *place in failures}) == len(failures)  # once a phase
    assert len(seen) == len(failures)
    assert len(bodies(ledger, "done")) == 2
    assert "its private words" in (tmp_path / "run" / "agents" / "a2" / "errors.log").read_text()
    assert b"its private words" not in (tmp_path / "run" / "ledger.sqlite").read_bytes()


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


def test_a_worker_that_is_killed_in_a_round_costs_its_agents_that_round(models: dict[str, str], tmp_path: Path) -> None:
    killed: list[int] = []

    def watch(event: str, body: dict[str, Any]) -> None:
        if event == "call" and (body["arm"], body["round"], body["verb"]) == ("knexa", 1, "profile") and not killed:
            killed.append(workers()[0])
            os.kill(killed[0], 9)

    ledger = run(tmp_path / "run", small_config(models, engine={"workers": 2}), watch)
    failures = [event for event in ledger.events("failure")]
    assert failures and {event.round for event in failures} == {1}
    assert all("process" in event.body["cause"] for event in failures)
    assert {event.round for event in ledger.events("checkpoint", "knexa")} == {1, 2}
    assert len({body["agent"] for body in bodies(ledger, "scores", "knexa")}) == 4  # all are there again


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


# Stopping and going on


def test_a_name_that_is_taken(models: dict[str, str], tmp_path: Path, spy: Spy) -> None:
    with pytest.raises(ConfigError, match=r"the run 'reference' exists; .*peertune resume reference"):
        Experiment.create(spy.folder, small_config(models), spy.watch)


@pytest.mark.parametrize(("code", "exit_code"), [("error", 1), ("storage", 2)])
def test_a_round_that_is_not_kept_is_worth_another_try_unless_a_disk_refuses(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, exit_code: int
) -> None:
    fetch = Federation.fetch

    def refuse(fed: Federation, ref: Any) -> Any:
        if ref.verb == "checkpoint":
            raise AgentError("a1", "checkpoint", "a1 is out of reach", code)
        return fetch(fed, ref)

    monkeypatch.setattr(Federation, "fetch", refuse)
    expected = "a1 is out of reach; the last complete round is safe, continue with `peertune resume run`"
    with pytest.raises(PeertuneError, match=expected) as caught:
        run(tmp_path / "run", small_config(models, TWO))
    assert caught.value.exit_code == exit_code


def test_a_run_that_is_finished_is_resumed_without_a_change(models: dict[str, str], tmp_path: Path, head: str) -> None:
    run(tmp_path / "run", small_config(models, TWO))
    assert resume(tmp_path / "run").head == head


def stopped_after(folder: Path, config: Any, arm: str, round: int) -> Experiment:
    """A run that was asked to stop during that round."""

    def watch(event: str, body: dict[str, Any]) -> None:
        if event == "begin" and (body["arm"], body["round"]) == (arm, round):
            experiment.request_stop()

    experiment = Experiment.create(folder, config, watch)
    with pytest.raises(Interrupted, match=rf"continue with `peertune resume {folder.name}`"):
        experiment.run()
    return experiment


@pytest.mark.parametrize(("arm", "round"), [("start", 0), ("knexa", 1)])
def test_a_requested_stop_finishes_the_round(
    models: dict[str, str], tmp_path: Path, head: str, arm: str, round: int
) -> None:
    stopped_after(tmp_path / "run", small_config(models, TWO), arm, round)
    ledger = Ledger.read(tmp_path / "run" / "ledger.sqlite")
    event = list(ledger.events())[-1]
    assert (event.arm, event.round, event.phase) == (arm, round, "checkpoint")
    assert resume(tmp_path / "run").head == head


def test_models_that_changed_are_refused(tmp_path: Path) -> None:
    models = make_models(tmp_path / "models")
    stopped_after(tmp_path / "run", small_config(models, TWO), "knexa", 1)
    before = Ledger.read(tmp_path / "run" / "ledger.sqlite").head
    make_tiny_model(tmp_path / "models" / "gpt2", "gpt2", seed=9)
    with pytest.raises(ConfigError, match="a model or its data of 'run' is not what it began with"):
        resume(tmp_path / "run")
    assert Ledger.read(tmp_path / "run" / "ledger.sqlite").head == before


def test_a_configuration_that_was_edited_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    stopped_after(tmp_path / "run", small_config(models, TWO), "knexa", 1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["training"]["learning_rate"] = 1.0
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="the configuration of 'run' is not what it began with"):
        resume(tmp_path / "run")


def test_the_engine_may_change_from_session_to_session(models: dict[str, str], tmp_path: Path, head: str) -> None:
    stopped_after(tmp_path / "run", small_config(models, TWO), "knexa", 1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["engine"]["workers"] = 2
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert resume(tmp_path / "run").head == head


@pytest.mark.parametrize("whose", ["a1", "coordinator"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_checkpoint_costs_one_round(
    models: dict[str, str], tmp_path: Path, whose: str, damage: str, longer: str
) -> None:
    config = small_config(models, TWO, rounds=3)
    stopped_after(tmp_path / "run", config, "knexa", 2)
    stored = last_checkpoint(Ledger.read(tmp_path / "run" / "ledger.sqlite"), "knexa").body
    digest = stored["method"] if whose == "coordinator" else stored["agents"][whose]
    owner = tmp_path / "run" / ("coordinator" if whose == "coordinator" else f"agents/{whose}")
    path = owner / "checkpoints" / digest
    raw = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(raw[:-9] if damage == "cut" else raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
    seen: list[tuple[str, dict[str, Any]]] = []
    ledger = resume(tmp_path / "run", lambda event, body: seen.append((event, body)))
    (said,) = [body for event, body in seen if event == "damaged"]
    assert (said["arm"], said["round"]) == ("knexa", 2) and digest in said["cause"]
    assert [body["round"] for event, body in seen if event == "begin"] == [2, 3]
    assert ledger.head == longer
    assert Blobs(owner / "checkpoints").get(digest) == raw  # made again


def test_both_generations_damaged_begin_the_arm_anew(models: dict[str, str], tmp_path: Path, longer: str) -> None:
    config = small_config(models, TWO, rounds=3)
    stopped_after(tmp_path / "run", config, "knexa", 2)
    for event in Ledger.read(tmp_path / "run" / "ledger.sqlite").events("checkpoint", "knexa"):
        (tmp_path / "run" / "agents" / "a0" / "checkpoints" / event.body["agents"]["a0"]).write_bytes(b"")
    rounds: list[int] = []
    ledger = resume(tmp_path / "run", lambda event, body: rounds.append(body["round"]) if event == "begin" else None)
    assert rounds == [1, 2, 3]
    assert ledger.head == longer


def test_a_worker_that_is_lost_while_it_resumes_costs_no_round(
    models: dict[str, str], tmp_path: Path, head: str
) -> None:
    """Only damage rewinds; a process that died says nothing about its checkpoint."""
    stopped_after(tmp_path / "run", small_config(models, TWO, engine={"workers": 1}), "knexa", 1)
    before = Ledger.read(tmp_path / "run" / "ledger.sqlite").head

    def watch(event: str, body: dict[str, Any]) -> None:
        if event == "agents":
            os.kill(workers()[0], 9)

    with pytest.raises(
        PeertuneError, match=r"a0\.restore failed: its process .*; nothing is lost, try again"
    ) as caught:
        resume(tmp_path / "run", watch)
    assert not isinstance(caught.value, StorageError)
    assert Ledger.read(tmp_path / "run" / "ledger.sqlite").head == before
    assert resume(tmp_path / "run").head == head


def test_a_worker_that_dies_right_after_it_was_put_back_is_put_back_again(
    models: dict[str, str], tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(tmp_path / "run", small_config(models, TWO, engine={"workers": 1}), "knexa", 1)
    end_round, killed = LocalEngine.end_round, []

    def ending(engine: LocalEngine, *busy: Any) -> Any:
        if not killed:
            killed.append(workers()[0])
            os.kill(killed[0], 9)
        return end_round(engine, *busy)

    monkeypatch.setattr(LocalEngine, "end_round", ending)
    assert resume(tmp_path / "run").head == head


def workers() -> list[int]:
    """Worker processes of this one."""
    children = [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
    return [int(pid) for pid in children if b"peertune.engines.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


# Full disks


@pytest.mark.parametrize("nth", [0, 1, 3, 4, 5, 6, 11])  # 6 a round: a file and its folder, for 2 agents and the method
def test_a_disk_that_is_full_at_a_checkpoint(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, nth: int
) -> None:
    """The n-th sync from round 1 on is refused: the last complete round stays, resume ends as if nothing had been."""
    original, count, folder = os.fsync, [0], tmp_path / "run"

    def fsync(descriptor: int) -> None:
        count[0] += 1
        if count[0] > nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    def watch(event: str, body: dict[str, Any]) -> None:
        if event == "begin" and body["arm"] == "knexa" and body["round"] == 1:
            monkeypatch.setattr(peertune.checkpoint.os, "fsync", fsync)

    with pytest.raises(StorageError, match="No space left on device"):
        run(folder, small_config(models, TWO), watch)
    monkeypatch.undo()
    ledger = Ledger.read(folder / "ledger.sqlite")
    ledger.verify()
    assert list(ledger.events())[-1].kind in ("checkpoint", "done")
    assert resume(folder).head == head
    assert not [*folder.rglob("*.tmp")]


def test_a_disk_that_is_full_at_the_ledger(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    def commit(self: Ledger) -> None:
        raise StorageError("database or disk is full")

    def watch(event: str, body: dict[str, Any]) -> None:
        if event == "begin" and body["round"] == 2:
            monkeypatch.setattr(Ledger, "commit", commit)

    with pytest.raises(StorageError, match="disk is full"):
        run(tmp_path / "run", small_config(models, TWO), watch)
    monkeypatch.undo()
    assert resume(tmp_path / "run").head == head


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


@pytest.mark.gpu
def test_a_run_on_a_gpu_repeats_itself(models: dict[str, str], tmp_path: Path) -> None:
    config = small_config(models, TWO, rounds=1, engine={"workers": "auto", "device": "cuda"})
    first, second = (run(tmp_path / name, config) for name in ("first", "second"))
    assert len(bodies(first, "scores", "knexa")) == 2 and first.head == second.head
