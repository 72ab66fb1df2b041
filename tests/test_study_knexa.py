"""The study of real federations: ledgers read exactly, statistics by hand, goals, runs stopped and gone on with."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import make_models, run, small_config

from peertune import cli
from peertune.errors import ConfigError
from peertune.ledger import Ledger
from peertune.runs import create_run
from peertune.studies import jobs, paired, records
from peertune.studies.federations import Limits, Study, rounded
from peertune.studies.figures import learning, teaching
from peertune.studies.goals import Verdict, judge
from peertune.studies.jobs import check_same_version
from peertune.studies.knexa import FEDERATIONS, QUICK, Plan
from peertune.studies.markdown import points
from peertune.studies.records import Arm, Record, Run, read_run
from peertune.studies.tables import markdown, summarise

NAMES = ("ann", "bob", "cat")


# Ledgers


def ledger_of(folder: Path) -> Ledger:
    """Two rounds of `local` and `knexa`, by hand; `cat` is useless, and `uniform` was not finished."""
    ledger = Ledger.create(folder / "ledger.sqlite")
    agents = [{"model": "m"}, {"model": "m"}, {"model": "m", "fault": "useless"}]
    config = {
        "rounds": 2,
        "task": {"type": "codelets"},
        "evaluation": {"k": [1, 2], "final": {"k": [3]}},
        "agents": agents,
        "baselines": {"local": {"type": "local"}, "uniform": {"type": "knexa"}},
        "method": {"type": "knexa"},
    }
    ledger.append("start", 0, "init", "run", {"config": config, "agents": [{"name": name} for name in NAMES]})
    grade(ledger, "start", 0, ([0, 0], [0, 0], [0, 0]))
    ledger.append("start", 0, "checkpoint", "done", {})
    grade(ledger, "local", 2, ([2, 1], [1, 0], [0, 0]))
    ledger.append("local", 2, "checkpoint", "done", {})
    ledger.append("uniform", 1, "round", "transfer", transfer("ann", "bob", "texts", 7))
    for t in (1, 2):
        ledger.append("knexa", t, "round", "transfer", transfer("ann", "bob", "texts", 100))
        ledger.append("knexa", t, "round", "transfer", transfer("bob", "coordinator", "claims", 10))
        ledger.append("knexa", t, "checkpoint", "transfer", transfer("coordinator", "bob", "texts", 9999))
        ledger.append("knexa", t, "round", "pair", {"source": "ann", "receiver": "bob", "texts": 3, "reward": 0.0})
        for name, value in (("exchange_updates", 24.0), ("flops", 2e9), ("text_accuracy", t / 4), ("train_loss", 1.0)):
            ledger.append("knexa", t, "round", "metric", {"agent": "bob", "name": name, "value": value})
    ledger.append("knexa", 2, "round", "metric", {"agent": "cat", "name": "text_accuracy", "value": 0.0})
    grade(ledger, "knexa", 2, ([2, 0], [2, 1], [1, 0]))
    for name, correct in zip(NAMES, ([4, 1], [0, 0], [4, 4]), strict=True):
        body = {"agent": name, "correct": correct, "samples": 4, "metrics": {}}
        ledger.append("knexa", 2, "evaluate", "samples", body)
    ledger.append("knexa", 2, "checkpoint", "done", {})
    ledger.commit()
    return ledger


def transfer(source: str, destination: str, payload: str, count: int) -> dict[str, Any]:
    return {"source": source, "destination": destination, "payload": payload, "bytes": count}


def grade(ledger: Ledger, arm: str, t: int, correct: tuple[list[int], ...]) -> None:
    """Two samples of two problems."""
    for name, counts in zip(NAMES, correct, strict=True):
        body = {"agent": name, "correct": counts, "samples": 2, "metrics": {"codebleu": 0.5}}
        ledger.append(arm, t, "evaluate", "scores", body)


def test_a_ledger_is_read_exactly(tmp_path: Path) -> None:
    found = read_run(ledger_of(tmp_path), "fed", 4)
    assert (found.federation, found.seed, found.rounds, found.score) == ("fed", 4, 2, "Pass@1")
    assert found.faults == {"ann": "", "bob": "", "cat": "useless"} and found.benign == ["ann", "bob"]
    assert list(found.arms) == ["start", "local", "knexa"] and found.unfinished == ["uniform"]
    (record,) = found.arms["knexa"].records
    greedy, both = {"Pass@1": 0.625, "Pass@2": 0.75, "codebleu": 0.5}, pytest.approx(2 / 3)
    assert record == Record(
        federation="fed",
        seed=4,
        arm="knexa",
        round=2,
        benign={**greedy, "text_accuracy": 0.5, "sampled Pass@3": pytest.approx((1 + 0.75 + 0 + 0) / 4)},
        all={"Pass@1": 0.5, "Pass@2": both, "codebleu": 0.5, "sampled Pass@3": pytest.approx((1.75 + 0 + 2) / 6)},
        agents={"ann": 0.5, "bob": 0.75, "cat": 0.25},
        worst_gain=-0.25,
        bytes={"claims, agent → coordinator": 20, "texts, agent → agent": 200},
        text_bytes=200,
        updates=48.0,
        gflop=4.0,
    )
    assert found.unit == "texts" and found.arms["knexa"].taught == {("ann", "bob"): 6}
    np.testing.assert_array_equal(found.arms["knexa"].grades["bob"], [1.0, 0.5])
    (alone,) = found.arms["local"].records
    assert (alone.worst_gain, alone.bytes, alone.updates) == (0.0, {}, 0.0)


def test_an_arm_whose_benign_agents_were_never_graded_is_left_out(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path)
    ledger.append("uniform", 2, "evaluate", "scores", {"agent": "cat", "correct": [1], "samples": 2, "metrics": {}})
    ledger.append("uniform", 2, "checkpoint", "done", {})
    ledger.commit()
    found = read_run(ledger, "fed", 4)
    assert "uniform" not in found.arms and found.unfinished == ["uniform (no grades)"]


def test_runs_are_found_by_name(tmp_path: Path) -> None:
    for name in ("a-b-s1", "a-b-s0", "a-b", "a-sx", ".c-s0"):
        (tmp_path / name).mkdir()
        ledger_of(tmp_path / name).close()
    (tmp_path / "empty-s0").mkdir()
    Ledger.create(tmp_path / "empty-s0" / "ledger.sqlite").close()
    assert [(one.federation, one.seed) for one in records.read_runs(tmp_path)] == [("a-b", 0), ("a-b", 1)]


def test_reading_needs_no_torch() -> None:
    rooms = "command, figures, knexa; from peertune.studies.compare import pictures, plan"
    code = f"import sys; from peertune.studies import {rooms}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# Statistics


def made(seed: int, levels: dict[str, list[list[float]]], federation: str = "knexa-experts", **costs: Any) -> Run:
    """One run of `ann` (and `cat`, a liar); `levels`: arm -> the grades of `ann` and, if given, of others."""
    found = Run(federation, seed, 2, "Pass@1", "texts", {"ann": "", "bob": "", "cat": "liar"}, {}, [])
    for arm, graded in levels.items():
        grades = {name: np.array(values) for name, values in zip(NAMES, graded, strict=False)}
        scores = {name: float(values.mean()) for name, values in grades.items()}
        mean = float(np.mean([scores[name] for name in found.benign if name in scores]))
        text = costs.get(arm, 100)
        record = Record(
            federation, seed, arm, 2, {"Pass@1": mean}, {"Pass@1": mean}, scores, -0.5, {"texts": text}, text, 4.0, 1.0
        )
        found.arms[arm] = Arm([record], grades, {("ann", "bob"): 2.0} if arm == "knexa" else {})
    return found


def test_the_bootstrap_draws_seeds_and_problems_within_them() -> None:
    """One seed: only problems vary. One problem each: only seeds vary."""
    one = paired.resampled_means([np.array([[0.0], [1.0]])])
    values, counts = np.unique(one, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(counts / paired.RESAMPLES, [0.25, 0.5, 0.25], atol=0.03)
    two = paired.resampled_means([np.array([[0.0]]), np.array([[1.0]])])
    assert np.unique(two).tolist() == [0.0, 0.5, 1.0]
    both = paired.resampled_means([np.array([[0.0], [1.0]]), np.array([[2.0], [3.0], [4.0]])])
    assert abs(both.mean() - 1.75) < 0.03 and both.min() == 0.0 and both.max() == 4.0
    np.testing.assert_array_equal(
        both, paired.resampled_means([np.array([[0.0], [1.0]]), np.array([[2.0], [3.0], [4.0]])])
    )


def test_columns_keep_what_was_drawn() -> None:
    random = np.random.default_rng(1)
    first = [random.random((5, 1)) for _ in range(3)]
    means = paired.resampled_means([np.hstack([column, column + 0.25]) for column in first])
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 0.25)


def test_a_difference_that_never_varies_has_no_width() -> None:
    runs = [made(seed, {"knexa": [[0.5 + seed / 10] * 4], "local": [[0.25 + seed / 10] * 4]}) for seed in range(3)]
    found = paired.compare(runs, "knexa", "local")
    assert found is not None and found.seeds == (0, 1, 2) and found.positive == 3
    assert found.difference == pytest.approx((0.25, 0.25, 0.25))
    assert found.gain is not None and found.gain[0] == pytest.approx(0.6 / 0.35 - 1)
    assert found.gain[1:] == pytest.approx((0.25 / 0.45, 1.0))


def test_only_common_seeds_and_benign_agents_are_compared() -> None:
    runs = [made(0, {"knexa": [[1.0], [0.0], [1.0]], "local": [[0.0], [0.0], [1.0]]}), made(1, {"knexa": [[0.0]]})]
    found = paired.compare(runs, "knexa", "local")
    assert found is not None and found.seeds == (0,) and found.difference[0] == 0.5 and found.gain is None
    alone = paired.compare(runs, "knexa", "local", ["bob"])
    assert alone is not None and alone.difference == (0.0, 0.0, 0.0) and alone.positive == 0
    assert paired.compare(runs, "knexa", "uniform") is None and paired.compare([], "a", "b") is None


def test_a_ratio_is_of_sums() -> None:
    found = paired.ratio([(1, 10), (3, 10)])
    assert found is not None and found[0] == 0.2 and found[1] == 0.1 and found[2] == pytest.approx(0.3)
    assert paired.ratio([]) is None and paired.ratio([(1, 0)]) is None


# Goals and tables


def federation(name: str = "knexa-experts", **levels: float) -> list[Run]:
    """Three seeds of two agents who both have these scores, the same for every problem."""
    return [made(seed, {arm: [[level] * 4] * 2 for arm, level in levels.items()}, name) for seed in range(3)]


def verdict(verdicts: list[Verdict], goal: str, place: str = "knexa-experts") -> Verdict:
    (found,) = [one for one in verdicts if goal in one.goal and one.federation == place]
    return found


def test_goals_are_judged() -> None:
    runs = federation(knexa=0.5, uniform=0.25, uniform_filtered=0.48, pairwise=0.3, paper=0.3, local=0.2)
    found = judge({"knexa-experts": runs})
    twice = verdict(found, "+100 % over `uniform`")
    assert twice.reached is True and twice.found == pytest.approx((1.0, 1.0, 1.0)) and twice.seeds == 3
    assert verdict(found, "`knexa` at least +10 % over `uniform_filtered`").reached is False
    assert verdict(found, "+25 % over `uniform`").reached is False
    assert verdict(found, "`knexa` above `paper`").reached is True
    assert verdict(found, "`pairwise` above `paper`").reached is False  # a tie is not above
    assert verdict(found, "`knexa` above `hetero_greedy`").reached is None
    assert verdict(found, "no benign agent").reached is True
    assert all(one.reached is None and one.found is None for one in found if one.federation != "knexa-experts")


def test_one_agent_below_itself_is_enough() -> None:
    runs = [made(seed, {"knexa": [[0.9] * 4, [0.1] * 4], "local": [[0.2] * 4, [0.2] * 4]}) for seed in range(3)]
    found = verdict(judge({"knexa-experts": runs}), "no benign agent")
    assert found.reached is False and found.note == "below: bob" and found.found == pytest.approx((-0.1,) * 3)


def test_central_arms_are_met_at_equal_updates_and_few_bytes() -> None:
    levels = {"knexa": [[0.5] * 4], "central_confident": [[0.4] * 4], "central_filtered": [[0.5] * 4]}
    runs = [made(seed, levels, knexa=15, central_filtered=100) for seed in range(2)]
    found = judge({"knexa-experts": runs})
    below, few = verdict(found, "strongest central"), verdict(found, "text bytes")
    assert below.reached is True and below.note == "against `central_filtered`"
    assert few.reached is True and few.found == pytest.approx((0.15, 0.15, 0.15))
    (first, *_) = runs[0].arms["central_filtered"].records
    for one in runs:
        one.arms["central_filtered"].records[:] = [replace_updates(first, one.seed, 8.0)]
    unequal = verdict(judge({"knexa-experts": runs}), "strongest central")
    assert unequal.reached is False and "0.50 times as many" in unequal.note


def replace_updates(record: Record, seed: int, updates: float) -> Record:
    fields = {name: getattr(record, name) for name in Record.__slots__}
    return Record(**{**fields, "seed": seed, "updates": updates})


def test_the_liar_is_measured_against_the_same_seeds_without_it() -> None:
    study = {
        "knexa-liars": federation("knexa-liars", knexa=0.47),
        "knexa-honest": federation("knexa-honest", knexa=0.5),
    }
    lost = verdict(judge(study), "loses at most 2 points", "knexa-liars")
    assert lost.reached is False and lost.found == pytest.approx((-0.03,) * 3)


def small_summary() -> dict[str, Any]:
    runs = federation(local=0.2, uniform=0.25, knexa=0.5)
    del runs[2].arms["uniform"]
    return rounded(summarise({"knexa-experts": runs}, {"knexa-experts-s2": ["uniform"]}))


def test_the_page_says_everything_with_its_n() -> None:
    page = markdown(small_summary())
    both = "| knexa | 3 | 50.0 (50.0 to 50.0) | 50.0 | +30.0 (+30.0 to +30.0) | +25.0 (+25.0 to +25.0) | -50.0 |"
    assert both in page
    assert "| knexa | uniform | +25.0 (+25.0 to +25.0) | +100 (+100 to +100) | 2 of 2 | 2 |" in page
    assert "| uniform | local |" in page and "| local | uniform |" not in page
    assert "not benign: cat (liar)" in page and "* `knexa-experts-s2`: uniform" in page
    assert "`pairwise` above `paper` | knexa-liars | – | – | not run |" in page
    assert markdown(json.loads(json.dumps(small_summary()))) == page


def test_pictures_are_repeated_exactly() -> None:
    summary = small_summary()
    summary["records"] += [{**one, "arm": "start", "round": 0, "text_bytes": 0} for one in summary["records"][:3]]
    from peertune.report.canvas import png

    for draw in (learning, teaching):
        first, second = draw(summary, "knexa-experts"), draw(summary, "knexa-experts")
        assert first is not None and second is not None and png(first) == png(second)
    summary["federations"]["knexa-experts"]["taught"] = {"local": []}
    assert teaching(summary, "knexa-experts") is None


# Runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of two arms, and one whose first model is damaged."""
    folder = tmp_path_factory.mktemp("study")
    changes: dict[str, Any] = {"baselines": {"local": "local"}, "rounds": 6, "evaluation": {"every": 6}}
    config = small_config(make_models(folder / "models"), "llama gpt2", **changes).model_dump(mode="json")
    (folder / "tiny.yaml").write_text(json.dumps(config))
    config["agents"][0]["model"] = str(folder / "models" / "broken")
    (folder / "models" / "broken").mkdir()
    shutil.copy(folder / "models" / "llama" / "config.json", folder / "models" / "broken")
    (folder / "models" / "broken" / "model.safetensors").write_bytes(b"no weights")
    (folder / "broken.yaml").write_text(json.dumps(config))
    return folder


