"""What `peertune study` and `peertune compare` do for a person: progress, tables, Ctrl-C. Heavy imports are
inside."""

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from peertune.terminal import counting, print_rows

if TYPE_CHECKING:
    from peertune.studies.compare.plan import Plan
    from peertune.studies.federations import Limits, Study
    from peertune.studies.knexa import Plan as KnexaPlan


def synthetic(name: str, folder: Path, quick: bool) -> None:
    """Run the study of pairing policies, or of the features of one of them, and print its tables."""
    from peertune.studies import ablation, matchmaking

    study, plan = (ablation.study, ablation.PLAN) if name == "ablation" else (matchmaking.study, matchmaking.Plan())
    with counting("federations") as watch:
        files = study(folder, matchmaking.QUICK if quick else plan, watch)
    _show(files)


def federated(folder: Path, plan: "KnexaPlan", limits: "Limits") -> int:
    """Run the study of real federations, as far as the limits allow, and print its tables, which hold what is finished;
    the exit code.
    """
    return _as_far(plan.study(folder), limits, _show)


def compare(folder: Path, plan: "Plan", limits: "Limits") -> int:
    """Run all arms of a configuration over seeds, as far as the limits allow, and print what they reach and cost; the
    exit code.
    """
    study = plan.study(folder)
    typer.echo(f"arms: {', '.join(study.jobs[0].config.arms())}")
    return _as_far(study, limits, _show_short)


def _as_far(study: "Study", limits: "Limits", show: Callable[[Sequence[Path]], None]) -> int:
    """Run as far as the limits allow, write and show what there is; the exit code. The first Ctrl-C stops after the
    running rounds.
    """
    pressed = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal pressed
        if not study.stop():
            os._exit(130)
        pressed = True
        typer.echo("finishing the running rounds; press Ctrl-C again to stop at once", err=True)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        _run(study, limits)
        show(study.write())
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
    _say_written(files)


def _show_short(files: Sequence[Path]) -> None:
    from peertune.report.table import counted
    from peertune.studies.compare.page import short, unaudited

    summary = json.loads(files[0].read_text(encoding="utf-8"))
    for name, why in summary["left_out"].items():
        typer.echo(f"left out: {name}: {why}")
    if summary["arms"]:
        print_rows(f"{summary['name']}: {counted(len(summary['seeds']), 'seed')}", *short(summary))
        if how := unaudited(summary):
            typer.echo(how)
    _say_written(files)


def _say_written(files: Sequence[Path]) -> None:
    typer.echo(f"written: {', '.join(map(str, files))}")
