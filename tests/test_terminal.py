"""What a person sees: live progress over a true run, and tables that foreign text cannot break."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small import bodies, make_models, run, small_config

from peertune import terminal
from peertune.ledger import Ledger
from peertune.terminal import Progress, print_everything, print_results, print_rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, dict[str, Any]]]]:
    """A small run, and everything that its watch was told."""
    folder = tmp_path_factory.mktemp("terminal")
    heard: list[tuple[str, dict[str, Any]]] = []
    config = small_config(
        make_models(folder), "llama gpt2", rounds=1, baselines={"local": "local"}, evaluation={"max_new_tokens": 4}
    )
    run(folder / "run", config, lambda event, body: heard.append((event, body))).close()
    return folder / "run", heard


def console() -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    return Console(file=screen, force_terminal=True, width=160, highlight=False), screen


def test_progress_follows_a_true_run(finished: tuple[Path, list[tuple[str, dict[str, Any]]]]) -> None:
    target, screen = console()
    with Progress(target) as progress:
        for event, body in finished[1]:
            progress(event, body)
    shown = screen.getvalue()
    assert "2 agents" in shown and "taught" in shown
    for arm in ("start", "local", "knexa"):
        assert arm in shown
    assert shown.count("1/1") >= 3  # every bar reached its end


def test_the_first_example_of_each_model_is_shown_once() -> None:
    target, screen = console()
    with Progress(target) as progress:
        for name, model in (("a0", "m1"), ("a1", "m2"), ("a2", "m1")):
            progress.preview({"name": name, "model": model}, f"given: text of {name}")
    shown = screen.getvalue()
    assert "text of a0" in shown and "text of a1" in shown and "text of a2" not in shown


def test_progress_says_what_failed_without_obeying_its_text() -> None:
    target, screen = console()
    with Progress(target) as progress:
        progress(
            "failure", {"arm": "knexa", "round": 1, "agent": "a0", "verb": "fit", "cause": "[red]x\x1b[2J\u202eevil"}
        )
        progress("damaged", {"arm": "knexa", "round": 2, "cause": "checkpoint was damaged"})
    shown = screen.getvalue()
    assert "a0.fit failed: [red]x" in shown and "made again" in shown
    assert "\x1b[2J" not in shown and "\u202e" not in shown


def test_tables_and_report_at_the_end(
    finished: tuple[Path, list[tuple[str, dict[str, Any]]]], capsys: pytest.CaptureFixture[str]
) -> None:
    print_results(finished[0])
    results = capsys.readouterr().out
    print_everything(finished[0])
    everything = capsys.readouterr().out
    for words in ("Pass@1", "before", "Who taught whom", "Bytes", "report: ", "report.html"):
        assert words in results and words in everything
    assert "CPU seconds" in everything and "CPU seconds" not in results
    assert (finished[0] / "report" / "report.html").is_file()


def test_a_table_keeps_its_cells(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows("Checks", ["Check", "Found"], [["Disk", "[bold]3 GB\x1b[1m"]])
    shown = capsys.readouterr().out
    assert "[bold]3 GB" in shown and "\x1b" not in shown


def test_a_narrow_terminal_cuts_no_number(
    finished: tuple[Path, list[tuple[str, dict[str, Any]]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(terminal, "FILE_WIDTH", 80)
    print_everything(finished[0])
    shown = capsys.readouterr().out
    assert "…" not in shown
    ledger = Ledger.read(finished[0] / "ledger.sqlite")
    for body in bodies(ledger, "pair"):
        assert f"{body['reward']:+.4f}" in shown and f"{body['before']:.4f}" in shown
    ledger.close()