def plan_of(folder: Path, *names: str, **changes: Any) -> Plan:
    return Plan(tuple(str(folder / f"{name}.yaml") for name in names), **changes)


def ignore(what: str, done: int, of: int) -> None:
    """A watch that looks away."""


def test_stopped_gone_on_with_and_skipped(folder: Path, tmp_path: Path) -> None:
    """A study that is stopped after its first arm ends as undisturbed runs do; a failing job costs itself."""
    heard: list[tuple[str, int, int]] = []
    plan = plan_of(folder, "broken", "tiny", seeds=1)
    study = plan.study(tmp_path / "out")

    def watch(what: str, done: int, of: int) -> None:
        heard.append((what, done, of))
        study.stop()

    study.run(Limits(jobs=2), watch)
    assert heard == [("tiny-s0: local", 1, 4)] and study.progress() == (1, 4)
    assert list(study.failures) == ["broken-s0"] and "\n" not in study.failures["broken-s0"]
    assert markdown_of(study).endswith("* `broken-s0`: local, knexa\n* `tiny-s0`: knexa\n")
    heard.clear()
    study = plan.study(tmp_path / "out")
    study.run(Limits(), lambda *told: heard.append(told))
    assert list(study.failures) == ["broken-s0"]
    assert heard == [("tiny-s0: knexa", 2, 4)]
    assert "| knexa | local |" in markdown_of(study)
    config = next(job.config for job in study.jobs if job.name == "tiny-s0")
    undisturbed = run(tmp_path / "undisturbed", config)
    assert Ledger.read(tmp_path / "out" / "runs" / "tiny-s0" / "ledger.sqlite").head == undisturbed.head
    again = plan_of(folder, "tiny", seeds=1).study(tmp_path / "out")
    again.run(Limits(), ignore)
    assert again.failures == {} and again.progress() == (2, 2)


