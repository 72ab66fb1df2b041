"""What a person sees in a terminal: live progress and tables. Rich is used here and nowhere else."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table as Grid

from peertune.ledger import Ledger
from peertune.report import Table, result_tables, run_tables, write_report
from peertune.report.reading import plain
from peertune.runs import LEDGER

FILE_WIDTH = 120  # columns of a table that is written to a file
LONGEST_WORD = 24  # characters of a cell that stay on one line in a narrow terminal


class Progress:
    """Live bars of a run: one for the rounds of each arm, one line for what happened last. Called with (event,
    body).
    """

    def __init__(self, console: Console | None = None) -> None:
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bars = Bars(*columns, console=console or Console(highlight=False))
        self._tasks: dict[str, Any] = {}
        self._previewed: set[str] = set()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def __call__(self, event: str, body: dict[str, Any]) -> None:
        handler = getattr(self, f"_on_{event}", None)
        if handler:
            handler(body)

    def preview(self, facts: dict[str, Any], text: str) -> None:
        """Show the first training example of the first agent of each model, with what carries loss."""
        if facts["model"] not in self._previewed:
            self._previewed.add(facts["model"])
            self._bars.console.print(f"the first training example of {facts['name']} ({facts['model']}):")
            self._bars.console.print(escape(_printable(text)), style="dim")

    def _on_agents(self, body: dict[str, Any]) -> None:
        self._bars.console.print(f"{len(body['agents'])} agents")
        for agent in body["agents"]:
            if agent["truncated"]:
                self._bars.console.print(
                    f"{agent['name']}: {agent['truncated']} examples are longer than the context; cut from the left"
                )

    def _on_begin(self, body: dict[str, Any]) -> None:
        arm, total = body["arm"], body["rounds"] if body["round"] else 1
        if arm not in self._tasks:
            self._tasks[arm] = self._bars.add_task(arm, total=total, completed=max(0, body["round"] - 1), note="")

    def _on_call(self, body: dict[str, Any]) -> None:
        if body["arm"] in self._tasks:  # agents are put back to the start before an arm's first round begins
            self._bars.update(self._tasks[body["arm"]], note=f"{body['agent']} {body['verb']} {body['seconds']:.1f} s")

    def _on_round(self, body: dict[str, Any]) -> None:
        self._bars.update(self._tasks[body["arm"]], advance=1)

    def _on_pair(self, body: dict[str, Any]) -> None:
        predicted = "" if body["predicted"] is None else f" (expected {body['predicted']:+.3f})"
        text = (
            f"{body['arm']} {body['round']}: {body['source']} taught {body['receiver']}, reward "
            f"{body['reward']:+.3f}{predicted}"
        )
        self._bars.console.print(text, style="dim")

    def _on_failure(self, body: dict[str, Any]) -> None:
        text = f"{body['arm']} {body['round']}: {body['agent']}.{body['verb']} failed: {body['cause']}"
        self._bars.console.print(escape(_printable(text)), style="yellow")

    def _on_refused(self, body: dict[str, Any]) -> None:
        text = f"{body['arm']} {body['round']}: a report of {body['agent']} was refused: {body['cause']}"
        self._bars.console.print(escape(_printable(text)), style="yellow")

    def _on_damaged(self, body: dict[str, Any]) -> None:
        text = f"{body['arm']}: round {body['round']} cannot be restored and is made again: {body['cause']}"
        self._bars.console.print(escape(_printable(text)), style="yellow")


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a person on a terminal, ten lines for everything else; called with (done, all)."""
    if sys.stdout.isatty():
        with Bars(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bars:
            task = bars.add_task(what)
            yield lambda done, of: bars.update(task, completed=done, total=of)
    else:
        yield lambda done, of: print(f"{what}: {done} of {of}", flush=True) if _is_tenth(done, of) else None  # noqa: T201


def _is_tenth(done: int, of: int) -> bool:
    return done * 10 // of > (done - 1) * 10 // of


def print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One table."""
    table = Grid(title=escape(title), title_justify="left")
    cells = [[_printable(str(cell)) for cell in row] for row in rows]
    for number, column in enumerate(columns):
        longest = max((len(word) for row in cells for word in row[number].split()), default=0)
        # a narrow terminal folds the header: half a number would be another number
        table.add_column(escape(column), overflow="fold", min_width=min(longest, LONGEST_WORD))
    for row in cells:
        table.add_row(*map(escape, row))
    Console(highlight=False, width=None if sys.stdout.isatty() else FILE_WIDTH).print(table)


def print_results(folder: Path) -> None:
    """What a run ends with: scores, who taught whom, bytes, failures, and where the report is."""
    _print_tables(folder, result_tables)


def print_everything(folder: Path) -> None:
    """All tables of a run, and where its report is."""
    _print_tables(folder, run_tables)


def _print_tables(folder: Path, tables_of: Callable[[Ledger], list[Table]]) -> None:
    ledger = Ledger.read(folder / LEDGER)
    for table in tables_of(ledger):
        print_rows(table.title, table.columns, table.rows)
    ledger.close()
    Console(highlight=False, soft_wrap=True).print(f"report: {write_report(folder)}")


def _printable(text: str) -> str:
    """Foreign text, line by line: nothing in it may move the cursor or reorder a line."""
    return "\n".join(map(plain, text.split("\n")))
