"""Runs that are killed and resumed; started by test_resume.py as `python killing.py boundaries|moments FOLDER ...`.

Everything heavy is imported once; each run is a forked child with a process group of its own. Prints JSON lines.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from small import ROUTED, ignore, last_checkpoint, make_models, small_config

from peertune.config.schema import Config
from peertune.experiment import Experiment
from peertune.ledger import Ledger
from peertune.lm.model import LanguageModel


def questions(folder: Path) -> str:
    """A file of 40 questions in two categories."""
    path = folder / "questions.jsonl"
    rows = [
        {"prompt": f"{name} {index}: say it", "completion": f" it is {index}", "category": name}
        for name in ("one", "two")
        for index in range(20)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_config(folder: Path, workers: int) -> Config:
    """Two agents, a warm start and two rounds with audits, texts and a probe."""
    models = make_models(folder / "models")
    sizes = {"train": 16, "validation": 8, "transfer": 2, "probe": 2, "test": 2, "partition": "iid"}
    task = {"type": "answers", "path": questions(folder), **sizes}
    agents = [{"model": model} for model in models.values()]
    evaluation = {"max_new_tokens": 4, "every": 2}
    LanguageModel.load(next(iter(models.values())), "cpu")  # what it imports, every child has
    engine = {"workers": workers}
    return small_config({}, "", agents=agents, task=task, method=ROUTED, evaluation=evaluation, engine=engine)


def work(folder: Path, config: Config) -> None:
    """Begin the run, or go on with it; one that was killed before it was there is begun again."""
    experiment = Experiment.reopen(folder, ignore) if folder.exists() else Experiment.create(folder, config, ignore)
    experiment.run()


def child(task: Callable[[], None]) -> int:
    """Run `task` in a forked child that leads a process group; returns the child's id."""
    pid = os.fork()
    if pid:
        while os.getpgid(pid) != pid:
            os.sched_yield()
        return pid
    os.setsid()
    try:
        task()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def ended(pid: int) -> int:
    """Wait for the child; returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def result(folder: Path) -> dict[str, Any]:
    """What a finished run is compared by."""
    ledger = Ledger.read(folder / "ledger.sqlite")
    ledger.verify()
    leftovers = [path.name for path in (*folder.rglob("*.tmp"), *folder.rglob("*-journal"))]
    return {
        "head": ledger.head,
        "adapters": last_checkpoint(ledger, "knexa").body["agents"],
        "leftovers": [name for name in leftovers if not name.endswith("-journal") or _size(folder, name)],
    }


def _size(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(name))


# Every write boundary

BOUNDARIES = [(os, "fsync"), (os, "replace"), (Path, "unlink"), (Path, "rename"), (Path, "mkdir"), (Ledger, "commit")]


def kill_at(nth: int, before: bool, folder: Path, config: Config) -> None:
    """Run with every function of `BOUNDARIES` counted, and die at the n-th call."""
    count = [0]

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            count[0] += 1
            mine = count[0] == nth
            if mine and before:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = original(*args, **options)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return call

    for owner, name in BOUNDARIES:
        setattr(owner, name, wrapped(getattr(owner, name)))
    work(folder, config)


def boundaries(base: Path, side: str) -> None:
    """`side`: die `before` or `after` the call."""
    config = make_config(base, workers=0)
    assert ended(child(partial(work, base / "reference", config))) == 0
    say(result(base / "reference"))
    for nth in itertools.count(1):
        folder = base / str(nth)
        code = ended(child(partial(kill_at, nth, side == "before", folder, config)))
        if code == 0:
            return
        assert code == -signal.SIGKILL, f"{folder.name}: exit code {code}"
        assert ended(child(partial(work, folder, config))) == 0, folder.name
        say({"name": folder.name, **result(folder)})


# Random moments


def moments(base: Path, workers: int, kills: int, seed: int) -> None:
    config, chance = make_config(base, workers), random.Random(seed)
    began = time.monotonic()
    assert ended(child(partial(work, base / "reference", config))) == 0
    whole = time.monotonic() - began
    say(result(base / "reference"))
    landed = number = 0
    while landed < kills:
        folder = base / str(number)
        pid, pause = child(partial(work, folder, config)), chance.uniform(0, whole)
        time.sleep(pause)
        os.killpg(pid, signal.SIGKILL)  # a child that has just ended is still there to be waited for
        code = ended(pid)
        landed += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), f"exit code {code}"
        if code == 0:
            say({"name": folder.name, "landed": landed, **result(folder)})
            number += 1
    assert ended(child(partial(work, base / str(number), config))) == 0
    say({"name": str(number), "landed": landed, **result(base / str(number))})


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, base, *how = sys.argv[1:]
    if mode == "boundaries":
        boundaries(Path(base), *how)
    else:
        moments(Path(base), *map(int, how))