def markdown_of(study: Study) -> str:
    summary, page, *pictures = study.write()
    assert markdown(json.loads(summary.read_text(encoding="utf-8"))) == page.read_text(encoding="utf-8")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures) and pictures
    return page.read_text(encoding="utf-8")


def test_another_configuration_is_refused(folder: Path, tmp_path: Path) -> None:
    study = plan_of(folder, "tiny", seeds=1).study(tmp_path)
    create_run(study.jobs[0].folder, study.jobs[0].config).close()
    check_same_version(study.jobs[0])
    with pytest.raises(ConfigError, match=r"another configuration \(rounds: 6 there, 3 here\); name another folder"):
        plan_of(folder, "tiny", seeds=1, overrides=("rounds=3",)).study(tmp_path)
    with pytest.raises(ConfigError, match=r"\(agents.1.name: null there, \"zoe\" here\)"):
        plan_of(folder, "tiny", seeds=1, overrides=("agents.1.name=zoe",)).study(tmp_path)
    plan_of(folder, "tiny", seeds=1, overrides=("engine.device=auto",)).study(tmp_path)


def test_a_process_that_dies_costs_its_job(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.sys, "executable", shutil.which("false"))
    study = plan_of(folder, "tiny", seeds=3).study(tmp_path)
    study.run(Limits(jobs=2), ignore)
    cause = f"its process ended with exit code 1; {tmp_path}/errors.log may say why"
    assert study.failures == {f"tiny-s{seed}": cause for seed in range(3)}


