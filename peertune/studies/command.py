"""What `peertune study` does for a person: progress, tables, Ctrl-C. Heavy imports happen inside."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from peertune.terminal import counting

if TYPE_CHECKING:
    from peertune.studies.knexa import Limits, Study


def matchmaking(folder: Path, quick: bool) -> None:
    """Run the study of pairing policies and print its tables."""
    from peertune.studies.matchmaking import QUICK, Plan, study

    with counting("federations") as watch:
        files = study(folder, QUICK if quick else Plan(), watch)
    _show(files)


def knexa(
    folder: Path,
    quick: bool,
    files: Sequence[str],
    overrides: Sequence[str],
    numbers: tuple[int | None, int | None, float | None],
) -> int:
    """Run the study of real federations, as far as `numbers` (seeds, jobs at once, minutes) allow, and print its
    tables, which hold what is finished; the exit code. The first Ctrl-C stops after the running rounds.
    """
    from peertune.studies.knexa import QUICK, Limits, Plan, Study

    plan, (seeds, jobs, minutes) = QUICK if quick else Plan(), numbers
    given = Plan(tuple(files or plan.files), seeds or plan.seeds, (*plan.overrides, *overrides), plan.arms)
    study, pressed = Study.plan(folder, given), False

    def interrupt(number: int, frame: object) -> None:
        nonlocal pressed
        if not study.stop():
            os._exit(130)
        pressed = True
        typer.echo("finishing the running rounds; press Ctrl-C again to stop at once", err=True)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        _run(study, Limits(jobs, minutes))
        _show(study.write())
    finally:
        signal.signal(signal.SIGINT, before)
    for job, cause in study.failures.items():
        typer.echo(f"peertune: {job} failed: {cause}", err=True)
    return 2 if study.failures else 130 if pressed else 0


def _run(study: "Study", limits: "Limits") -> None:
    """A bar for a person on a terminal, one line a finished arm for everything else."""
    if sys.stdout.isatty():
        with counting("arms") as count:
            count(*study.progress())
            study.run(limits, lambda what, done, of: count(done, of))
    else:
        study.run(limits, lambda what, done, of: print(f"{what} ({done} of {of} arms)", flush=True))  # noqa: T201


def _show(files: Sequence[Path]) -> None:
    typer.echo(files[1].read_text(encoding="utf-8"))
    typer.echo(f"written: {', '.join(map(str, files))}")
