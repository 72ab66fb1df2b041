"""The report: exact numbers from small ledgers, and a page that foreign text cannot take over."""

import base64
import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from peertune.config import read_config, resolve_recipe
from peertune.errors import ConfigError
from peertune.evaluate import estimate, pass_at_k
from peertune.ledger import COORDINATOR, Ledger
from peertune.report import result_tables, run_tables, write_report
from peertune.report.reading import plain, readable_bytes
from peertune.report.results import metrics_table, results_table
from peertune.report.selection import selection_table
from peertune.report.tables import (
    agents_table,
    cost_table,
    failures_table,
    pairs_table,
    received_table,
    traffic_table,
)

HOSTILE = "<script>fetch('http://evil.example')</script> \x1b[31mred\x07 \u202egnp.exe\u200b $x^2$"
NAMES = ("ada", "bela", "cleo")

# correct answers to four problems, one sample each: arm -> round -> agent
GRADES: dict[str, dict[int, dict[str, list[int]]]] = {
    "start": {0: {"ada": [0, 0, 0, 0], "bela": [1, 0, 0, 0], "cleo": [1, 1, 0, 0]}},
    "local": {
        1: {"ada": [0, 0, 0, 1], "bela": [1, 0, 0, 0], "cleo": [1, 1, 0, 0]},
        2: {"ada": [0, 0, 0, 1], "bela": [1, 0, 0, 1], "cleo": [1, 1, 0, 0]},
    },
    "knexa": {
        1: {"ada": [0, 0, 1, 1], "bela": [1, 0, 0, 0], "cleo": [1, 1, 0, 0]},
        2: {"ada": [0, 1, 1, 1], "bela": [1, 0, 1, 1], "cleo": [1, 1, 0, 0]},
    },
}


def configuration(names: tuple[str, ...] = NAMES, **changes: Any) -> dict[str, Any]:
    """What the `run` event holds, for these agents."""
    config = read_config(resolve_recipe("demo")).model_dump(mode="json", exclude={"engine"})
    config["agents"] = [{**config["agents"][0], "name": name} for name in names]
    config["baselines"] = {"local": {"type": "local"}}
    return {**config, "rounds": 2, "seed": 7, **changes}


def describe(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": "bundled/qwen2",
        "fingerprint": "0123456789abcdef" * 4,
        "family": "qwen2",
        "parameters": 412_345,
        "trainable": 9_216,
        "train": 1_234,
        "validation": 24,
        "truncated": 2,
        "histogram": [0.5, 0.25, 0.25] + [0.0] * 9,
    }


def begin(folder: Path, config: dict[str, Any], names: tuple[str, ...] = NAMES) -> Ledger:
    folder.mkdir(parents=True)
    ledger = Ledger.create(folder / "ledger.sqlite")
    body = {"config": config, "agents": [describe(name) for name in names], "version": "0.1.0"}
    ledger.append("start", 0, "init", "run", body)
    isolation = {"unsafe": "rlimits only (unsafe)"}.get(config["sandbox"], config["sandbox"])
    sandbox = isolation if config["task"]["type"] != "records" else ""
    session = {"machine": {"python": "3.11.9", "gpu": "none"}, "engine": {"type": "local"}, "pid": 1}
    ledger.fact("session", session | {"sandbox": sandbox})
    return ledger


def transfer(ledger: Ledger, arm: str, round: int, phase: str, *what: Any) -> None:
    source, destination, payload, count = what
    body = {"source": source, "destination": destination, "payload": payload, "bytes": count}
    ledger.append(arm, round, phase, "transfer", body)


def evaluate(ledger: Ledger, arm: str, round: int, grades: dict[str, list[int]], samples: int = 1) -> None:
    for agent, correct in grades.items():
        metrics = {"validation_loss": 2.0 - 0.1 * round, "test_loss": 2.5 - 0.1 * round}
        body = {"agent": agent, "correct": [float(count) for count in correct], "samples": samples, "metrics": metrics}
        ledger.append(arm, round, "evaluate", "scores", body)
        transfer(ledger, arm, round, "evaluate", agent, COORDINATOR, "scores", 100)


