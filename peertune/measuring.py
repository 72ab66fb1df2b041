"""The commands that price and measure: `plan`, `compare`, `study`, `audit`. Heavy imports happen inside them."""

from pathlib import Path
from typing import Annotated

import typer

from peertune.errors import ConfigError
from peertune.options import Runs, Set, Source


def plan(
    file: Source,
    bandwidth: Annotated[float, typer.Option(min=0.001, help="Of each agent's link, in Mbit/s.")] = 100.0,
    rtt: Annotated[float, typer.Option(min=0, help="Of a round trip, in ms.")] = 50.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, with each link's bytes.")] = False,
    set: Set = [],  # noqa: B006
) -> None:
    """Price a configuration before it is run: bytes, round trips, FLOPs, memory, and who will see what.

    Its arms, and every other method that fits it. Data is read, and of the models only config.json and the tokenizer:
    nothing is trained.
    """
    from peertune.cost import command

    command.plan(file, set, (1e6 * bandwidth, rtt / 1000), as_json)


def study(  # noqa: PLR0913  each is an option of the command
    name: Annotated[str, typer.Argument(help="Which study: matchmaking, ablation or knexa.")],
    files: Annotated[
        list[str] | None,
        typer.Argument(help="knexa: configurations, each a YAML file or a recipe; those of the study by default."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small form: seconds, or (knexa) ten minutes.")] = False,
    to: Annotated[Path | None, typer.Option(help="The folder to write; study-NAME here by default.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="knexa: seeds of each configuration.")] = None,
    arms: Annotated[
        str | None, typer.Option(metavar="A,B", help="knexa: only these beside a file's method; all by default.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="knexa: runs at once; one a core by default.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="knexa: stop then, after the running rounds; call again to go on.")
    ] = None,
    set: Set = [],  # noqa: B006
) -> None:
    """Measure a claim: summary.json, table.md and pictures.

    `matchmaking`: pairing policies on synthetic federations, without models. `ablation`: there, `pairwise` without each
    group of its features. `knexa`: real federations over seeds, in processes of one thread; stopped or killed, the same
    command goes on.
    """
    if name not in ("matchmaking", "ablation", "knexa"):
        raise ConfigError(f"there is no study {name!r}; expected matchmaking, ablation or knexa")
    folder = to or Path(f"study-{name}-quick" if quick and name == "knexa" else f"study-{name}")

    from peertune.studies import command

    if name == "knexa":
        from peertune.studies.federations import Limits
        from peertune.studies.knexa import QUICK, Plan

        plan = QUICK if quick else Plan()
        overrides, chosen = (*plan.overrides, *set), _names(arms) or plan.arms
        given = Plan(tuple(files or plan.files), seeds or plan.seeds, overrides, chosen)
        raise typer.Exit(command.federated(folder, given, Limits(jobs, minutes)))
    if files or set or seeds or arms or jobs or minutes is not None:
        raise ConfigError(f"the study {name} takes --quick and --to, and no configuration")
    command.synthetic(name, folder, quick)


def compare(  # noqa: PLR0913  each is an option of the command
    file: Source,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 5,
    arms: Annotated[
        str | None, typer.Option(metavar="A,B", help="Only these beside the file's method; all arms by default.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The folder to write; compare-FILE here by default.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once; one a core by default.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop then, after the running rounds; call again to go on.")
    ] = None,
    set: Set = [],  # noqa: B006
) -> None:
    """Run all arms of a configuration over seeds: what each reaches, and what it costs.

    If the file has no baselines, `local`, `centralised` and every other method that fits it are run beside its own.
    Written are summary.json, table.md, learning curves by round, bytes and FLOPs, and Pareto fronts. Stopped or killed,
    the same command goes on.
    """
    from peertune.config import resolve_recipe
    from peertune.studies import command
    from peertune.studies.compare.plan import Plan
    from peertune.studies.federations import Limits

    folder = to or Path(f"compare-{resolve_recipe(file).stem}")
    plan = Plan(file, seeds, tuple(set), _names(arms))
    raise typer.Exit(command.compare(folder, plan, Limits(jobs, minutes)))


def audit(
    source: Annotated[str, typer.Argument(help="A run, or a YAML file or recipe: its first model, before training.")],
    agent: Annotated[str | None, typer.Option(help="A run: whose model; the first agent's by default.")] = None,
    arm: Annotated[str | None, typer.Option(help="A run: after which arm; the run's method by default.")] = None,
    to: Annotated[Path | None, typer.Option(help="The JSON file to write; audit.json of the run by default.")] = None,
    set: Set = [],  # noqa: B006
    runs: Runs = Path("runs"),
) -> None:
    """Measure how much text the server of split learning could read off hidden states, by cut and codec.

    Two attackers guess the tokens of the public test: by what each token becomes when it stands alone, and by a linear
    map that is trained on the other public problems. They are weak: what they recover is the least to be expected.
    """
    from peertune.config import read_config, resolve_recipe
    from peertune.runs import AUDIT, LEDGER

    run = (runs / source / LEDGER).is_file()
    if run and set:
        raise ConfigError("a run has its configuration; --set is for files and recipes")
    config = None if run else read_config(resolve_recipe(source), set)

    from peertune.audit import COLUMNS, audit_config, audit_run  # after the cheap checks: this imports torch
    from peertune.terminal import counting, print_rows

    with counting("audit") as watch:
        found = audit_config(config, watch) if config else audit_run(runs / source, agent, arm, watch)
    print_rows(found.title, COLUMNS, found.rows())
    target = to or (runs / source / AUDIT if run else Path(f"audit-{Path(source).stem}.json"))
    found.write(target)
    typer.echo(f"{target} written; at a server that also has the head, labels are visible besides")


def _names(arms: str | None) -> tuple[str, ...] | None:
    return None if arms is None else tuple(arms.split(","))
