"""The report of a run: pictures as PNG files and one HTML page that holds everything and asks the network for nothing.

Foreign text cannot become markup (`markup.escaped`); a Content-Security-Policy forbids scripts and requests even so.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peertune.errors import ConfigError, StorageError
from peertune.ledger import Ledger
from peertune.partition import skew
from peertune.report.asynchrony import refused_table, rounds_table
from peertune.report.markup import Drawn, definitions, escaped, gallery, grid, paragraph, section
from peertune.report.pictures import draw_pictures
from peertune.report.reading import (
    TO_COORDINATOR,
    arms,
    evaluations,
    local_arm,
    plain,
    run_body,
    score_ks,
    score_name,
    traffic,
)
from peertune.report.results import metrics_table, results_table
from peertune.report.selection import selection_table
from peertune.report.style import CSS
from peertune.report.table import counted
from peertune.report.tables import (
    agents_table,
    aggregation_table,
    cost_table,
    failures_table,
    pairs_table,
    received_table,
    traffic_table,
)
from peertune.runs import LEDGER

_SKEW = "(mean distance of an agent's categories from the mean of all: 0 alike, 1 nothing in common)"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_report(run_folder: Path) -> Path:
    """Write `report/*.png` and `report/report.html` into `run_folder`; the page's path.

    Raises `ConfigError` if the run has no evaluated round yet or its ledger was changed, `StorageError` if the disk
    refuses.
    """
    ledger = Ledger.read(run_folder / LEDGER)
    try:
        ledger.verify()
        if not evaluations(ledger):
            name = plain(run_folder.resolve().name)
            raise ConfigError(f"the run {name!r} has no evaluated round yet; continue it with `peertune resume {name}`")
        drawn = [Drawn(picture, picture.png()) for picture in draw_pictures(ledger)]
        page = _page(ledger, run_folder.resolve(), drawn)
    finally:
        ledger.close()
    _write(run_folder / "report", drawn, page)
    return run_folder / "report" / "report.html"


def _write(folder: Path, drawn: Sequence[Drawn], page: str) -> None:
    try:
        folder.mkdir(exist_ok=True)
        for item in drawn:
            (folder / f"{item.picture.name}.png").write_bytes(item.raw)
        (folder / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        cure = "free space or check the rights"
        raise StorageError(f"{folder}: the report cannot be written ({error.strerror}); {cure}") from error


def _page(ledger: Ledger, folder: Path, drawn: Sequence[Drawn]) -> str:
    time, aggregation = rounds_table(ledger), aggregation_table(ledger)
    sections = [
        section("What was run", definitions(_what_was_run(ledger)), grid(agents_table(ledger))),
        section("Results", *_results(ledger)),
        section("Learning curves", gallery(drawn, "learning")),
        section("Who taught whom", *_exchanges(ledger, drawn)),
        section("Rewards predicted and realised", gallery(drawn, "rewards") or _NO_EXCHANGES),
        section("Bytes", gallery(drawn, "traffic"), grid(traffic_table(ledger)), grid(cost_table(ledger))),
        section("Failures", *_failures(ledger)),
        *(section(table.title, grid(table, titled=False)) for table in (aggregation, time) if table.rows),
        section("What the coordinator received", paragraph(_seen(ledger)), grid(received_table(ledger), titled=False)),
        section("How to reproduce", *_reproduce(ledger, folder)),
    ]
    name = escaped(folder.name)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>peertune: {name}</title><style>{CSS}</style></head><body><main>",
            f"<header><h1>{name}</h1>{paragraph(_headline(ledger))}{paragraph(_means(ledger))}{_warnings(ledger)}</header>",
            *sections,
            "</main></body></html>\n",
        ]
    )


_NO_EXCHANGES = paragraph("This run has no exchanges.", "note")


def _headline(ledger: Ledger) -> str:
    body = run_body(ledger)
    config, agents = body["config"], counted(len(body["agents"]), "agent")
    ran = ", ".join(arms(ledger)) or "none yet"
    rounds = counted(config["rounds"], "round")
    return f"{agents}, task {config['task']['type']}, {rounds}, seed {config['seed']}; arms: {ran}."


def _means(ledger: Ledger) -> str:
    """The mean over agents of the first score, in one sentence."""
    config = run_body(ledger)["config"]
    k = score_ks(config)[0]
    table = results_table(ledger, k)
    mean = table.rows[-table.totals]
    scores = ", ".join(f"{name} {score}" for name, score in zip(table.columns[1:], mean[1:], strict=True))
    return f"Mean {score_name(config, k)} in %: {scores}."


def _warnings(ledger: Ledger) -> str:
    """What a reader must know before any number."""
    texts = []
    if "unsafe" in _isolation(ledger):
        texts.append(
            "Unsafe sandbox: programs that models wrote ran on this machine under resource limits only, not isolated."
        )
    if unfinished := _unfinished(ledger):
        texts.append(f"Not finished: {unfinished}. Arms that stand at different rounds cannot be compared.")
    texts.append(
        "One run with one seed supports no claim that one arm is better than another: "
        "repeat it with other seeds and compare the arms over these."
    )
    return "".join(paragraph(text, "warning") for text in texts)


def _unfinished(ledger: Ledger) -> str:
    config = run_body(ledger)["config"]
    done = {event.arm for event in ledger.events("done")}
    reached = {event.arm: event.round for event in ledger.events("checkpoint")}
    planned = (*config["baselines"], config["method"]["type"])
    return ", ".join(
        f"{arm} at round {reached.get(arm, 0)} of {config['rounds']}" for arm in planned if arm not in done
    )


def _what_was_run(ledger: Ledger) -> list[tuple[str, str]]:
    body = run_body(ledger)
    config = body["config"]
    facts = [
        ("Task", _described(config["task"])),
        ("Method", _described(config["method"])),
        *((f"Baseline {name}", _described(method)) for name, method in config["baselines"].items()),
        ("Skew", f"{skew([agent['histogram'] for agent in body['agents']]):.2f} {_SKEW}"),
        ("Rounds", str(config["rounds"])),
        ("Seed", str(config["seed"])),
        (
            "Optimiser steps",
            _described({name.removesuffix("_steps"): count for name, count in config["budget"].items()}),
        ),
        ("Grading", _described(config["evaluation"])),
        ("Sandbox", _isolation(ledger)),
        ("peertune", str(body["version"])),
    ]
    sessions = list(ledger.facts("session"))
    machines = dict.fromkeys(_described(fact.body["machine"]) for fact in sessions)
    facts += [("Machine", machine) for machine in machines]
    if len(sessions) > 1:
        facts.append(("Sessions", f"{len(sessions)}: the run was stopped and continued"))
    return facts


def _isolation(ledger: Ledger) -> str:
    """How the programs that models wrote were isolated, in every session of the run."""
    used = dict.fromkeys(fact.body.get("sandbox", "") for fact in ledger.facts("session"))
    return ", ".join(name for name in used if name) or "not needed: no answer was executed"


def _described(part: Mapping[str, Any]) -> str:
    """A section of the configuration in one line, its type first; a list stands as its values."""
    words = [part["type"]] if "type" in part else []
    for key, value in part.items():
        if key == "type" or value is None:
            continue
        shown = f"({_described(value)})" if isinstance(value, dict) else str(value)
        words.append(f"{key.replace('_', ' ')} {shown}")
    return ", ".join(words)


def _results(ledger: Ledger) -> list[str]:
    config = run_body(ledger)["config"]
    parts = [grid(results_table(ledger, k)) for k in score_ks(config)]
    if local_arm(config, arms(ledger)) is None:
        text = "No arm trained alone, so the gain from collaboration is not known; add `local` to the baselines."
        parts.append(paragraph(text))
    return [*parts, grid(metrics_table(ledger))]


def _exchanges(ledger: Ledger, drawn: Sequence[Drawn]) -> list[str]:
    table, chosen = pairs_table(ledger), selection_table(ledger)
    if not table.rows:
        return [grid(chosen) or _NO_EXCHANGES]
    return [
        gallery(drawn, "pairs"),
        f"<details><summary>All pairs as a table</summary>{grid(table, titled=False)}</details>",
    ]


def _failures(ledger: Ledger) -> list[str]:
    failed = grid(failures_table(ledger), titled=False) or paragraph("No call failed.", "note")
    return [failed, grid(refused_table(ledger))]


def _seen(ledger: Ledger) -> str:
    """What the ledger proves: which kinds agents sent each other and a server, and which reached the coordinator."""
    flows = traffic(ledger)
    received = {flow.payload for flow in flows if flow.link in TO_COORDINATOR}
    exchanged = {flow.payload for flow in flows if flow.link == "agent → agent"}
    served = {flow.payload for flow in flows if flow.link == "agent → server"}
    listed = "The table lists every payload that was sent to it."
    told = f"Agents sent the server: {', '.join(sorted(served))}. " if served else ""
    if not exchanged:
        return f"Agents sent each other nothing. {told}{listed}"
    kinds, both = ", ".join(sorted(exchanged)), ", ".join(sorted(exchanged & received)) or "none"
    return f"Agents sent each other: {kinds}. {told}Of these kinds the coordinator received: {both}. {listed}"


def _reproduce(ledger: Ledger, folder: Path) -> list[str]:
    seed = run_body(ledger)["config"]["seed"]
    stored = Path(folder.parent.name, folder.name, "config.json")
    command = f"peertune run {shlex.quote(str(stored))} --seed {seed} --name {shlex.quote(f'{folder.name}-again')}"
    return [
        f"<pre>{escaped(command)}</pre>",
        definitions([("Ledger head", ledger.head), ("Events", f"{ledger.seq:,}")]),
        paragraph(
            "The same configuration, models, data and seed give the same ledger head on the same kind of machine "
            "with the same library versions, whatever the number of workers. The hash chain was checked from the "
            "first event to this head when this page was written."
        ),
    ]
