"""Who saw what: KNEXA-FL shows the coordinator numbers alone, and private text stays with its owner."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from safetensors.numpy import load
from small import ROUTED, last_checkpoint, make_models, run, small_config

from peertune.checkpoint import Blobs
from peertune.engines.base import METRICS
from peertune.federation import Federation
from peertune.ledger import COORDINATOR, Ledger
from peertune.matchmakers import LinUCB, Pairwise, Uniform
from peertune.matchmakers.router import Router
from peertune.methods import Budget, Knexa, Run
from peertune.methods.base import Public

Seen = dict[str, set[str]]
TRANSFER, PROBE = (Public("maths", tested=True), Public("text", tested=False)), (Public("maths", tested=True),) * 2
TOLD = {"set": {"profile", "claims", "verdicts", "gain"}, "prompt": {"claims", "verdicts", "gain"}}
CANARY = {name: f"zq-{name}-private" for name in ("north", "south")}
FIELDS = ("prompt", "completion", "category")


def received(transfers: list[dict[str, Any]]) -> tuple[Seen, Seen]:
    """Payload kinds that each coordinator's and each agents' link carried: (to the coordinator, between agents)."""
    to_coordinator, between = defaultdict(set), defaultdict(set)
    for body in transfers:
        if body["destination"] == COORDINATOR:
            to_coordinator[body["source"]].add(body["payload"])
        elif body["source"] != COORDINATOR:
            between[body["source"], body["destination"]].add(body["payload"])
    return to_coordinator, between


# On the toy: exactly which values moved


@pytest.mark.parametrize(
    "matchmaker",
    [LinUCB(), Uniform(), Pairwise(patience=0.01)],  # nobody waits: it never abstains
    ids=["linucb", "uniform", "pairwise"],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_round_by_pairs_shows_profiles_claims_verdicts_and_gains(
    tmp_path: Path, matchmaker: Any, workers: int
) -> None:
    engine = toy.start(tmp_path, workers)
    fed = Federation(engine, toy.NAMES[:4])
    method = Knexa(run=Run(3, 0, Budget(1, 1), TRANSFER, PROBE), matchmaker=matchmaker, route="set", audit=0)
    state = method.init(fed)
    for t in (1, 2, 3):
        state = method.round(state, fed, t)
        rows = fed.end_round().rows
        assert not [row for row in rows if row.kind == "failure"]
        to_coordinator, between = received([row.body for row in rows if row.kind == "transfer"])
        pairs = {(row.body["source"], row.body["receiver"]) for row in rows if row.kind == "pair"}
        assert len(pairs) == 2
        receivers = {receiver for _, receiver in pairs}
        told = {name: TOLD["set"] if name in receivers else {"profile", "claims"} for name in toy.NAMES[:4]}
        assert to_coordinator == told
        assert between == {pair: {"texts"} for pair in pairs}
    engine.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_round_by_prompts_shows_claims_verdicts_and_gains(tmp_path: Path, workers: int) -> None:
    engine = toy.start(tmp_path, workers)
    fed = Federation(engine, toy.NAMES[:4])
    run = Run(3, 0, Budget(1, 1), TRANSFER, PROBE)
    method = Knexa(run=run, matchmaker=LinUCB(), router=Router(floor=0.0), audit=1)
    state = method.init(fed)
    for t in (1, 2, 3):
        state = method.round(state, fed, t)
        rows = fed.end_round().rows
        assert not [row for row in rows if row.kind == "failure"]
        to_coordinator, between = received([row.body for row in rows if row.kind == "transfer"])
        assert to_coordinator == dict.fromkeys(toy.NAMES[:4], TOLD["prompt"])  # everybody is an auditor too
        assert set.union(*between.values()) == {"texts"}
        assert {(row.body["source"], row.body["receiver"]) for row in rows if row.kind == "pair"} <= between.keys()
    engine.close()


# On true models: the ledger of a whole run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def ledger(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    ledger = run(
        tmp_path_factory.mktemp("runs") / "run", small_config(models, baselines={"local": "local", "routed": ROUTED})
    )
    yield ledger
    ledger.close()


@pytest.mark.parametrize(("arm", "route"), [("knexa", "set"), ("routed", "prompt")])
def test_in_rounds_the_coordinator_received_numbers_only(ledger: Ledger, arm: str, route: str) -> None:
    transfers = [event.body for event in ledger.events("transfer", arm) if event.phase == "round"]
    to_coordinator, _ = received(transfers)
    assert set.union(*to_coordinator.values()) == TOLD[route]
    assert set(to_coordinator) == {"a0", "a1", "a2", "a3"}


def test_over_the_run_the_coordinator_received_scores_and_receipts_beside_them(ledger: Ledger) -> None:
    to_coordinator, _ = received([event.body for event in ledger.events("transfer")])
    assert set.union(*to_coordinator.values()) == TOLD["set"] | {"scores", "receipt"}


def test_texts_go_from_agent_to_agent_of_a_pair_and_nothing_else_does(ledger: Ledger) -> None:
    for t in (1, 2):
        events = [event for event in ledger.events(arm="knexa") if event.round == t]
        pairs = {(event.body["source"], event.body["receiver"]) for event in events if event.kind == "pair"}
        _, between = received([event.body for event in events if event.kind == "transfer"])
        assert between == {pair: {"texts"} for pair in pairs}
    _, routed = received([event.body for event in ledger.events("transfer", "routed")])
    assert set.union(*routed.values()) == {"texts"}
    assert not received([event.body for event in ledger.events("transfer", "local")])[1]


def test_the_coordinator_keeps_no_text(ledger: Ledger) -> None:
    for arm in ("knexa", "routed"):
        body = last_checkpoint(ledger, arm).body
        state = load(Blobs(ledger.path.parent / "coordinator" / "checkpoints").get(body["method"]))
        assert all(array.dtype.kind in "if" for array in state.values())


def test_the_ledger_holds_numbers_and_names_but_no_text_of_agents(ledger: Ledger) -> None:
    """Every string in an event is one of the run's own words: a name, a kind, a digest, a piece of configuration."""
    names = {"a0", "a1", "a2", "a3", COORDINATOR}
    words = names | {*METRICS, "test_loss", "text"}  # text: the protocol
    kinds = {"texts", "number", "picks", "scores", "receipt"} | TOLD["set"]
    for event in ledger.events():
        if event.kind in ("transfer", "metric", "pair", "scores"):
            strings = {value for value in event.body.values() if isinstance(value, str)}
            assert strings <= words | kinds, event


