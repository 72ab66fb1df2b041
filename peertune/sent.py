"""The command `outbox`: what left a party. Heavy imports happen inside it."""

from datetime import datetime
from pathlib import Path
from time import localtime, strftime
from typing import TYPE_CHECKING, Annotated

import typer

from peertune.errors import ConfigError
from peertune.options import Runs

if TYPE_CHECKING:
    from peertune.guard import Departure

COLUMNS = ["", "left at", "run", "round", "to", "payload", "bytes", "verdict of the guard", "receipt"]


def outbox(  # noqa: PLR0913  each is one option of the command
    source: Annotated[str, typer.Argument(help="A run, or a folder of a party; every outbox in it is read.")],
    to: Annotated[str | None, typer.Option(metavar="PARTY", help="Only what left for this party.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only payloads of this kind.")] = None,
    find: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only what holds this text; ASCII letters of any case.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="A new folder: texts and numbers as JSON lines, the exact bytes, the receipts.")
    ] = None,
    prune_before: Annotated[
        datetime | None,
        typer.Option(metavar="DATE", formats=["%Y-%m-%d"], help="Delete what left before this day, for good."),
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """List what left this party: to whom, when, how much, what the guard said, and whether the receiver signed for it.

    It reads what lies on this machine and asks nobody. Contents are never printed: `--export` writes them. Nothing is
    ever deleted but by `--prune-before`.
    """
    from peertune.guard import OUTBOX, Outbox
    from peertune.terminal import print_rows

    folder = runs / source if (runs / source).is_dir() else Path(source)
    folders = sorted(path.parent for path in folder.rglob(OUTBOX))
    if not folders:
        raise ConfigError(f"no outbox in {folder}; a party has one once something was sealed for another")
    if (export or prune_before) and len(folders) > 1:
        what = "export" if export else "prune"
        raise ConfigError(f"{folder} holds {len(folders)} outboxes; {what} one: {', '.join(map(str, folders))}")
    if prune_before:
        if to or kind or find or export:
            raise ConfigError("--prune-before deletes all that left before a day: give no other option with it")
        _prune(folders[0], prune_before)
        return
    for place in folders:
        box = Outbox(place)
        found = box.departures(to, kind, find)
        if export:
            box.export(export, found)
        box.close()
        print_rows(str(place), COLUMNS, [_row(departure) for departure in found])
    if export:
        typer.echo(f"{export} written; it holds what left in readable form: keep it as you keep the data")


def _prune(folder: Path, before: datetime) -> None:
    from peertune.guard import Outbox

    box = Outbox(folder)
    count, size = box.prune(before.timestamp())
    box.close()
    typer.echo(f"{folder}: {count} departures from before {before:%Y-%m-%d} deleted, {size:,} bytes of contents")


def _row(departure: "Departure") -> list[str]:
    left = strftime("%Y-%m-%d %H:%M:%S", localtime(departure.time))
    where = [str(departure.number), left, departure.run, str(departure.round), departure.destination]
    received = "no" if departure.receipt is None else "yes"
    return [*where, departure.kind, f"{departure.size:,}", departure.verdict, received]
