"""Whole runs of which every rule of averaging is an arm: exported is what was evaluated, and the ledger has it all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fedavg_parts import EXACT, FAMILIES, RULES, config_of, fedavg, models_and_questions
from safetensors.numpy import load as load_safetensors
from small import bodies, last_checkpoint, resume, run, small_config

from peertune.checkpoint import Blobs
from peertune.experiment import Experiment, Interrupted
from peertune.export import export_adapter
from peertune.ledger import COORDINATOR, Ledger
from peertune.report import result_tables, write_report


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return models_and_questions(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=FAMILIES)
def finished(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory, request: Any) -> Iterator[Ledger]:
    """Nine aggregators, two rounds of two agents each: some seconds."""
    arms = {rule: {"type": "fedavg", "aggregator": rule} for rule in RULES}
    folder = tmp_path_factory.mktemp("runs") / request.param
    ledger = run(folder, config_of(models, request.param, ranks=(4, 4), baselines=arms, method="local", rounds=2))
    yield ledger
    ledger.close()


def test_what_is_exported_is_what_was_evaluated(finished: Ledger, tmp_path: Path) -> None:
    """`export` loads the folder with PEFT and compares logits and text with the agent's own; see TOLERANCE there."""
    folder = finished.path.parent
    losses = {}
    for rule in RULES:
        assert export_adapter(folder, "a1", tmp_path / rule, rule).startswith("OK: a1 after")
        scores = {each["agent"]: each["metrics"]["test_loss"] for each in bodies(finished, "scores", rule)}
        assert (scores["a0"] == pytest.approx(scores["a1"], rel=1e-5)) == (rule != "fedsa")
        losses[rule] = scores["a0"]
    ranks = {rule: json.loads((tmp_path / rule / "adapter_config.json").read_text())["rank_pattern"] for rule in RULES}
    assert {rule: set(found.values()) for rule, found in ranks.items() if found} == {
        "fedex": {4 + 2 * 4},  # two rounds of (K - 1) r
        "flora": {4 + 2 * 8},
    }
    assert len(set(losses.values())) == len(RULES)
    assert not bodies(finished, "failure")


def test_the_errors_of_all_rounds_are_in_the_ledger(finished: Ledger) -> None:
    for rule in RULES:
        events = bodies(finished, "aggregation", rule)
        assert [each["rule"] for each in events] == ["start", rule, rule]
        for each in events[1:]:
            assert each["agents"] == ["a0", "a1"] and (each["error"] < 1e-6) == (rule in (*EXACT, "fedsa"))


def test_the_report_shows_them(finished: Ledger) -> None:
    (table,) = [table for table in result_tables(finished) if table.title == "Aggregation"]
    errors = [f"{event.body['error']:.2g}" for event in finished.events("aggregation")]
    assert [row[-1] for row in table.rows] == errors and len(errors) == 3 * len(RULES)
    assert table.rows[1][:4] == [RULES[0], "1", RULES[0], "2"]
    (traffic,) = [table for table in result_tables(finished) if table.title == "Traffic"]
    counted = sum(int(row[-1].replace(",", "")) for row in traffic.rows if row[1] == "all")
    assert counted == sum(event.body["bytes"] for event in finished.events("transfer"))
    assert "Aggregation" in write_report(finished.path.parent).read_text(encoding="utf-8")


def test_arms_begin_where_the_warm_start_ended(finished: Ledger) -> None:
    """Without frozen parts, cores or versions of the arm before: `local` is the last one."""
    folder = finished.path.parent
    blobs = Blobs(folder / "agents" / "a0" / "checkpoints")
    kept = {
        arm: load_safetensors(blobs.get(last_checkpoint(finished, arm).body["agents"]["a0"]))
        for arm in (*RULES, "local")
    }
    assert {arm for arm, tensors in kept.items() if any("frozen" in name for name in tensors)} == {"fedex", "flora"}
    assert {arm for arm, tensors in kept.items() if any("lora_R" in name for name in tensors)} == {"fed_sb"}
    assert not any(name == "counts" for name in kept["local"])


def test_the_coordinator_receives_adapters_and_agents_nothing_of_each_other(finished: Ledger) -> None:
    moved = [event.body for event in finished.events("transfer", "fedit") if event.phase in ("round", "deploy")]
    assert {each["payload"] for each in moved if each["destination"] == COORDINATOR} == {"weights"}
    assert all(COORDINATOR in (each["source"], each["destination"]) for each in moved)


ARMS = {
    "exact": fedavg("fedex"),
    "core": fedavg("fed_sb", fraction=0.5),
    "turns": fedavg("rolora", proximal=0.1),
}


def test_neither_workers_nor_interruptions_show(models: dict[str, str], tmp_path: Path) -> None:
    """Worker processes import torch, which takes some seconds."""
    changes: dict[str, Any] = {"baselines": ARMS, "method": fedavg("flexlora"), "ranks": (4, 4), "rounds": 2}
    whole = run(tmp_path / "whole", config_of(models, **changes))
    assert run(tmp_path / "workers", config_of(models, **changes, engine={"workers": 2})).head == whole.head
    stops = ["exact", "core"]

    def watch(event: str, body: dict[str, Any]) -> None:
        if event == "begin" and body["arm"] in stops and body["round"] == 1:
            stops.remove(body["arm"])
            experiments[-1].request_stop()

    experiments = [Experiment.create(tmp_path / "stopped", config_of(models, **changes), watch)]
    while stops:
        with pytest.raises(Interrupted):
            experiments[-1].run()
        experiments.append(Experiment.reopen(tmp_path / "stopped", watch))
    assert resume(tmp_path / "stopped").head == whole.head
    assert [event.round for event in whole.events("aggregation", "turns")] == [1, 1, 2]


@pytest.mark.parametrize("aggregator", ["fedit", "rolora", "fedex"])
def test_who_was_not_chosen_goes_on_from_what_it_got_before_an_evaluation(
    models: dict[str, str], tmp_path: Path, aggregator: str
) -> None:
    agents = [{"model": models["llama"], "release": {"weights": "coordinator"}}] * 3
    method = {"type": "fedavg", "fraction": 0.34, "aggregator": aggregator}
    config = small_config(
        models, agents=agents, method=method, rounds=5, evaluation={"every": 1}, task={"transfer": 96}
    )
    ledger = run(tmp_path / "run", config)
    chosen = [body["agents"] for body in bodies(ledger, "aggregation")]
    assert len(chosen) == 6 and len({tuple(names) for names in chosen[1:]}) > 1
    assert not bodies(ledger, "failure")
