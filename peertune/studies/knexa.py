"""Does learned matchmaking hold up on real models? Whole federations over seeds: tables, intervals, goals, pictures.

A job is one configuration under one seed, an ordinary run in FOLDER/runs. The study may be stopped or killed at any
time; called again it goes on. Its tables are made of whatever the folder holds, from ledgers alone.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peertune.checkpoint import make_folder
from peertune.config.reader import read_config, resolve_recipe
from peertune.config.schema import Config
from peertune.errors import ConfigError, StorageError
from peertune.places import check_places
from peertune.runs import locked, new_run
from peertune.studies.goals import DIRICHLET, EXPERTS, FILTERED, HONEST, LIARS, LOCAL, PAIRED, UNIFORM
from peertune.studies.jobs import Crew, Job, check_same_version
from peertune.studies.paired import arms_of
from peertune.studies.records import Run, read_runs
from peertune.studies.tables import markdown, summarise

SEEDS = 5  # where the study says nothing else
# the configurations of the study, bundled recipes, the headline first: name -> seeds
# `knexa-answers` is named by hand: its data has to be made first
FEDERATIONS = {EXPERTS: 10, DIRICHLET: SEEDS, LIARS: SEEDS, HONEST: SEEDS}

Watch = Callable[[str, int, int], None]  # told (what is finished, done, all) after each arm


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. `files`: configurations or names of recipes. `seeds` and `arms` (baselines): all if None."""

    files: tuple[str, ...] = tuple(FEDERATIONS)
    seeds: int | None = None
    overrides: tuple[str, ...] = ()
    arms: tuple[str, ...] | None = None


# the headline's order in less than ten minutes on two idle cores, without intervals worth the name
QUICK = Plan(
    files=(EXPERTS,),
    seeds=2,
    overrides=("rounds=4", "evaluation.every=2", "evaluation.final=null"),
    arms=(LOCAL, UNIFORM, FILTERED, PAIRED, "central_filtered"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How far one call goes: jobs at once (None: one a core), and minutes (None: to the end)."""

    jobs: int | None = None
    minutes: float | None = None


@dataclass(slots=True)
class Study:
    """A study in `folder`. `failures`: job -> one line, after `run`."""

    folder: Path
    jobs: list[Job]
    failures: dict[str, str] = field(default_factory=dict)
    crew: Crew | None = None

    @classmethod
    def plan(cls, folder: Path, plan: Plan) -> "Study":
        """Read all configurations. Raises `ConfigError` if one is wrong, or was another when the folder's runs
        began.
        """
        jobs: list[Job] = []
        for file in plan.files:
            path = resolve_recipe(file)
            seeds = plan.seeds or FEDERATIONS.get(path.stem, SEEDS)
            for seed in range(seeds):
                overrides = [*plan.overrides, "engine.workers=0", f"seed={seed}"]
                config = _only(read_config(path, overrides), plan.arms)
                jobs.append(Job(new_run(folder / "runs", f"{path.stem}-s{seed}"), config))
            check_places(jobs[-1].config)
        names = [job.name for job in jobs]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"two configurations would both be run as {repeated[0]!r}; rename one of the files")
        for job in jobs:
            check_same_version(job)
        return cls(folder, jobs)

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
        """Tables and pictures of all runs in the folder: summary.json, table.md, learning-*.png, teaching-*.png."""
        runs = read_runs(self.folder / "runs")
        by_federation: dict[str, list[Run]] = {}
        for run in runs:
            if arms_of([run]):
                by_federation.setdefault(run.federation, []).append(run)
        order = list(dict.fromkeys([*FEDERATIONS, *(run.federation for run in runs)]))
        study = {name: by_federation[name] for name in order if name in by_federation}
        return write(self.folder, summarise(study, _missing(runs, self.jobs)))


def _only(config: Config, arms: Sequence[str] | None) -> Config:
    """The configuration with no other baselines than these."""
    if arms is None:
        return config
    data = config.model_dump(mode="json")
    data["baselines"] = {name: section for name, section in data["baselines"].items() if name in arms}
    return Config.model_validate_json(json.dumps(data))


def _missing(runs: Sequence[Run], jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Run -> the arms that it has not finished, of those that were begun or planned."""
    found = {job.name: list(job.config.arms()) for job in jobs}
    found |= {f"{run.federation}-s{run.seed}": run.unfinished for run in runs}
    return {name: arms for name, arms in found.items() if arms}


def write(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """The files of a study in `folder`, replacing those of an earlier call."""
    from peertune.report.canvas import png
    from peertune.studies.figures import learning, teaching

    summary = rounded(found)
    files: dict[Path, bytes] = {
        folder / "summary.json": f"{_json(summary)}\n".encode(),
        folder / "table.md": markdown(summary).encode(),
    }
    for name in summary["federations"]:
        for kind, picture in (("learning", learning(summary, name)), ("teaching", teaching(summary, name))):
            if picture:
                files[folder / f"{kind}-{name}.png"] = png(picture)
    try:
        make_folder(folder)
        for path, content in files.items():
            path.write_bytes(content)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); name another folder with --to") from error
    return list(files)


def rounded(value: Any) -> Any:
    """Plain JSON values with numbers to four places, so that tables are the same from memory and from the file."""
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


def _json(value: Any, depth: int = 4) -> str:
    """JSON with one line for each row of a table."""
    if isinstance(value, list) and value and isinstance(value[0], Mapping | list) and depth:
        return "[\n" + ",\n".join(_json(one, 0) for one in value) + "\n]"
    if isinstance(value, Mapping) and depth:
        return "{" + ",\n".join(f"{json.dumps(key)}: {_json(one, depth - 1)}" for key, one in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
