"""The report of a run: pictures as PNG files and one HTML page that holds everything and asks the network for nothing.

Names and causes in a ledger are foreign text. All text of the page passes `_text`; a Content-Security-Policy
forbids scripts and requests even so.
"""

import base64
import html
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peertune.errors import ConfigError, StorageError
from peertune.ledger import COORDINATOR, Ledger
from peertune.report.pictures import Picture, draw_pictures
from peertune.report.reading import (
    START,
    arms,
    evaluations,
    local_arm,
    plain,
    run_body,
    runs_code,
    score_ks,
    score_name,
    traffic,
)
from peertune.report.style import CSS
from peertune.report.tables import (
    Table,
    agents_table,
    cost_table,
    failures_table,
    metrics_table,
    pairs_table,
    received_table,
    results_table,
    traffic_table,
)

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write_report(run_folder: Path) -> Path:
    """Write `report/*.png` and `report/report.html` into `run_folder`; the page's path.

    Raises `ConfigError` if the run has no evaluated round yet or its ledger was changed, `StorageError` if the disk refuses.
    """
    ledger = Ledger.read(run_folder / "ledger.sqlite")
    try:
        ledger.verify()
        if not evaluations(ledger):
            name = plain(run_folder.resolve().name)
            raise ConfigError(f"the run {name!r} has no evaluated round yet; continue it with `peertune resume {name}`")
        drawn = [Drawn(picture, picture.png()) for picture in draw_pictures(ledger)]
        page = _page(ledger, run_folder.resolve(), drawn)
    finally:
        ledger.close()
    folder = run_folder / "report"
    try:
        folder.mkdir(exist_ok=True)
        for item in drawn:
            (folder / f"{item.picture.name}.png").write_bytes(item.raw)
        (folder / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{folder}: the report cannot be written ({error.strerror}); free space or check the rights"
        ) from error
    return folder / "report.html"


def _page(ledger: Ledger, folder: Path, drawn: Sequence[Drawn]) -> str:
    config = run_body(ledger)["config"]
    sections = [
        section("What was run", facts(_what_was_run(ledger)), as_table(agents_table(ledger))),
        section("Results", *_results(ledger)),
        section("Learning curves", pictures(drawn, "learning")),
        section("Who taught whom", *_exchanges(ledger, drawn)),
        section("Rewards predicted and realised", pictures(drawn, "rewards") or none("This run had no exchanges.")),
        section("Bytes", pictures(drawn, "traffic"), as_table(traffic_table(ledger)), as_table(cost_table(ledger))),
        section("Failures", as_table(failures_table(ledger)) or none("No call failed.")),
        section(
            "What the coordinator received", paragraph(_seen_by_coordinator(ledger)), as_table(received_table(ledger))
        ),
        section("How to reproduce", *_reproduce(ledger, folder)),
    ]
    title = text(f"peertune: {folder.name}")
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{CSS}</style></head>\n<body><main>\n"
        f"<header><h1>{text(folder.name)}</h1>{paragraph(_headline(config, ledger))}{_warnings(config, ledger)}</header>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


# What is said


def _headline(config: Mapping[str, Any], ledger: Ledger) -> str:
    count = len(run_body(ledger)["agents"])
    agents = "1 agent" if count == 1 else f"{count} agents"
    ran = arms(ledger)
    return f"{agents}, task {config['task']['type']}, {config['rounds']} rounds, seed {config['seed']}; arms: {', '.join(ran) or 'none yet'}."


def _warnings(config: Mapping[str, Any], ledger: Ledger) -> str:
    texts = []
    if config["sandbox"] == "unsafe" and runs_code(dict(config)):
        texts.append(
            "Unsafe sandbox: programs that models wrote were run on this machine with resource limits only, not isolated."
        )
    unfinished = _unfinished(config, ledger)
    if unfinished:
        texts.append(f"This run is not finished: {unfinished}. Arms that stand at different rounds cannot be compared.")
    texts.append(
        "One run with one seed supports no claim that one arm is better than another: "
        "repeat it with other seeds and compare the arms over these."
    )
    return "".join(f'<p class="warning">{text(text)}</p>' for text in texts)