# Canaries in private data


@pytest.fixture(scope="module")
def outputs(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder, standard output and standard error of `peertune run` on data full of canaries."""
    folder = tmp_path_factory.mktemp("canaries")

    def records(name: str, count: int, canary: str) -> str:
        path = folder / f"{name}.jsonl"
        rows = [{field: f"{canary}-{field} {index % 2 or index}" for field in FIELDS} for index in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    agents = [
        {"name": name, "model": model, "data": {"path": records(name, 8, CANARY[name])}}
        for name, model in zip(CANARY, models.values(), strict=True)
    ]
    task = {"type": "records", "test": records("test", 4, "test"), "transfer": records("transfer", 4, "transfer")}
    config = small_config({}, "", agents=agents, task=task, engine={"workers": 1})
    (folder / "config.yaml").write_text(config.model_dump_json())
    command = [sys.executable, "-c", "from peertune.cli import main; main()", "run", str(folder / "config.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--name", "run", "--runs", str(folder / "runs")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "run", done.stdout, done.stderr


def test_the_canaries_are_there_to_be_found(outputs: tuple[Path, str, str]) -> None:
    folder, _, _ = outputs
    for name, canary in CANARY.items():
        assert canary in (folder.parent.parent / f"{name}.jsonl").read_text()


def test_no_private_text_in_any_file_of_the_run(outputs: tuple[Path, str, str]) -> None:
    """Ledger, configuration, report, pictures, checkpoints, logs."""
    folder, _, _ = outputs
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"ledger.sqlite", "config.json"} <= {path.name for path in files}
    for path in files:
        raw = path.read_bytes()
        assert not [name for name, canary in CANARY.items() if canary.encode() in raw], path


def test_no_private_text_is_printed(outputs: tuple[Path, str, str]) -> None:
    _, printed, errors = outputs
    assert '{"event": "agents"' in printed
    assert not [canary for canary in CANARY.values() if canary in printed + errors]
