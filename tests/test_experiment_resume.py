"""Runs repeat themselves: with the same seed, and after a stop, a lost worker, a damaged checkpoint or a full disk."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from experiment_parts import TWO, stopped_after, workers
from small import bodies, last_checkpoint, make_models, resume, run, small_config
from tiny import make_tiny_model

import peertune.checkpoint
from peertune.checkpoint import Blobs
from peertune.engines.local import LocalEngine
from peertune.errors import AgentError, ConfigError, PeertuneError, StorageError
from peertune.federation import Federation
from peertune.ledger import Ledger


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def head(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The ledger's head after an undisturbed run of two agents."""
    return run(tmp_path_factory.mktemp("runs") / "undisturbed", small_config(models, TWO)).head


@pytest.fixture(scope="module")
def longer(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with three rounds."""
    return run(tmp_path_factory.mktemp("runs") / "longer", small_config(models, TWO, rounds=3)).head


def test_another_seed_is_another_run(models: dict[str, str], tmp_path: Path, head: str) -> None:
    assert run(tmp_path / "run", small_config(models, TWO, seed=1)).head != head
    assert run(tmp_path / "again", small_config(models, TWO)).head == head


# Stopping and going on


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


@pytest.mark.gpu
def test_a_run_on_a_gpu_repeats_itself(models: dict[str, str], tmp_path: Path) -> None:
    config = small_config(models, TWO, rounds=1, engine={"workers": "auto", "device": "cuda"})
    first, second = (run(tmp_path / name, config) for name in ("first", "second"))
    assert len(bodies(first, "scores", "knexa")) == 2 and first.head == second.head
