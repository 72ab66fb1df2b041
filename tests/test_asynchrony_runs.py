"""True runs with stragglers, dropouts and absences, which can be stopped while a gain is awaited."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from asynchrony_parts import SET
from safetensors.numpy import load as load_safetensors
from small import bodies, last_checkpoint, make_models, resume, run, small_config

from peertune.errors import ConfigError
from peertune.experiment import Experiment, Interrupted
from peertune.ledger import Ledger
from peertune.report.tables import result_tables


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return make_models(tmp_path_factory.mktemp("models"))


RULES = {"stragglers": 0.25, "slowdown": 3.0, "quorum": 0.75, "dropout": 0.15, "present": {"a3": [[1, 1], [3, None]]}}


def config(models: dict[str, str], **changes: Any) -> Any:
    """With seed 2 and `RULES`, a0 is slow, and its gain of round 1 comes in round 4; a2 misses round 2."""
    return small_config(models, seed=2, method=SET, rounds=4, baselines={"local": "local"}, **changes)


@pytest.fixture(scope="module")
def ledger(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return run(tmp_path_factory.mktemp("runs") / "whole", config(models, availability=RULES))


def test_a_run_with_stragglers_dropouts_and_absences(ledger: Ledger) -> None:
    rounds = [event for event in ledger.events("clock")]
    assert [(event.arm, event.round) for event in rounds] == [
        (arm, t) for arm in ("local", "knexa") for t in range(1, 5)
    ]
    assert all(event.body["absent"]["a3"] == "away" for event in rounds if event.round == 2)
    dropped = [{name for name, why in event.body["absent"].items() if why == "dropped out"} for event in rounds]
    assert dropped[:4] == dropped[4:]  # the same in every arm
    assert dropped[1] == {"a2"}
    assert [(event.arm, event.round, event.body["receiver"]) for event in ledger.events("late")] == [("knexa", 4, "a0")]
    assert len(bodies(ledger, "failure")) == 0
    scored = [(event.arm, event.round, event.body["agent"]) for event in ledger.events("scores")]
    evaluated = [("start", 0), ("local", 2), ("local", 4), ("knexa", 2), ("knexa", 4)]
    assert scored == [(arm, t, f"a{row}") for arm, t in evaluated for row in range(4)]  # also who is not there
    for event in ledger.events("checkpoint", "knexa"):
        assert len(event.body["clock"]) == 5 and set(event.body["agents"]) == {"a0", "a1", "a2", "a3"}


def stopped(folder: Path, config: Any, arm: str, round: int) -> None:
    def watch(event: str, body: dict[str, Any]) -> None:
        if event == "round" and (body["arm"], body["round"]) == (arm, round):
            experiment.request_stop()

    experiment = Experiment.create(folder, config, watch)
    with pytest.raises(Interrupted):
        experiment.run()


@pytest.mark.parametrize("round", [1, 3])
def test_a_run_that_was_stopped_while_a_gain_was_awaited_ends_the_same(
    models: dict[str, str], tmp_path: Path, ledger: Ledger, round: int
) -> None:
    stopped(tmp_path / "run", config(models, availability=RULES), "knexa", round)
    digest = last_checkpoint(Ledger.read(tmp_path / "run" / "ledger.sqlite"), "knexa").body["method"]
    state = load_safetensors((tmp_path / "run" / "coordinator" / "checkpoints" / digest).read_bytes())
    assert state["book/contexts"].shape == (1, 64)
    assert resume(tmp_path / "run").head == ledger.head


def test_a_damaged_checkpoint_takes_the_clock_back_too(models: dict[str, str], tmp_path: Path, ledger: Ledger) -> None:
    stopped(tmp_path / "run", config(models, availability=RULES), "knexa", 2)
    digest = last_checkpoint(Ledger.read(tmp_path / "run" / "ledger.sqlite"), "knexa").body["method"]
    (tmp_path / "run" / "coordinator" / "checkpoints" / digest).unlink()
    assert resume(tmp_path / "run").head == ledger.head


def test_availability_that_takes_nobody_away_changes_only_what_it_adds(models: dict[str, str], tmp_path: Path) -> None:
    without, trivial = (
        run(tmp_path / name, small_config(models, "llama gpt2", method=SET | {"max_pairs": 2}, **changes))
        for name, changes in (("a", {}), ("b", {"availability": {}}))
    )

    def events(ledger: Ledger) -> list[Any]:
        return [(event.arm, event.round, event.phase, event.kind, stripped(event.kind, event.body))
                for event in ledger.events() if event.kind != "clock"]  # fmt: skip

    def stripped(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind == "run":
            body = {**body, "config": {key: value for key, value in body["config"].items() if key != "availability"}}
        return {key: value for key, value in body.items() if (kind, key) != ("checkpoint", "clock")}

    assert events(without) == events(trivial)
    assert len(bodies(trivial, "clock")) == 2
    assert not [body for body in bodies(without, "checkpoint") if set(body) != {"agents", "method"}]
    assert "availability" not in bodies(without, "run")[0]["config"]
    assert {event.kind for event in without.events()} & {"clock", "late", "refused"} == set()


def test_tables_say_what_time_did(ledger: Ledger, tmp_path: Path) -> None:
    tables = {table.title: table for table in result_tables(ledger)}
    table = tables["Rounds in virtual time"]
    assert [row[:2] for row in table.rows] == [[arm, str(t)] for arm in ("local", "knexa") for t in range(1, 5)]
    assert "1 away" in table.rows[1][4]
    assert [row[7] for row in table.rows] == ["–"] * 7 + ["a0"]
    assert "Refused reports" not in tables
    refused = Ledger.create(tmp_path / "ledger.sqlite")
    refused.append("knexa", 2, "round", "refused", {"agent": "b", "exchange": 7, "cause": "no exchange 7 is open"})
    refused.commit()
    from peertune.report.asynchrony import refused_table

    assert refused_table(refused).rows == [["knexa", "2", "b", "no exchange 7 is open"]]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"present": {"zoe": [[1, 2]]}}, "there is no agent 'zoe'; the agents are a0, a1, a2, a3"),
        ({"present": {"a1": [[3, 2]]}}, r"availability.present.a1: expected \[first, last\] rounds of 4"),
        ({"present": {"a1": [[5, None]]}}, r"availability.present.a1: expected \[first, last\] rounds of 4"),
        ({"slowdown": 5.0}, "availability.slowdown is not used, because nobody is slow"),
        ({"dropout": 1.0}, "less than 1"),
        ({"quorum": 0.0}, "greater than 0"),
        ({"deadline": 0}, "greater than 0"),
        ({"stragglers": math.nan}, "stragglers"),
    ],
)
def test_rules_that_cannot_be(models: dict[str, str], rules: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, ConfigError), match=said):
        config(models, availability=rules)
