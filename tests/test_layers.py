"""Imports point one way: whoever reads a room need not know the rooms above it. Nothing is run: the source is read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "peertune"
HEAVY = ("torch", "transformers", "peft", "accelerate", "tokenizers")
TOP = (
    *(
        "agent",
        "arms",
        "assemble",
        "cli",
        "measuring",
        "sent",
        "aligning",
        "audit",
        "options",
        "experiment",
        "export",
        "terminal",
        "runs",
        "machine",
    ),
    *("doctor", "listing", "deploy", "deploying"),
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, inside_functions: bool = True) -> Iterator[str]:
    """What a module imports, but for what only a type checker reads."""
    return _imports(ast.parse(path.read_text(encoding="utf-8")), inside_functions)


def _imports(node: ast.AST, inside_functions: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            assert child.module is not None
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        elif inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, inside_functions)


def of_room(room: str) -> list[Path]:
    """The files of `peertune.room`, a module or a folder."""
    found = [path for path in modules() if dotted(path) == f"peertune.{room}" or f"peertune.{room}." in dotted(path)]
    assert found, f"there is no room {room!r}: mend this test"
    return found


def breaches(rooms: tuple[str, ...], forbidden: tuple[str, ...], inside_functions: bool = True) -> list[str]:
    names = [name if name in HEAVY else f"peertune.{name}" for name in forbidden]
    return [
        f"{dotted(path)} imports {imported}"
        for room in rooms
        for path in of_room(room)
        for imported in imports(path, inside_functions)
        if any(imported == name or imported.startswith(f"{name}.") for name in names)
    ]


RULES: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("errors know nothing", ("errors",), ("payloads", "ledger", "config", "tasks", "lm", "engines", "methods", *TOP)),
    (
        "payloads know only errors",
        ("payloads",),
        ("ledger", "federation", "config", "tasks", "lm", "engines", "methods", "matchmakers", "profiles", *TOP),
    ),
    (
        "what may leave, and sealed, is bytes and payloads",
        ("guard",),
        (
            *("federation", "ledger", "config", "tasks", "lm", "engines", "methods", "matchmakers", "profiles"),
            *("knowledge", "aggregate", "checkpoint", "codecs", *TOP, *HEAVY),
        ),
    ),
    (
        "what clients know is numbers, and combined without a model",
        ("knowledge", "ensemble", "assessment"),
        ("payloads", "ledger", "federation", "config", "tasks", "lm", "losses", "engines", "methods", *TOP, *HEAVY),
    ),
    (
        "a loss knows tensors",
        ("losses", "divergences"),
        ("payloads", "knowledge", "ledger", "federation", "config", "tasks", "lm", "engines", "methods", *TOP),
    ),
    (
        "alignment sees bytes and arrays, never a model",
        ("align",),
        ("payloads", "ledger", "federation", "config", "tasks", "lm", "losses", "engines", "methods", *TOP, *HEAVY),
    ),
    (
        "a codec sees arrays",
        ("codecs",),
        ("payloads", "ledger", "federation", "config", "tasks", "lm", "engines", "methods", *TOP, *HEAVY),
    ),
    (
        "files know no run",
        ("ledger", "checkpoint"),
        ("payloads", "federation", "config", "tasks", "lm", "engines", "methods", "matchmakers", *TOP),
    ),
    (
        "a matchmaker sees profiles, never a model",
        ("matchmakers", "profiles"),
        ("federation", "ledger", "config", "tasks", "lm", "engines", "methods", "checkpoint", *TOP, *HEAVY),
    ),
    (
        "an aggregator sees arrays, never a model or a federation",
        ("aggregate",),
        (
            *("payloads", "federation", "ledger", "config", "tasks", "lm", "engines", "methods", "matchmakers"),
            *("profiles", "checkpoint", *TOP, *HEAVY),
        ),
    ),
    (
        "a method touches agents through the federation alone",
        ("methods",),
        ("lm", "engines", "tasks", "ledger", "checkpoint", "config", *TOP, *HEAVY),
    ),
    (
        "the federation knows no method and no agent",
        ("federation", "handle", "mutual", "clock", "realtime"),
        ("methods", "matchmakers", "lm", *TOP, *HEAVY),
    ),
    ("an engine knows no method", ("engines",), ("methods", "matchmakers", "federation", "lm", "tasks", *TOP)),
    (
        "an agent does not know which method is running",
        ("agent",),
        ("methods", "matchmakers", "federation", "experiment", "cli", "config"),
    ),
    (
        "a language model knows no federation",
        ("lm",),
        ("engines", "methods", "matchmakers", "federation", "payloads", "ledger", "tasks", *TOP),
    ),
    (
        "data, grades and figures know no method and no engine",
        ("tasks", "partition", "evaluate", "report"),
        ("engines", "methods", "federation", "agent", "experiment", "assemble", "cli"),
    ),
    (
        "a configuration reads what methods and policies declare, and builds nothing",
        ("config",),
        ("lm", "agent", "engines", "federation", "experiment", "assemble", "cli"),
    ),
    (
        "a study of policies needs no model and no run",
        ("studies.matchmaking", "studies.ablation", "studies.summary"),
        ("federation", "ledger", "config", "tasks", "lm", "engines", "methods", "checkpoint", *TOP, *HEAVY),
    ),
    (
        "a study of runs reads ledgers; only its worker processes run anything",
        (
            *("studies.costs", "studies.records", "studies.paired", "studies.goals", "studies.tables"),
            *("studies.drawing", "studies.markdown", "studies.figures"),
            *("studies.compare.summary", "studies.compare.page", "studies.compare.pictures"),
        ),
        ("federation", "config", "tasks", "lm", "engines", "methods", "experiment", "agent", "cli", "terminal", *HEAVY),
    ),
    (
        "what a run will cost is known without one",
        ("cost",),
        ("engines", "experiment", "machine", "runs", "checkpoint", "agent.core", "agent.desk", "agent.halves", "cli"),
    ),
    ("a report reads files, never a live run", ("report",), ("lm", "matchmakers", "agent", "terminal")),
    ("nobody but the command knows the command", tuple(sorted({"experiment", "runs", "export", "agent"})), ("cli",)),
]


@pytest.mark.parametrize(("rooms", "forbidden"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES])
def test_imports_point_one_way(rooms: tuple[str, ...], forbidden: tuple[str, ...]) -> None:
    assert breaches(rooms, forbidden) == []


LIGHT = (
    *("errors", "payloads", "ledger", "checkpoint", "profiles", "matchmakers", "aggregate", "methods", "federation"),
    *("partition", "evaluate", "config", "tasks", "report", "studies", "cli", "listing", "doctor", "terminal"),
    *("runs", "machine", "knowledge", "ensemble", "assessment", "mutual"),
    *("codecs", "guard", "align", "aligning"),
    *("deploying", "deploy.home", "deploy.job", "deploy.kit", "deploy.parts", "deploy.start", "engines"),
    *("deploy.documents", "deploy.trust", "deploy.request", "deploy.members", "deploy.organiser", "deploy.preflight"),
)


@pytest.mark.parametrize("room", LIGHT)
def test_light_rooms_import_nothing_heavy(room: str) -> None:
    assert breaches((room,), HEAVY, inside_functions=False) == []


def test_the_check_sees_an_import(tmp_path: Path) -> None:
    source = (
        "import a.b\nfrom c import d\ndef f():\n    import e\nif TYPE_CHECKING:\n    import g\nclass X:\n    import h\n"
    )
    (tmp_path / "x.py").write_text(source)
    assert list(imports(tmp_path / "x.py")) == ["a.b", "c", "c.d", "e", "h"]
    assert list(imports(tmp_path / "x.py", inside_functions=False)) == ["a.b", "c", "c.d", "h"]


def test_nothing_is_unpickled() -> None:
    """Foreign bytes never become code; `torch.load` and `pickle` have no place here."""
    for path in modules():
        assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & set(imports(path)), path
        assert "torch.load(" not in path.read_text(encoding="utf-8"), path
