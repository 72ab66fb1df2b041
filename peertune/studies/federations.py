"""Whole federations over seeds: one configuration under one seed is a job, an ordinary run in FOLDER/runs.

It may be stopped or killed at any time; called again it goes on. What is written is made of whatever the folder holds,
from ledgers alone.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peertune.checkpoint import make_folder
from peertune.config.reader import read_config, resolve_recipe
from peertune.config.schema import Config
from peertune.errors import ConfigError, StorageError
from peertune.places import check_places
from peertune.runs import locked, new_run
from peertune.studies.jobs import Crew, Job, check_same_version
from peertune.studies.records import Run, read_runs

SEEDS = 5  # where nothing else is said

Watch = Callable[[str, int, int], None]  # told (what is finished, done, all) after each arm
Missing = Mapping[str, Sequence[str]]  # run -> the arms that it has not finished
Pages = Callable[[Sequence[Run], Missing], Mapping[str, bytes]]  # the files of a study, by name


@dataclass(frozen=True, slots=True)
class Limits:
    """How far one call goes: jobs at once (None: one a core), and minutes (None: to the end)."""

    jobs: int | None = None
    minutes: float | None = None


def jobs_of(
    folder: Path, file: str, seeds: int, overrides: Sequence[str], choose: Callable[[Config], Config]
) -> list[Job]:
    """One configuration, a file or the name of a recipe, under `seeds` seeds. `choose` decides which arms are run.

    Raises `ConfigError` if it is wrong.
    """
    path = resolve_recipe(file)
    jobs = []
    for seed in range(seeds):
        config = choose(read_config(path, [*overrides, "engine.workers=0", f"seed={seed}"]))
        jobs.append(Job(new_run(folder / "runs", f"{path.stem}-s{seed}"), config))
    check_places(jobs[-1].config)
    return jobs


def with_baselines(config: Config, baselines: Mapping[str, Any]) -> Config:
    """The configuration with these baselines, plain values, and no others. Raises `ConfigError` if they do not fit."""
    data = config.model_dump(mode="json") | {"baselines": dict(baselines)}
    try:
        return Config.model_validate_json(json.dumps(data))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(" ".join(reason.split())) from None


@dataclass(slots=True)
class Study:
    """Jobs in `folder`, and the `pages` that are made of them. `failures`: job -> one line, after `run`.

    Raises `ConfigError` if a job was another when the folder's runs began.
    """

    folder: Path
    jobs: list[Job]
    pages: Pages
    failures: dict[str, str] = field(default_factory=dict)
    crew: Crew | None = None

    def __post_init__(self) -> None:
        names = [job.name for job in self.jobs]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two configurations would both be run as {repeated[0]!r}; rename one of the files")
        for job in self.jobs:
            check_same_version(job)

    def run(self, limits: Limits, watch: Watch) -> None:
        """Run what is not finished, as far as the limits allow. Raises `ConfigError` if another study works here."""
        try:
            make_folder(self.folder)
        except OSError as error:
            raise StorageError(
                f"{self.folder} cannot be made ({error.strerror}); name another folder with --to"
            ) from error
        (done, of), waiting = self.progress(), [job for job in self.jobs if job.finished() < set(job.config.arms())]

        def heard(job: str, arm: str) -> None:
            nonlocal done
            done += 1
            watch(f"{job}: {arm}", done, of)

        with locked(self.folder):
            places = limits.jobs or len(os.sched_getaffinity(0))
            self.crew = Crew(places, self.folder / "errors.log", heard)
            self.crew.run(waiting, None if limits.minutes is None else 60 * limits.minutes)
            self.failures = self.crew.failures

    def stop(self) -> bool:
        """Begin nothing more, and end after the running rounds. False if nothing runs, or that was asked before."""
        if self.crew is None or self.crew.stopping:
            return False
        self.crew.stop()
        return True

    def progress(self) -> tuple[int, int]:
        """How many arms are finished, and how many there are."""
        return sum(len(job.finished()) for job in self.jobs), sum(len(job.config.arms()) for job in self.jobs)

    def write(self) -> list[Path]:
        """The files of all runs in the folder, replacing those of an earlier call; in the order of `pages`."""
        runs = read_runs(self.folder / "runs")
        files = {self.folder / name: content for name, content in self.pages(runs, self._missing(runs)).items()}
        try:
            make_folder(self.folder)
            for path, content in files.items():
                path.write_bytes(content)
        except OSError as error:
            raise StorageError(
                f"{self.folder} cannot be written ({error.strerror}); name another folder with --to"
            ) from error
        return list(files)

    def _missing(self, runs: Sequence[Run]) -> Missing:
        """Of the arms that were begun or planned."""
        found = {job.name: list(job.config.arms()) for job in self.jobs}
        found |= {f"{run.federation}-s{run.seed}": run.unfinished for run in runs}
        return {name: arms for name, arms in found.items() if arms}


def rounded(value: Any) -> Any:
    """Plain JSON values with numbers to four places, so that tables are the same from memory and from the file."""
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def summary_file(summary: Any) -> bytes:
    """JSON with one line for each row of a table."""
    return f"{_json(summary)}\n".encode()


def _json(value: Any, depth: int = 4) -> str:
    if isinstance(value, list) and value and isinstance(value[0], Mapping | list) and depth:
        return "[\n" + ",\n".join(_json(one, 0) for one in value) + "\n]"
    if isinstance(value, Mapping) and depth:
        return "{" + ",\n".join(f"{json.dumps(key)}: {_json(one, depth - 1)}" for key, one in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
