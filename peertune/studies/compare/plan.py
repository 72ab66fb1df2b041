"""Which arms are compared: those of the file, or every method that it admits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from peertune.config.reader import read_config, resolve_recipe
from peertune.config.schema import Config
from peertune.errors import ConfigError
from peertune.methods import METHODS
from peertune.places import check_places, uses_server
from peertune.studies.compare.page import markdown
from peertune.studies.compare.prices import prices
from peertune.studies.compare.recovered import recovered
from peertune.studies.compare.summary import summarise
from peertune.studies.federations import Missing, Study, jobs_of, rounded, summary_file, with_baselines
from peertune.studies.jobs import Job
from peertune.studies.records import Run

BOUNDS = ("local", "centralised")  # what a method is measured against: nobody's help, and everybody's data


@dataclass(frozen=True, slots=True)
class Plan:
    """One configuration over seeds. `arms`: those that are run beside the file's method; all if None."""

    file: str
    seeds: int
    overrides: tuple[str, ...] = ()
    arms: tuple[str, ...] | None = None

    def study(self, folder: Path) -> Study:
        """Raises `ConfigError` if the configuration is wrong, was another when the folder's runs began, or has not
        these arms.
        """
        path = resolve_recipe(self.file)
        base = read_config(path, self.overrides)
        if base.baselines:
            check_places(base)
        choice = fitting(base, Choice() if base.baselines else admitted(base))
        jobs = jobs_of(folder, self.file, self.seeds, self.overrides, partial(choice.of, names=self.arms))
        return Study(folder, jobs, partial(pages, path.stem, choice.left_out, jobs))


@dataclass(frozen=True, slots=True)
class Choice:
    """Arms beside those of the file: `added`, a section each; and arms that are `left_out`, with the reason."""

    added: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def of(self, config: Config, names: Sequence[str] | None = None) -> Config:
        """The configuration with the added arms, of which only its method and `names` are kept, and its server if
        these need one.

        Raises `ConfigError` if there is no arm of such a name.
        """
        everything = {**config.model_dump(mode="json")["baselines"], **self.added}
        baselines = {name: section for name, section in everything.items() if name not in self.left_out}
        known = [*baselines, config.method.type]
        if unknown := [name for name in names or () if name not in known]:
            cause = self.left_out.get(unknown[0])
            there = f"it is left out: {cause}" if cause else f"the arms are {', '.join(known)}"
            raise ConfigError(f"--arms: there is no arm {unknown[0]!r}; {there}")
        wanted = known if names is None else names
        kept = with_baselines(config, {name: section for name, section in baselines.items() if name in wanted})
        served = any(map(uses_server, kept.arms().values()))
        return kept if served else kept.model_copy(update={"server": None})


def admitted(config: Config) -> Choice:
    """Every method that no arm has, with its defaults, if it fits the configuration."""
    added: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    arms, baselines = config.arms(), config.model_dump(mode="json")["baselines"]
    known = {*arms, *(method.type for method in arms.values())}
    for name in dict.fromkeys([*BOUNDS, *METHODS]):
        if name in known:
            continue
        try:
            with_baselines(config, {**baselines, name: {"type": name}})
        except ConfigError as error:
            left_out[name] = str(error).removeprefix(f"{name} ({name}) ").removeprefix(f"{name}: ")
        else:
            added[name] = {"type": name}
    return Choice(added, left_out)


def fitting(config: Config, choice: Choice) -> Choice:
    """The choice without the arms that do not fit the agents, which only models and data tell.

    Raises `ConfigError`: a model or data set that is not there, agents that do not fit the configuration's method.
    """
    from peertune.cost.parties import world_of  # here, because they import torch
    from peertune.cost.plan import methods_of

    _, misfits = methods_of(world_of(choice.of(config)))
    return replace(choice, left_out={**choice.left_out, **misfits})


def pages(
    name: str, left_out: Mapping[str, str], jobs: Sequence[Job], runs: Sequence[Run], missing: Missing
) -> dict[str, bytes]:
    """summary.json, table.md and pictures of the federation `name`, whose runs are these jobs."""
    from peertune.report.canvas import png
    from peertune.studies.compare.pictures import fronts, learning

    mine = [run for run in runs if run.federation == name]
    unfinished = {run: arms for run, arms in missing.items() if run.rpartition("-s")[0] == name}
    known = {"planned": prices([job.config for job in jobs], mine), "recovered": recovered(jobs)}
    found = {"left_out": left_out, "missing": unfinished, **known}
    summary = rounded({"name": name, **found, **summarise(mine)})
    files = {"summary.json": summary_file(summary), "table.md": markdown(summary).encode()}
    if summary["arms"]:
        files |= {"learning.png": png(learning(summary)), "pareto.png": png(fronts(summary))}
    return files
