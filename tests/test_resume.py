"""`kill -9` at any moment, Ctrl-C at any moment: the run goes on and ends as if nothing had happened.

The killing is done by killing.py in a process of its own, which imports torch once and forks a child for each run.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small import make_models, small_config

from peertune.errors import ConfigError
from peertune.ledger import Ledger
from peertune.runs import locked

HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def killing(*args: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What killing.py reports of its undisturbed run and of the others."""
    command = [sys.executable, str(HERE / "killing.py"), *map(str, args)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    reference, *others = [json.loads(line) for line in done.stdout.splitlines()]
    return reference, others


def check(reference: dict[str, Any], others: list[dict[str, Any]]) -> None:
    for other in others:
        assert {key: other[key] for key in reference} == reference, other["name"]
    assert reference["leftovers"] == []


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_kill_at_every_write_boundary(tmp_path: Path, side: str) -> None:
    """Before and after each sync, rename, deletion, new folder and commit of a run of two agents and two rounds."""
    reference, others = killing("boundaries", tmp_path, side)
    assert len(others) >= 40
    check(reference, others)


@pytest.mark.parametrize(("workers", "kills"), [(0, 19), (2, 6)])
def test_kills_at_random_moments(tmp_path: Path, workers: int, kills: int) -> None:
    """SIGKILL of the whole process group; each run is resumed, and killed again, until it ends."""
    reference, others = killing("moments", tmp_path, str(workers), str(kills), "0")
    assert others[-1]["landed"] == kills
    check(reference, others)


@pytest.mark.slow  # 25 runs with workers that import torch: several minutes
def test_many_kills_of_worker_processes_at_random_moments(tmp_path: Path) -> None:
    reference, others = killing("moments", tmp_path, "2", "25", "1")
    check(reference, others)


def test_a_lock_that_outlives_its_killed_process_is_waited_for(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.3, partial(fcntl.flock, held, fcntl.LOCK_UN)).start()
        with locked(tmp_path), pytest.raises(ConfigError, match="another process"), locked(tmp_path):
            pass


# Ctrl-C


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    config = small_config(make_models(folder / "models"), "llama gpt2", rounds=4, engine={"workers": 1})
    path = folder / "small.yaml"
    path.write_text(config.model_dump_json())  # JSON is YAML
    return path


@pytest.fixture(scope="module")
def head(recipe: Path) -> str:
    with command(recipe.parent, "run", str(recipe), "--name", "whole") as process:
        process.communicate()
    assert process.returncode == 0
    return Ledger.read(recipe.parent / "whole" / "ledger.sqlite").head


@contextmanager
def command(runs: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """`peertune ARGS` without a terminal, in a process group of its own as a shell would start it."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from peertune.cli import main; main()", *args, "--runs", str(runs)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def until(process: subprocess.Popen[str], event: str, **body: Any) -> None:
    """Read the command's JSON lines up to that event."""
    assert process.stdout
    for line in process.stdout:
        said = json.loads(line)
        if said["event"] == event and body.items() <= said.items():
            return
    raise AssertionError(f"no {event} {body}: {process.stderr.read() if process.stderr else ''}")


def resumed(runs: Path, name: str) -> str:
    with command(runs, "resume", name) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    return Ledger.read(runs / name / "ledger.sqlite").head


def test_one_interrupt_finishes_the_round(recipe: Path, head: str) -> None:
    """A terminal sends Ctrl-C to the whole group: workers and sandboxes must not mind."""
    with command(recipe.parent, "run", str(recipe), "--name", "once") as process:
        until(process, "begin", arm="knexa", round=1)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert "finishing this round" in errors and "peertune resume once" in errors
    assert "Traceback" not in errors
    events = list(Ledger.read(recipe.parent / "once" / "ledger.sqlite").events())
    assert (events[-1].kind, events[-1].round) == ("checkpoint", 1)
    assert not [event for event in events if event.kind == "failure"]
    assert resumed(recipe.parent, "once") == head


def test_a_second_interrupt_ends_at_once_and_loses_at_most_the_round(recipe: Path, head: str) -> None:
    with command(recipe.parent, "run", str(recipe), "--name", "twice") as process:
        until(process, "begin", arm="knexa", round=2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr
        while "finishing this round" not in process.stderr.readline():
            continue
        os.killpg(process.pid, signal.SIGINT)
        process.communicate()
    assert process.returncode == 130
    events = list(Ledger.read(recipe.parent / "twice" / "ledger.sqlite").events())
    assert (events[-1].kind, events[-1].round) in (("checkpoint", 1), ("checkpoint", 2))
    assert resumed(recipe.parent, "twice") == head