def test_no_minutes_begin_nothing(folder: Path, tmp_path: Path) -> None:
    study = plan_of(folder, "tiny", seeds=2).study(tmp_path)
    study.run(Limits(minutes=0), ignore)
    assert study.failures == {} and not (tmp_path / "runs").exists()
    summary, page = study.write()
    assert json.loads(summary.read_text())["missing"] == {f"tiny-s{seed}": ["local", "knexa"] for seed in range(2)}
    assert "not run" in page.read_text()


def test_plans(folder: Path, tmp_path: Path) -> None:
    study = plan_of(folder, "tiny", arms=()).study(tmp_path)
    assert [job.name for job in study.jobs] == [f"tiny-s{seed}" for seed in range(5)]
    assert [job.config.seed for job in study.jobs] == list(range(5))
    assert {tuple(job.config.arms()) for job in study.jobs} == {("knexa",)}
    assert next(iter(FEDERATIONS)) == QUICK.files[0] and FEDERATIONS[QUICK.files[0]] == 10
    with pytest.raises(ConfigError, match="both be run as 'tiny-s0'"):
        plan_of(folder, "tiny", "tiny").study(tmp_path)
    with pytest.raises(ConfigError, match="no configuration at 'nothing'"):
        Plan(("nothing",)).study(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="name another folder with --to"):
        plan_of(folder, "tiny").study(tmp_path / "file").run(Limits(), ignore)


