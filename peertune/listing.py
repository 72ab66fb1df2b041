"""What there is: recipes, bundled models, methods, tasks, matchmakers and runs. Reads files only; imports no torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peertune.config.reader import RECIPES
from peertune.config.schema import AnswersTask, CodeletsTask, HumanEvalTask, IntentTask, MBPPTask, RecordsTask
from peertune.errors import ConfigError
from peertune.ledger import Ledger, total_bytes
from peertune.lm.source import MINILM
from peertune.matchmakers import MATCHMAKERS
from peertune.methods import METHODS
from peertune.runs import LEDGER

TASKS = (CodeletsTask, HumanEvalTask, MBPPTask, RecordsTask, AnswersTask, IntentTask)

Entries = list[tuple[str, str]]


def listing(runs: Path) -> dict[str, Entries]:
    """Titles and, under each, (name, one line about it)."""
    return {
        "recipes": [(path.stem, _first_comment(path)) for path in sorted(RECIPES.glob("*.yaml"))],
        "methods": _summaries(METHODS),
        "matchmakers": _summaries(MATCHMAKERS),
        "tasks": _summaries({task.model_fields["type"].default: task for task in TASKS}),
        "models": [
            (f"bundled/{path.name}", "ships with peertune")
            for path in sorted((RECIPES.parent / "models").iterdir())
            if path.is_dir()
        ]
        + [(MINILM, "an encoder, comes with the extra `minilm`")],
        f"runs in {runs}": list(_runs(runs)),
    }


def _summaries(things: Mapping[str, Any]) -> Entries:
    return [(name, (thing.__doc__ or "").split(". ")[0].split("\n")[0].rstrip(".")) for name, thing in things.items()]


def _first_comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def _runs(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob(f"[!.]*/{LEDGER}")):  # a hidden one was killed while it was made
        try:
            ledger = Ledger.read(path)
            events = list(ledger.events())
            ledger.close()
        except ConfigError as error:
            yield path.parent.name, f"unreadable: {error}"
            continue
        last = events[-1] if events else None
        where = f"{last.arm} round {last.round}" if last else "not started"
        yield path.parent.name, f"{where}, {total_bytes(events) / 1e6:.2f} MB moved"