def exchange(ledger: Ledger, round: int, pair: tuple[str, str], reward: float, predicted: float | None) -> None:
    source, receiver = pair
    numbers = {"before": 2.0, "after": 1.9, "error": 0.01, "kilobytes": 1.5, "reward": reward, "predicted": predicted}
    numbers |= {"texts": 8, "useful": 5, "kept": True, "probe_before": 3.0, "probe_after": 2.5, "probe_error": 0.02}
    ledger.append("knexa", round, "round", "pair", {"source": source, "receiver": receiver, **numbers})


def finish(ledger: Ledger, arm: str, round: int, names: tuple[str, ...], done: bool) -> None:
    for name in names:
        transfer(ledger, arm, round, "checkpoint", name, COORDINATOR, "receipt", 70)
        call = {"arm": arm, "round": round, "agent": name, "verb": "fit", "seconds": 1.25, "cpu_seconds": 1.0}
        ledger.fact("call", call)
    ledger.append(arm, round, "checkpoint", "checkpoint", {"agents": {}, "method": "0" * 64})
    if done:
        ledger.append(arm, round, "checkpoint", "done", {})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three agents, two arms, two rounds; a failure with a hostile cause, one exchange without a prediction."""
    folder = tmp_path / "runs" / "demo-1"
    ledger = begin(folder, configuration())
    transfer(ledger, "start", 0, "init", COORDINATOR, "ada", "number", 20)
    for arm, rounds in GRADES.items():
        for round_, grades in rounds.items():
            if arm == "knexa":
                knexa_round(ledger, round_)
            evaluate(ledger, arm, round_, grades)
            finish(ledger, arm, round_, NAMES, round_ == max(rounds))
    ledger.commit()
    ledger.close()
    return folder


def knexa_round(ledger: Ledger, round: int) -> None:
    for name in NAMES:
        transfer(ledger, "knexa", round, "round", name, COORDINATOR, "profile", 300)
    transfer(ledger, "knexa", round, "round", COORDINATOR, "bela", "texts", 1_000)
    transfer(ledger, "knexa", round, "round", "ada", "bela", "texts", 1_500)
    if round == 1:
        exchange(ledger, 1, ("ada", "bela"), 0.25, None)
        cause = {"agent": "cleo", "verb": "share", "cause": HOSTILE}
        ledger.append("knexa", 1, "round", "failure", cause)
    else:
        exchange(ledger, 2, ("ada", "bela"), -0.05, 0.15)
        exchange(ledger, 2, ("bela", "cleo"), 0.1, 0.1)


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """One agent, one round, one problem, nothing exchanged, nobody else to compare with; answers are not executed."""
    task, grades = {"type": "records", "test": "test.jsonl", "transfer": None}, {"solo": [1]}
    config = configuration(("solo",), task=task, method={"type": "local"}, baselines={}, rounds=1)
    folder = tmp_path / "one"
    ledger = begin(folder, config, ("solo",))
    for arm, round_ in (("start", 0), ("local", 1)):
        evaluate(ledger, arm, round_, grades)
        finish(ledger, arm, round_, ("solo",), True)
    ledger.commit()
    ledger.close()
    return folder


def opened(folder: Path) -> Ledger:
    return Ledger.read(folder / "ledger.sqlite")


# Tables


def test_results(run: Path) -> None:
    table = results_table(opened(run))
    assert table.title == "Pass@1 on the test problems, in %"
    assert table.columns == ["Agent", "before", "local", "knexa", "knexa vs local"]
    assert table.rows == [
        ["ada", "0.0 ± 0.0", "25.0 ± 25.0", "75.0 ± 25.0", "+50.0 ± 28.9"],
        ["bela", "25.0 ± 25.0", "50.0 ± 28.9", "75.0 ± 25.0", "+25.0 ± 25.0"],
        ["cleo", "50.0 ± 28.9", "50.0 ± 28.9", "50.0 ± 28.9", "+0.0 ± 0.0"],
        ["mean", "25.0 ± 16.0", "41.7 ± 16.0", "66.7 ± 0.0", "+25.0 ± 16.0"],
        ["worst", "0.0 ± 0.0", "25.0 ± 25.0", "50.0 ± 28.9", "+0.0 ± 0.0"],
    ]
    assert "4 test problems" in table.note


def test_pass_at_k_is_the_unbiased_estimate(tmp_path: Path) -> None:
    evaluation = {**configuration()["evaluation"], "samples": 4, "k": [1, 2]}
    ledger = begin(tmp_path / "r", configuration(("ada",), evaluation=evaluation, baselines={}), ("ada",))
    evaluate(ledger, "start", 0, {"ada": [0, 1, 2, 4]}, samples=4)
    ledger.commit()
    expected = estimate(np.array([pass_at_k(4, correct, 2) for correct in (0, 1, 2, 4)]))
    assert expected.standard_error is not None
    cell = f"{100 * expected.value:.1f} ± {100 * expected.standard_error:.1f}"
    assert results_table(ledger, 2).rows[0] == ["ada", cell]
    titles = [table.title for table in result_tables(ledger)]
    assert titles[-2:] == ["Pass@1 on the test problems, in %", "Pass@2 on the test problems, in %"]


def test_score_of_a_task_that_runs_no_code_is_called_accuracy(alone: Path) -> None:
    table = results_table(opened(alone))
    assert table.title == "accuracy on the test problems, in %"
    assert table.columns == ["Agent", "before", "local"]
    assert table.rows[0] == ["solo", "100.0", "100.0"]  # one problem has no standard error


def test_results_of_a_run_that_stands_still_say_where(tmp_path: Path) -> None:
    ledger = begin(tmp_path / "r", configuration())
    evaluate(ledger, "start", 0, GRADES["start"][0])
    evaluate(ledger, "local", 1, {"ada": [1, 1, 0, 0]})
    ledger.commit()
    table = results_table(ledger)
    assert table.columns == ["Agent", "before", "local (round 1 of 2)"]
    assert [row[2] for row in table.rows] == ["50.0 ± 28.9", "–", "–", "50.0 ± 28.9", "50.0 ± 28.9"]
    assert "The mean of local is over 1 of 3 agents" in table.note


def test_other_measures(run: Path) -> None:
    assert metrics_table(opened(run)).rows == [
        ["test loss", "2.500", "2.300", "2.300"],
        ["validation loss", "2.000", "1.800", "1.800"],
    ]


def test_agents(run: Path) -> None:
    row = agents_table(opened(run)).rows[0]
    assert row == ["ada", "bundled/qwen2", "qwen2", "0123456789ab", "412,345", "9,216", "1,234", "24", "2", "3 of 12"]


def test_pairs(run: Path) -> None:
    assert pairs_table(opened(run)).rows == [
        ["knexa", "ada", "bela", "2", "16", "10", "+0.1000", "+0.1500", "2.0000", "1.9000"],
        ["knexa", "bela", "cleo", "1", "8", "5", "+0.1000", "+0.1000", "2.0000", "1.9000"],
    ]


def test_a_receiver_with_two_sources_in_a_round(tmp_path: Path) -> None:
    ledger = begin(tmp_path / "r", configuration())
    evaluate(ledger, "start", 0, GRADES["start"][0])
    for source in ("ada", "cleo"):
        exchange(ledger, 1, (source, "bela"), 0.1, None)
    evaluate(ledger, "knexa", 1, GRADES["knexa"][1])
    ledger.commit()
    assert [row[:6] for row in pairs_table(ledger).rows] == [
        ["knexa", "ada", "bela", "1", "8", "5"],
        ["knexa", "cleo", "bela", "1", "8", "5"],
    ]
    text = Reader(write_report(tmp_path / "r").read_text(encoding="utf-8")).text
    assert "2 exchanges, mean reward +0.1000; this matchmaker predicts nothing." in text


def test_chosen_teachers(tmp_path: Path) -> None:
    ledger = begin(tmp_path / "r", configuration())
    evaluate(ledger, "start", 0, GRADES["start"][0])
    for learner, taught in (("server", {"ada": 6, "bela": 0}), ("ada", {"server": 1})):
        body = {"learner": learner, "problems": 8, "taught": taught, "refused": dict.fromkeys(taught, 2)}
        ledger.append("knexa", 1, "round", "teachers", body)
    evaluate(ledger, "knexa", 1, GRADES["knexa"][1])
    ledger.commit()
    table = selection_table(ledger)
    assert table.rows == [
        ["knexa", "server", "ada", "8", "75.0", "2"],
        ["knexa", "server", "bela", "8", "0.0", "2"],
        ["knexa", "ada", "server", "8", "12.5", "2"],
    ]
    assert table in result_tables(ledger)
    text = Reader(write_report(tmp_path / "r").read_text(encoding="utf-8")).text
    assert table.title in text and "no exchanges" not in text.partition("Rewards predicted")[0]


def test_traffic(run: Path) -> None:
    assert traffic_table(opened(run)).rows == [
        ["local", "all", "all", "0", "0"],
        ["knexa", "coordinator → agent", "texts", "2", "2,000"],
        ["knexa", "agent → coordinator", "profile", "6", "1,800"],
        ["knexa", "agent → agent", "texts", "2", "3,000"],
        ["knexa", "all", "all", "10", "6,800"],
        ["(warm start)", "all", "all", "1", "20"],
        ["(evaluation, checkpoints)", "all", "all", "30", "2,550"],
    ]


def test_what_the_coordinator_received(run: Path) -> None:
    rows = received_table(opened(run)).rows
    assert [[row[0], *row[2:]] for row in rows] == [
        ["profile", "6", "1,800", "0", "0"],
        ["receipt", "0", "0", "15", "1,050"],
        ["scores", "0", "0", "15", "1,500"],
    ]
    assert all(len(row[1]) > 10 for row in rows)


def test_failures_and_cost(run: Path) -> None:
    ledger = opened(run)
    assert [row[:5] for row in failures_table(ledger).rows] == [["knexa", "1", "round", "cleo", "share"]]
    assert cost_table(ledger).rows == [
        ["start", "3", "3.8", "3.0", "530"],
        ["local", "6", "7.5", "6.0", "1,020"],
        ["knexa", "6", "7.5", "6.0", "7,820"],
    ]


def test_every_row_of_every_table_is_text_in_each_column(run: Path) -> None:
    tables = run_tables(opened(run))
    assert len(tables) == 8
    assert result_tables(opened(run)) == tables[-4:]
    for table in tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert all(isinstance(cell, str) for row in table.rows for cell in row)


# The page


class Reader(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_self_contained_and_foreign_text_stays_text(run: Path) -> None:
    path = write_report(run)
    assert path == run / "report" / "report.html"
    page = path.read_text(encoding="utf-8")
    reader = Reader(page)
    assert not {"script", "link", "iframe", "object", "a", "form"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on") or name == "href"]
    assert all(value.startswith("data:image/png;base64,") for name, value in reader.attributes if name == "src")
    assert "http://" not in page.replace("http://evil.example", "") and "https://" not in page
    assert "url(" not in page and "@import" not in page
    assert "&lt;script&gt;fetch(&#x27;http://evil.example&#x27;)&lt;/script&gt; [31mred gnp.exe $x^2$" in page
    policy = next(value for name, value in reader.attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_page_says_what_was_run_and_what_it_does_not_show(run: Path) -> None:
    text = Reader(write_report(run).read_text(encoding="utf-8")).text
    ledger = opened(run)
    assert ledger.head in text
    assert "peertune run runs/demo-1/config.json --seed 7 --name demo-1-again" in text
    assert (
        "Mean Pass@1 in %: before 25.0 ± 16.0, local 41.7 ± 16.0, knexa 66.7 ± 0.0, knexa vs local +25.0 ± 16.0."
        in text
    )
    assert "supports no claim" in text
    assert "Agents sent each other: texts. Of these kinds the coordinator received: none." in text
    assert "Not finished" not in text and "Unsafe sandbox" not in text
    for title in ("Results", "Learning curves", "Who taught whom", "Bytes", "Failures", "How to reproduce"):
        assert title in text
    assert "gpu none, python 3.11.9" in text


def test_page_shows_virtual_time_and_refused_reports(run: Path) -> None:
    ledger = Ledger.open(run / "ledger.sqlite")
    facts = {"start": 0.0, "end": 32.5, "absent": {"cleo": "away"}, "missed": [], "busy": ["bela"]}
    ledger.append("knexa", 2, "round", "clock", facts)
    ledger.append("knexa", 2, "round", "refused", {"agent": "bela", "exchange": 7, "cause": "no exchange 7 is open"})
    ledger.commit()
    ledger.close()
    text = Reader(write_report(run).read_text(encoding="utf-8")).text
    for shown in ("Rounds in virtual time", "32.5", "1 away", "Refused reports", "no exchange 7 is open"):
        assert shown in text


def test_command_to_reproduce_reads_the_stored_configuration(tmp_path: Path) -> None:
    config = read_config(resolve_recipe("demo"))
    stored = tmp_path / "config.json"
    stored.write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
    assert read_config(stored, ["seed=0"]) == config


def test_pictures_are_files_and_inlined_and_not_blank(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    files = {path.name: path.read_bytes() for path in (run / "report").glob("*.png")}
    expected = {"learning-1", "learning-loss", "pairs-1", "timeline-1", "rewards-1", "traffic"}
    assert {name.removesuffix(".png") for name in files} == expected
    inlined = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert sorted(inlined) == sorted(files.values())
    for raw in inlined:
        pixels = imread(io.BytesIO(raw))
        assert min(pixels.shape[:2]) > 300
        assert np.asarray(pixels)[..., :3].std() > 0.02


def test_same_ledger_gives_the_same_report(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_page_of_one_agent_without_exchanges(alone: Path) -> None:
    text = Reader(write_report(alone).read_text(encoding="utf-8")).text
    assert "1 agent, task records" in text
    assert "This run has no exchanges." in text
    assert "No call failed." in text
    assert "Agents sent each other nothing." in text
    assert "not needed: no answer was executed" in text
    assert "No arm trained alone" not in text


def test_unsafe_sandbox_and_unfinished_arms_are_said_first(tmp_path: Path) -> None:
    ledger = begin(tmp_path / "r", configuration(sandbox="unsafe"))
    evaluate(ledger, "start", 0, GRADES["start"][0])
    finish(ledger, "start", 0, NAMES, True)
    ledger.commit()
    text = Reader(write_report(tmp_path / "r").read_text(encoding="utf-8")).text
    assert text.index("Unsafe sandbox") < text.index("What was run")
    assert "Not finished: local at round 0 of 2, knexa at round 0 of 2." in text


def test_hostile_agent_names_reach_neither_markup_nor_pictures(tmp_path: Path) -> None:
    names = (HOSTILE, "日本", "b" * 200)
    ledger = begin(tmp_path / "r", configuration(), names)
    evaluate(ledger, "start", 0, {name: [0, 1] for name in names})
    for round_ in (1, 2):
        exchange(ledger, round_, (HOSTILE, "日本"), 0.0, 0.0)
        ledger.append("knexa", round_, "round", "failure", {"agent": names[2], "verb": "learn", "cause": "x"})
        evaluate(ledger, "knexa", round_, {name: [0, 1] for name in names})
    ledger.commit()
    reader = Reader(write_report(tmp_path / "r").read_text(encoding="utf-8"))
    assert "script" not in reader.tags


def test_run_without_evaluated_round_is_refused(tmp_path: Path) -> None:
    ledger = begin(tmp_path / "r", configuration())
    ledger.commit()
    with pytest.raises(ConfigError, match="'r' has no evaluated round yet; continue it with `peertune resume r`"):
        write_report(tmp_path / "r")
    assert not (tmp_path / "r" / "report").exists()


def test_empty_ledger_is_refused(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    with pytest.raises(ConfigError, match="holds no run yet"):
        run_tables(ledger)


def test_changed_ledger_is_refused(run: Path) -> None:
    ledger = Ledger.open(run / "ledger.sqlite")
    ledger._db.execute("UPDATE events SET body = replace(body, '\"reward\":0.25', '\"reward\":0.95')")
    ledger._db.commit()
    with pytest.raises(ConfigError, match="was changed after it was written"):
        write_report(run)


def test_plain_text_and_sizes() -> None:
    assert plain("a\nb\tc\u2028d\x00\x9b\u202e\u2066\ufeff\ue000é日") == "a b c dé日"
    assert [readable_bytes(count) for count in (0, 999, 1_000, 12_345_678, 10**13)] == [
        "0 B",
        "999 B",
        "1 kB",
        "12.3 MB",
        "10 TB",
    ]


def test_report_needs_neither_torch_nor_pyplot() -> None:
    heavy = "{'torch', 'transformers', 'matplotlib.pyplot', 'peertune.agent', 'peertune.experiment'}"
    code = f"import sys, peertune.report; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