def _unfinished(config: Mapping[str, Any], ledger: Ledger) -> str:
    done = {event.arm for event in ledger.events("done")}
    reached = {event.arm: event.round for event in ledger.events("checkpoint")}
    planned = (*config["baselines"], config["method"]["type"])
    return ", ".join(
        f"{arm} at round {reached.get(arm, 0)} of {config['rounds']}" for arm in planned if arm not in done
    )


def _what_was_run(ledger: Ledger) -> list[tuple[str, str]]:
    body = run_body(ledger)
    config = body["config"]
    budget = config["budget"]
    facts = [
        ("Task", _described(config["task"])),
        ("Method", _described(config["method"])),
        *((f"Baseline {name}", _described(method)) for name, method in config["baselines"].items()),
        ("Rounds", str(config["rounds"])),
        ("Seed", str(config["seed"])),
        ("Optimiser steps", ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in budget.items())),
        ("Grading", _described(config["evaluation"])),
        ("Sandbox", _sandbox(config)),
        ("peertune", str(body["version"])),
    ]
    sessions = list(ledger.facts("session"))
    machines = dict.fromkeys(
        ", ".join(f"{key} {value}" for key, value in fact.body["machine"].items()) for fact in sessions
    )
    facts += [("Machine", machine) for machine in machines]
    if len(sessions) > 1:
        facts.append(("Sessions", f"{len(sessions)}: the run was stopped and continued"))
    return facts


def _sandbox(config: dict[str, Any]) -> str:
    if not runs_code(config):
        return "not needed: no answer was executed"
    return "UNSAFE: resource limits only" if config["sandbox"] == "unsafe" else config["sandbox"]


def _described(section: Mapping[str, Any]) -> str:
    """A section of the configuration in one line, its type first."""
    parts = [section["type"]] if "type" in section else []
    for key, value in section.items():
        if key != "type" and value is not None:
            shown = f"({_described(value)})" if isinstance(value, dict) else _listed(value)
            parts.append(f"{key.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def _listed(value: object) -> str:
    return " to ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _results(ledger: Ledger) -> list[str]:
    config = run_body(ledger)["config"]
    parts = [as_table(results_table(ledger, k)) for k in score_ks(config)]
    if local_arm(config, arms(ledger)) is None:
        text = f"No arm trained alone, so these numbers do not say what collaboration brought; add `local` to the baselines. {score_name(config, 1)} of the start is in the column “before”."
        parts.append(paragraph(text))
    return [*parts, as_table(metrics_table(ledger))]


def _exchanges(ledger: Ledger, drawn: Sequence[Drawn]) -> list[str]:
    table = pairs_table(ledger)
    if not table.rows:
        return [none("This run had no exchanges.")]
    return [pictures(drawn, "pairs"), f"<details><summary>All pairs as a table</summary>{as_table(table)}</details>"]


def _seen_by_coordinator(ledger: Ledger) -> str:
    """One sentence that the ledger proves: what agents sent each other, and what of it reached the coordinator."""
    flows = traffic(ledger)
    received = {flow.payload for flow in flows if flow.link == f"agent → {COORDINATOR}"}
    exchanged = {flow.payload for flow in flows if flow.link == "agent → agent"}
    if not exchanged:
        return "Agents sent each other nothing. The table lists every payload that they sent to the coordinator."
    both = ", ".join(sorted(exchanged & received)) or "none"
    return (
        f"Agents sent each other: {', '.join(sorted(exchanged))}. Kinds among these that the coordinator received from agents: {both}. "
        "The table lists every payload that they sent to it."
    )


def _reproduce(ledger: Ledger, folder: Path) -> list[str]:
    seed = run_body(ledger)["config"]["seed"]
    stored = Path(folder.parent.name) / folder.name / "config.json"
    command = f"peertune run {shlex.quote(str(stored))} --seed {seed} --name {shlex.quote(folder.name + '-again')}"
    return [
        f"<pre>{text(command)}</pre>",
        facts([("Ledger head", ledger.head), ("Events", f"{ledger.seq:,}")]),
        paragraph(
            "The same configuration, models, data and seed give the same ledger head on the same kind of machine with the same "
            "library versions, whatever the number of workers. The hash chain was checked from the first event to this head "
            "when this page was written."
        ),
    ]