def test_a_study_is_run_by_one_process(folder: Path, tmp_path: Path) -> None:
    from peertune.runs import locked

    with locked(tmp_path), pytest.raises(ConfigError, match="another process"):
        plan_of(folder, "tiny", seeds=1).study(tmp_path).run(Limits(), ignore)


# The command


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def peertune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)

    def command(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["peertune", "study", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code if isinstance(end.value.code, int) else 0, out, err

    return command


def test_the_command_reports_failures_and_writes_what_there_is(peertune: Command, folder: Path, tmp_path: Path) -> None:
    code, out, err = peertune("knexa", folder / "broken.yaml", "--seeds", "1", "--to", "out")
    assert code == 2 and err.startswith("peertune: broken-s0 failed: ") and "Traceback" not in err
    assert "written: out/summary.json, out/table.md" in out and "* `broken-s0`: local, knexa" in out


def test_the_command_stops_at_ctrl_c(peertune: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(study: Study, limits: Limits, watch: object) -> None:
        study.crew = jobs.Crew(1, Path("log"), lambda job, arm: None)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Study, "run", interrupted)
    code, out, err = peertune("knexa", folder / "tiny.yaml", "--seeds", "1")
    assert code == 130 and "finishing the running rounds" in err and "study-knexa/table.md" in out


def test_only_the_arms_that_are_named_are_run(peertune: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(Study, "run", lambda study, *_: seen.append(list(study.jobs[0].config.arms())))
    peertune("knexa", folder / "tiny.yaml", "--seeds", "1", "--arms", "local")
    assert seen == [["local", "knexa"]]
    code, _, err = peertune("knexa", folder / "tiny.yaml", "--seeds", "1", "--arms", "local,pairwize")
    assert code == 2 and err.startswith("peertune: --arms: ") and "'pairwize'" in err and len(seen) == 1


def test_options_of_another_study_are_refused(peertune: Command) -> None:
    code, _, err = peertune("matchmaking", "--seeds", "2")
    assert (code, err) == (2, "peertune: the study matchmaking takes --quick and --to, and no configuration\n")


def test_the_results_page_holds_the_tables_of_the_committed_summary() -> None:
    root = Path(__file__).parent.parent / "docs"
    summary = json.loads((root / "knexa" / "summary.json").read_text(encoding="utf-8"))
    assert markdown(summary).strip() in (root / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["knexa-liars", "knexa-dirichlet"])
def test_the_results_page_says_what_the_summary_of_a_federation_says(name: str) -> None:
    root = Path(__file__).parent.parent / "docs"
    page, summary = (root / "results.md").read_text(encoding="utf-8"), root / name / "summary.json"
    for row in json.loads(summary.read_text(encoding="utf-8"))["federations"][name]["arms"]:
        over = points(row["over"]["uniform"], "+") if "uniform" in row["over"] else "–"
        assert row["seeds"] == 5 and f"| {row['arm']} | {points(row['score'])} | {over} |" in page


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (
            "knexa",
            "4 and 6 rounds `knexa` is {:.1f}, {:.1f} and {:.1f} points above it, better with each of the 5 seeds; "
            "after 8 rounds {:+.1f}",
        ),
        ("knexa-dirichlet", "ahead at first: {:.1f} points after 2 rounds, {:.1f} after 4, {:.1f} after 6"),
    ],
)
def test_the_results_page_says_how_far_routing_leads_its_control_after_each_round(folder: str, said: str) -> None:
    root = Path(__file__).parent.parent / "docs"
    scores: dict[tuple[str, int], list[float]] = {}
    for record in json.loads((root / folder / "summary.json").read_text(encoding="utf-8"))["records"]:
        scores.setdefault((record["arm"], record["round"]), []).append(100 * record["benign"]["Pass@1"])
    leads = [np.mean(scores["knexa", t]) - np.mean(scores["uniform_filtered", t]) for t in (2, 4, 6, 8)]
    assert said.format(*leads) in (root / "results.md").read_text(encoding="utf-8")
