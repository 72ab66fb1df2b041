"""The command: what it prints, how it ends, and that a mistake is one message and never a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peertune import cli, doctor, machine
from peertune.config import read_config
from peertune.config.reader import RECIPES
from peertune.doctor import Check
from peertune.ledger import Ledger
from peertune.listing import listing

VERBS = (
    *("init", "ls", "validate", "doctor", "plan", "run", "resume", "show", "export", "study", "audit", "outbox"),
    "align",
)
SMALL = """\
task: codelets
agents: [{model: bundled/qwen2}, {model: bundled/gpt2}]
method: knexa
"""
HEAVY = "{'torch', 'transformers', 'peft', 'matplotlib', 'numpy', 'pydantic'} & sys.modules.keys()"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def peertune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command with these arguments, in an empty folder: exit code, output, error output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PEERTUNE_RUNS", raising=False)

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["peertune", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code if isinstance(end.value.code, int) else 0, out, err

    return run


def refused(result: tuple[int, str, str]) -> str:
    """The message of an error of ours: exit code 2, nothing on the output, no traceback."""
    code, out, err = result
    assert (code, out) == (2, "") and err.startswith("peertune: ") and "Traceback" not in err
    return err.removeprefix("peertune: ").strip()


# Help


def test_help_lists_the_verbs(peertune: Run) -> None:
    code, out, _ = peertune("--help")
    assert code == 0
    assert all(f" {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(peertune: Run, verb: str) -> None:
    code, out, _ = peertune(verb, "--help")
    assert code == 0 and "Usage" in out


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from peertune import cli
sys.argv = ["peertune", "--help"]
try:
    cli.main()
except SystemExit:
    print("HEAVY", sorted({HEAVY}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


def test_unknown_verb_and_missing_argument(peertune: Run) -> None:
    for args in (["train"], ["validate"], ["run", "demo", "--sed", "1"], ["run", "demo", "--seed", "x"]):
        code, _, err = peertune(*args)
        assert code == 2 and "Traceback" not in err


# init, ls, validate


def test_init_copies_and_does_not_overwrite(peertune: Run, tmp_path: Path) -> None:
    code, out, _ = peertune("init", "demo")
    assert code == 0 and "demo.yaml written" in out and "peertune validate demo.yaml" in out
    assert (tmp_path / "demo.yaml").read_text() == (RECIPES / "demo.yaml").read_text()
    (tmp_path / "demo.yaml").write_text("mine")
    assert refused(peertune("init", "demo")) == "demo.yaml exists and is not overwritten; name another file"
    assert (tmp_path / "demo.yaml").read_text() == "mine"
    assert peertune("init", "demo", "other.yaml")[0] == 0
    assert "missing/x.yaml cannot be written (No such file" in refused(peertune("init", "demo", "missing/x.yaml"))
    assert "did you mean the recipe 'demo'?" in refused(peertune("init", "demmo"))


def test_every_recipe_can_be_copied_and_read(peertune: Run, tmp_path: Path) -> None:
    for recipe in RECIPES.glob("*.yaml"):
        assert peertune("init", recipe.stem)[0] == 0
        read_config(tmp_path / recipe.name)


def test_ls(peertune: Run, tmp_path: Path) -> None:
    ledger_in(tmp_path / "runs" / "good")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "ledger.sqlite").write_text("no database")
    code, out, err = peertune("ls")
    assert (code, err) == (0, "")
    sections = {line: number for number, line in enumerate(out.splitlines()) if not line.startswith(" ")}
    assert list(sections) == ["recipes", "methods", "matchmakers", "tasks", "models", "runs in runs"]
    for name in ("demo", "local", "knexa", "linucb", "uniform", "hetero_greedy", "codelets", "humaneval", "mbpp"):
        assert any(line.startswith(f"  {name} ") for line in out.splitlines()), name
    assert "  good             knexa round 1, 0.12 MB moved\n" in out
    assert "  broken           unreadable: runs/broken/ledger.sqlite" in out


def test_listing_says_something_of_each(tmp_path: Path) -> None:
    entries = listing(tmp_path)
    assert entries.pop(f"runs in {tmp_path}") == []
    assert all(about and "\n" not in about for each in entries.values() for _, about in each)


def ledger_in(folder: Path) -> None:
    folder.mkdir(parents=True)
    ledger = Ledger.create(folder / "ledger.sqlite")
    body = {"source": "a", "destination": "b", "payload": "texts", "bytes": 123_456}
    ledger.append("knexa", 1, "round", "transfer", body)
    ledger.commit()
    ledger.close()


def test_validate(peertune: Run, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    code, out, _ = peertune("validate", "small.yaml", "--set", "rounds=3")
    assert (code, out) == (0, "small.yaml: OK: 2 agents, 3 rounds of knexa\n")
    assert peertune("validate", "demo")[0] == 0


def test_validate_bad(peertune: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(SMALL + "round: 3\nseed: x\n")
    first, second = refused(peertune("validate", "bad.yaml")).splitlines()
    assert first.startswith("bad.yaml:4: [top] unknown key 'round'; did you mean 'rounds'?")
    assert second == 'bad.yaml:5: [seed] expected a whole number, found "x"'
    (tmp_path / "good.yaml").write_text(SMALL)
    assert refused(peertune("validate", "good.yaml", "--set", "seed=x")).startswith("--set 'seed=x': [seed] expected")
    missing = refused(peertune("validate", "good.yaml", "--set", "agents.0.model=bundled/qwen3"))
    assert "no bundled model 'bundled/qwen3'; nearest: bundled/qwen2" in missing
    assert "expected a folder" in refused(peertune("validate", "good.yaml", "--set", "agents.0.model=./nowhere"))
    assert "expected a YAML file or the name of a recipe" in refused(peertune("validate", "nothing"))


def test_validate_imports_no_torch() -> None:
    code = f"""
