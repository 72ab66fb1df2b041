"""The local engine, and the sites of the one across organisations without a network between them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import toy
from toy import NAMES, PATH_HERE, described, fault

from peertune.engines.process import Process
from peertune.engines.worker import Start, Started
from peertune.errors import ConfigError, PeertuneError
from peertune.federation import Federation
from peertune.payloads import Profile

pytest.register_assert_rewrite("contract")

from contract import *  # noqa: E402, F403
from contract import failures, is_alive  # noqa: E402

GROUPS = {"inline": [], "one worker": toy.grouped(1), "three workers": toy.grouped(3)}


@pytest.fixture(scope="module", params=GROUPS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    folder, groups = tmp_path_factory.mktemp("toys"), GROUPS[request.param]
    engine = toy.start(folder, len(groups))
    yield engine, folder, groups
    engine.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_an_agent_that_hangs_past_the_deadline(tmp_path: Path, workers: int) -> None:
    engine = toy.start(tmp_path, workers, deadline=2.0)
    fed = Federation(engine, NAMES)
    hanging = fed["a0"].share(fault("hang"))
    other = fed["a1"].profile()
    found = fed.gather({"hanging": hanging, "other": other})
    assert list(found) == (["other"] if workers == 3 else [])
    log = fed.end_round()
    assert ("a0", "share", "no answer within 2 s; its process was stopped") in failures(log)
    assert "a0" in log.lost
    assert isinstance(fed.fetch(fed["a0"].profile()), Profile)
    engine.close()


# Beginning and end


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_agents_that_cannot_be_built(tmp_path: Path, workers: int) -> None:
    before = _children()
    with pytest.raises(ConfigError, match="^no model at /nowhere$"):
        toy.start(tmp_path, workers, refusal="no model at /nowhere")
    assert _children() == before


def test_a_process_that_dies_while_it_loads(tmp_path: Path) -> None:
    with pytest.raises(PeertuneError, match=r"the process of a1, open ended while it loaded"):
        toy.start(tmp_path, 3, crash="yes")


def test_closing_leaves_no_process(tmp_path: Path) -> None:
    before = _children()
    engine = toy.start(tmp_path, 2)
    Federation(engine, NAMES)["a0"].fit(1)
    assert len(_children() - before) == 2
    engine.close()
    assert _children() - before == set()


def test_ctrl_c_does_not_reach_a_worker_that_is_still_loading(tmp_path: Path) -> None:
    """A terminal sends it to the whole process group."""
    before = _children()
    process = Process(PATH_HERE)
    (pid,) = _children() - before
    os.kill(pid, signal.SIGINT)
    process.send(Start("toy:build", msgspec.msgpack.encode(toy.Spec(str(tmp_path))), ["a0"]))
    assert process.receive() == Started([described("a0")])
    process.stop()


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_coordinator_leaves_no_worker(tmp_path: Path, busy: bool) -> None:
    script = f"""
import pathlib, sys, toy
from peertune.federation import Federation
engine = toy.start(pathlib.Path({str(tmp_path)!r}), 2)
fed = Federation(engine, toy.NAMES)
for agent in fed.agents:
    agent.fit(1)
fed.end_round()
print("ready", flush=True)
fed.fetch(fed["a0"].share(toy.fault("hang"))) if {busy} else sys.stdin.read()
"""
    environment = {**os.environ, **PATH_HERE}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert process.stdout and process.stdin
    assert process.stdout.readline() == b"ready\n"
    workers = {int(path.read_text().split()[0]) for path in tmp_path.glob("*.trace")}
    assert len(workers) == 2 and all(map(is_alive, workers))
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()
    deadline = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        os.sched_yield()
    assert not any(map(is_alive, workers))


def _children() -> set[int]:
    """Child processes of this one that have not been waited for."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {int(pid) for task in tasks for pid in task.read_text().split()}
