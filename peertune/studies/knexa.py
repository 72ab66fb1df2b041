"""Does learned matchmaking hold up on real models? Whole federations over seeds: tables, intervals, goals, pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peertune.config.reader import resolve_recipe
from peertune.config.schema import Config
from peertune.errors import ConfigError
from peertune.studies.federations import SEEDS, Missing, Study, jobs_of, rounded, summary_file, with_baselines
from peertune.studies.goals import DIRICHLET, EXPERTS, FILTERED, HONEST, LIARS, LOCAL, PAIRED, UNIFORM
from peertune.studies.paired import arms_of
from peertune.studies.records import Run
from peertune.studies.tables import markdown, summarise

# the configurations of the study, bundled recipes, the headline first: name -> seeds
# `knexa-answers` is named by hand: its data has to be made first
FEDERATIONS = {EXPERTS: 10, DIRICHLET: SEEDS, LIARS: SEEDS, HONEST: SEEDS}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. `files`: configurations or names of recipes. `seeds` and `arms` (baselines): all if None."""

    files: tuple[str, ...] = tuple(FEDERATIONS)
    seeds: int | None = None
    overrides: tuple[str, ...] = ()
    arms: tuple[str, ...] | None = None

    def study(self, folder: Path) -> Study:
        """Raises `ConfigError` if a configuration is wrong, or was another when the folder's runs began."""
        jobs = []
        for file in self.files:
            seeds = self.seeds or FEDERATIONS.get(resolve_recipe(file).stem, SEEDS)
            jobs += jobs_of(folder, file, seeds, self.overrides, self._only)
        known = {arm for job in jobs for arm in job.config.arms()}
        if unknown := sorted({*(self.arms or ())} - known):
            raise ConfigError(f"--arms: none of {', '.join(self.files)} has an arm {unknown[0]!r}")
        return Study(folder, jobs, pages)

    def _only(self, config: Config) -> Config:
        """The configuration with no other baselines than `arms`."""
        if self.arms is None:
            return config
        baselines: Mapping[str, Any] = config.model_dump(mode="json")["baselines"]
        return with_baselines(config, {name: section for name, section in baselines.items() if name in self.arms})


# the headline's order in less than ten minutes on two idle cores, without intervals worth the name
QUICK = Plan(
    files=(EXPERTS,),
    seeds=2,
    overrides=("rounds=4", "evaluation.every=2", "evaluation.final=null"),
    arms=(LOCAL, UNIFORM, FILTERED, PAIRED, "central_filtered"),
)


def pages(runs: Sequence[Run], missing: Missing) -> dict[str, bytes]:
    """summary.json, table.md, learning-*.png and teaching-*.png of all federations."""
    from peertune.report.canvas import png
    from peertune.studies.figures import learning, teaching

    by_federation: dict[str, list[Run]] = {}
    for run in runs:
        if arms_of([run]):
            by_federation.setdefault(run.federation, []).append(run)
    order = list(dict.fromkeys([*FEDERATIONS, *by_federation]))
    study = {name: by_federation[name] for name in order if name in by_federation}
    summary = rounded(summarise(study, missing))
    files = {"summary.json": summary_file(summary), "table.md": markdown(summary).encode()}
    for name in study:
        for kind, picture in (("learning", learning(summary, name)), ("teaching", teaching(summary, name))):
            if picture:
                files[f"{kind}-{name}.png"] = png(picture)
    return files