import sys
from peertune import cli
sys.argv = ["peertune", "validate", "demo"]
try:
    cli.main()
except SystemExit:
    print("HEAVY", sorted({HEAVY} - {{"pydantic", "numpy"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout and "OK: " in done.stdout


# Runs that cannot begin, or are not there


def test_run_of_nothing(peertune: Run, tmp_path: Path) -> None:
    assert "expected a YAML file or the name of a recipe" in refused(peertune("run", "nothing"))
    assert "[rounds] expected a whole number" in refused(peertune("run", "demo", "--set", "rounds=x"))
    assert "--set 'seed=-1': [seed] expected" in refused(peertune("run", "demo", "--seed", "-1"))
    assert not (tmp_path / "runs").exists()


def test_run_name_taken(peertune: Run, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    message = refused(peertune("run", "demo", "--name", "mine"))
    assert message == "the run 'mine' exists; choose another --name, or continue it: peertune resume mine"
    assert os.listdir(tmp_path / "runs") == ["mine"]
    assert os.listdir(tmp_path / "runs" / "mine") == []


def test_run_in_a_folder_that_cannot_be_written(peertune: Run, tmp_path: Path) -> None:
    """A path under a file: the test may run as root, whom no read-only folder stops."""
    (tmp_path / "file").write_text("")
    message = refused(peertune("run", "demo", "--runs", "file/runs"))
    assert message.startswith("file/runs/demo-1: the run cannot be created (Not a directory); free space")


@pytest.mark.parametrize(
    "args", [["show", "x"], ["resume", "x"], ["export", "x", "--agent", "a", "--to", "out"], ["show", "../runs"]]
)
def test_runs_that_are_not_there(peertune: Run, tmp_path: Path, args: list[str]) -> None:
    (tmp_path / "runs" / "other").mkdir(parents=True)
    name = args[1].rsplit("/")[-1]
    message = refused(peertune(*args))
    assert f"{name!r}" in message or f"{args[1]!r}" in message
    assert message.endswith("`peertune ls` shows the runs there are")
    assert refused(peertune(args[0], *args[1:], "--runs", "nowhere"))


@pytest.mark.parametrize("args", [["show", "bad"], ["resume", "bad"], ["export", "bad", "--agent", "a", "--to", "out"]])
def test_runs_that_are_damaged(peertune: Run, tmp_path: Path, args: list[str]) -> None:
    folder = tmp_path / "runs" / "bad"
    folder.mkdir(parents=True)
    (folder / "ledger.sqlite").write_bytes(b"no database" * 1000)
    (folder / "config.json").write_text(read_config(RECIPES / "demo.yaml").model_dump_json())
    assert "runs/bad" in refused(peertune(*args)) or args[0] == "export"


def test_export_of_what_a_run_does_not_have(peertune: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "r"
    ledger_in(folder)
    assert "config.json is missing or damaged" in refused(peertune("export", "r", "--agent", "ada", "--to", "out"))
    (folder / "config.json").write_text(read_config(RECIPES / "demo.yaml").model_dump_json())
    message = refused(peertune("export", "r", "--agent", "zoe", "--to", "out"))
    assert message == "the run 'r' has no agent 'zoe'; its agents: ada, bela, cleo, dana, emil, fred"
    message = refused(peertune("export", "r", "--agent", "ada", "--arm", "fedavg", "--to", "out"))
    assert message == "the run 'r' has no arm 'fedavg'; its arms: start, local, random, knexa"
    message = refused(peertune("export", "r", "--agent", "ada", "--to", "out"))
    assert message == "knexa has no complete round yet; continue with `peertune resume r`"
    assert not (tmp_path / "out").exists()


# doctor


def test_doctor(peertune: Run) -> None:
    code, out, _ = peertune("doctor")
    for word in ("Check", "Found", "How to fix", "Python", "PyTorch", "Device", "Memory", "Sandbox", "Disk", "SQLite"):
        assert word in out
    assert code in (0, 2)  # 2 where something is missing on the machine that runs the tests


def test_doctor_says_what_is_wrong(peertune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Check("Python", "3.11"), Check("Memory", "0.5 GB free", "close programs")]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    code, out, _ = peertune("doctor")
    assert code == 2 and "close programs" in out
    monkeypatch.setattr(doctor, "examine", lambda: checks[:1])
    assert peertune("doctor")[0] == 0


def test_doctor_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from peertune.doctor import examine; print(examine())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "not importable (torch)" in done.stdout and "unknown without PyTorch" in done.stdout


def test_doctor_on_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 1e9)
    assert doctor._memory() == Check("Memory", "1.0 GB free", "close programs, or set engine.workers: 1")
    monkeypatch.setattr(machine, "available_memory", lambda: 8e9)
    assert doctor._memory() == Check("Memory", "8.0 GB free")


# What a machine reads


def test_events_are_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    with cli._watching() as (watch, _):
        watch("failure", {"cause": "é \udce9", "round": 1})
    assert json.loads(capsys.readouterr().out) == {"event": "failure", "cause": "é \udce9", "round": 1}


# study


def test_study_refuses_what_it_does_not_know(peertune: Run, tmp_path: Path) -> None:
    expected = "there is no study 'weather'; expected matchmaking, ablation or knexa"
    assert refused(peertune("study", "weather")) == expected
    (tmp_path / "file").write_text("")
    assert "name another folder with --to" in refused(peertune("study", "matchmaking", "--quick", "--to", "file"))


@pytest.mark.parametrize(
    ("name", "federations", "line", "files"),
    [
        ("matchmaking", 28, "| trust | 4 | low |", ["figure.png", "summary.json", "table.md"]),
        ("ablation", 44, "| without recency |", ["summary.json", "table.md"]),
    ],
)
def test_study_shows_progress_and_writes(
    peertune: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    federations: int,
    line: str,
    files: list[str],
) -> None:
    from peertune.studies import matchmaking

    tiny = matchmaking.Plan(agents=(4,), heterogeneity=("low",), seeds=2, rounds=2)
    monkeypatch.setattr(matchmaking, "QUICK", tiny)
    code, out, _ = peertune("study", name, "--quick")
    assert code == 0 and f"federations: {federations} of {federations}\n" in out and line in out
    assert sorted(path.name for path in (tmp_path / f"study-{name}").iterdir()) == files
