"""The `peertune` command. Heavy imports happen inside the verbs, so that `--help` answers at once."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from peertune import aligning, deploying, measuring, sent
from peertune.errors import ConfigError, PeertuneError
from peertune.options import Name, Runs, Set, Source

app = typer.Typer(
    name="peertune",
    help="Organisations that must not share data fine-tune their language models together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
MEASURING = (measuring.plan, measuring.compare, measuring.study, measuring.audit)
for command in (*MEASURING, sent.outbox, aligning.align, *deploying.COMMANDS):
    app.command()(command)


def main() -> None:
    """Entry point: an error is one message and its exit code, never a traceback."""
    _mend_streams()
    try:
        app()
    except PeertuneError as error:
        _end(str(error), error.exit_code)
    except ImportError as error:
        _end(f"the installation is not complete ({error}); install it again: pip install -e . in the checkout", 2)
    except OSError as error:  # what a file of a run meets is a `StorageError`: this is the output, most likely
        _end(f"{error.filename or 'the output'}: {error.strerror}; free space or check the rights", 2)


def _mend_streams() -> None:
    """A closed output swallows what is written to it; a letter that its encoding lacks is written as `?`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  until the process ends
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _end(message: str, exit_code: int) -> NoReturn:
    typer.echo(f"peertune: {message}", err=True)
    raise SystemExit(exit_code) from None


@app.command()
def init(
    recipe: Annotated[str, typer.Argument(help="The name of a bundled recipe.")],
    file: Annotated[Path | None, typer.Argument(help="Where to; RECIPE.yaml here by default.")] = None,
) -> None:
    """Copy a commented recipe, to be edited."""
    from peertune.config import resolve_recipe

    source, target = resolve_recipe(recipe), file or Path(f"{recipe}.yaml")
    if target.exists():
        raise ConfigError(f"{target} exists and is not overwritten; name another file")
    try:
        target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror})") from error
    typer.echo(f"{target} written; edit it, then `peertune validate {target}` and `peertune run {target}`")


@app.command("ls")
def list_everything(runs: Runs = Path("runs")) -> None:
    """List recipes, methods, tasks, matchmakers and runs."""
    from peertune.listing import listing

    for title, entries in listing(runs).items():
        typer.echo(title)
        for name, about in entries:
            typer.echo(f"  {name:<16} {about}")


@app.command()
def validate(file: Source, set: Set = []) -> None:  # noqa: B006
    """Check a configuration without loading a model: offline, in under two seconds."""
    from peertune.config import read_config, resolve_recipe
    from peertune.places import check_places

    path = resolve_recipe(file)
    config = read_config(path, set)
    remote = check_places(config)
    typer.echo(f"{path}: OK: {len(config.agents)} agents, {config.rounds} rounds of {', '.join(config.arms())}")
    if remote:
        typer.echo(f"no folder here, so the Hugging Face hub will be asked for: {', '.join(remote)}")


@app.command()
def doctor(deploy: deploying.Deploy = None) -> None:
    """Check what a run needs: Python, torch, CPU or GPU, memory, sandbox, disk; with `--deploy`, what a kit needs."""
    from peertune.doctor import examine
    from peertune.terminal import print_rows

    checks = deploying.preflight(deploy) if deploy else examine()
    print_rows("peertune doctor", ["Check", "Found", "How to fix"], [[c.name, c.found, c.fix] for c in checks])
    if any(check.fix for check in checks):
        raise typer.Exit(2)


@app.command()
def run(
    file: Source,
    name: Annotated[
        str | None, typer.Option(help="Name of the run; the recipe's name and a number by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Replaces the configuration's seed.")] = None,
    set: Set = [],  # noqa: B006
    runs: Runs = Path("runs"),
    on: deploying.OptionalOn = None,
) -> None:
    """Run a configuration from start to end: baselines, method, report. With `--on`, across organisations."""
    from peertune.config import read_config, resolve_recipe
    from peertune.places import check_places
    from peertune.runs import free_name, new_run

    path = resolve_recipe(file)
    config = read_config(path, [*set, *([f"seed={seed}"] if seed is not None else [])])
    if on:
        return deploying.run_on(on, config, name or path.stem)
    folder = free_name(runs, path.stem) if name is None else new_run(runs, name)
    check_places(config)

    from peertune.experiment import Experiment
    from peertune.terminal import print_results

    with _watching() as (watch, preview):
        _run_to_end(Experiment.create(folder, config, watch), preview)
    print_results(folder)


@app.command()
def resume(name: Name, runs: Runs = Path("runs")) -> None:
    """Continue a run from its last complete round."""
    from peertune.runs import existing_run, is_finished
    from peertune.terminal import print_results

    folder = existing_run(runs, name)
    if is_finished(folder):
        typer.echo(f"the run {name!r} is finished, there is nothing to resume; these are its results", err=True)
    else:
        from peertune.experiment import Experiment  # after the cheap checks: this imports torch

        with _watching() as (watch, preview):
            _run_to_end(Experiment.reopen(folder, watch), preview)
    print_results(folder)


@app.command()
def show(
    name: Name,
    jsonl: Annotated[
        Path | None, typer.Option(help="Also write the ledger's events and facts there, as JSON lines.")
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Print the tables of a run and write its report."""
    from peertune.ledger import Ledger
    from peertune.runs import LEDGER, existing_run
    from peertune.terminal import print_everything

    folder = existing_run(runs, name)
    print_everything(folder)
    if jsonl:
        ledger = Ledger.read(folder / LEDGER)
        ledger.export(jsonl)
        ledger.close()


@app.command()
def export(
    name: Name,
    agent: Annotated[str, typer.Option(help="The agent whose adapter is wanted.")],
    to: Annotated[Path, typer.Option(help="The folder to write: an ordinary PEFT adapter.")],
    arm: Annotated[str | None, typer.Option(help="Which arm; the run's method by default.")] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write an agent's adapter as a PEFT folder, load it again and compare it with the run's before saying OK."""
    from peertune.runs import existing_run

    folder = existing_run(runs, name)

    from peertune.export import export_adapter  # after the cheap checks: this imports torch

    typer.echo(export_adapter(folder, agent, to, arm))


@contextmanager
def _watching() -> Iterator[tuple[Any, Any]]:
    """For a person on a terminal progress and the first examples, for everything else one JSON line an event: private
    text is for a person, not for a log.
    """
    if sys.stdout.isatty():
        from peertune.terminal import Progress

        with Progress() as progress:
            yield progress, progress.preview
    else:
        yield _print_json, lambda facts, text: None


def _print_json(event: str, body: dict[str, Any]) -> None:
    print(json.dumps({"event": event, **body}), flush=True)  # noqa: T201


def _run_to_end(experiment: Any, preview: Any) -> None:
    """Run; the first Ctrl-C stops after the round, the second at once."""

    def interrupt(number: int, frame: object) -> None:
        if experiment.stopping:
            os._exit(130)
        experiment.request_stop()
        message = (
            f"finishing this round; press Ctrl-C again to stop at once, then `peertune resume {experiment.folder.name}`"
        )
        print(message, file=sys.stderr, flush=True)  # noqa: T201

    signal.signal(signal.SIGINT, interrupt)
    experiment.preview = preview
    experiment.run()
