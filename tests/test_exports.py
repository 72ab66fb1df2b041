"""The public names, pinned; and the sizes that keep the code readable."""

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import peertune
from peertune.config import Config, read_config, resolve_recipe
from peertune.methods import METHODS

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "peertune").rglob("*.py"))
MAX_FILE, MAX_FUNCTION, MAX_ROUND = 300, 50, 24

PUBLIC = [
    "AgentError",
    "AgentHandle",
    "Config",
    "ConfigError",
    "Example",
    "Experiment",
    "Federation",
    "Ledger",
    "MATCHMAKERS",
    "METHODS",
    "Matchmaker",
    "Method",
    "MethodError",
    "Pair",
    "PayloadError",
    "PeertuneError",
    "Ref",
    "StorageError",
    "Task",
    "__version__",
    "read_config",
    "run",
    "write_report",
]


def test_public_names() -> None:
    assert sorted(peertune.__all__) == PUBLIC and len(PUBLIC) <= 25
    for name in PUBLIC:
        assert getattr(peertune, name) is not None
    with pytest.raises(AttributeError, match="no public name 'Agent'"):
        _ = peertune.Agent


def test_names_are_those_of_their_modules() -> None:
    assert peertune.Config is Config and peertune.read_config is read_config and peertune.METHODS is METHODS


def test_version_is_that_of_the_package() -> None:
    assert peertune.__version__ == importlib.metadata.version("peertune")


def test_importing_costs_nothing() -> None:
    code = "import sys; before = set(sys.modules); import peertune; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", f"sys = __import__('sys'); sys.path.insert(0, {str(ROOT)!r}); "
                           + code], capture_output=True, text=True, check=True)  # fmt: skip
    assert not {"torch", "numpy", "pydantic", "yaml", "msgspec"} & set(ast.literal_eval(done.stdout))


def test_run_is_read_create_run_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peertune import experiment, report

    heard: list[Any] = []

    class Experiment:
        @classmethod
        def create(cls, folder: Path, config: Config, watch: Any) -> "Experiment":
            watch("begin", {})
            heard.extend([folder, config.seed])
            return cls()

        def run(self) -> None:
            heard.append("run")

    monkeypatch.setattr(experiment, "Experiment", Experiment)
    monkeypatch.setattr(report, "write_report", lambda folder: folder / "report.html")
    demo = resolve_recipe("demo")
    assert peertune.run(demo, tmp_path / "r") == tmp_path / "r" / "report.html"
    config = read_config(demo, ["seed=7"])
    peertune.run(config, tmp_path / "s", watch=lambda event, body: heard.append(event))
    assert heard == [tmp_path / "r", 0, "run", "begin", tmp_path / "s", 7, "run"]


# Sizes


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each function with its number of lines, decorators and docstring counted."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield node.name, node.end_lineno - first + 1


def test_files_and_functions_stay_short() -> None:
    long_files = [
        f"{path.relative_to(ROOT)}: {lines} lines"
        for path in SOURCES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE
    ]
    long_functions = [
        f"{path.relative_to(ROOT)}: {name} has {lines} lines"
        for path in SOURCES
        for name, lines in functions(path)
        if lines > MAX_FUNCTION
    ]
    assert long_files == [] and long_functions == []


def test_a_round_reads_like_its_paper() -> None:
    files = {Path(sys.modules[method.__module__].__file__ or ""): name for name, method in METHODS.items()}
    assert len(files) == len(METHODS), "one file a method"
    for path, name in files.items():
        rounds = [lines for function, lines in functions(path) if function == "round"]
        assert len(rounds) == 1 and rounds[0] <= MAX_ROUND, name


def test_folders_are_shallow_and_named() -> None:
    assert all(len(path.relative_to(ROOT).parts) <= 4 for path in SOURCES)
    assert not [path for path in SOURCES if path.stem in ("utils", "helpers", "common", "misc")]


def test_every_module_says_what_it_is() -> None:
    silent = [str(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert silent == []
