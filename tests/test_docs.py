"""The documents say what the code does: commands, names, examples, links."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter
from small import make_models, small_config

from peertune.config import read_config, resolve_recipe
from peertune.config.combinations import check_combinations
from peertune.config.section import one_of
from peertune.listing import listing
from peertune.matchmakers import MATCHMAKERS, Matchmaker, Pair
from peertune.methods import METHODS
from peertune.profiles import SCORE

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
sys.path.insert(0, str(ROOT / "scripts"))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_command_page_is_generated_from_the_command() -> None:
    from write_cli_docs import cli_page

    assert text("docs/cli.md") == cli_page(), "run `python scripts/write_cli_docs.py`"


def test_the_readme_fits_and_names_both_commands() -> None:
    readme = text("README.md")
    assert len(readme.splitlines()) <= 150
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert re.search(rf"^{target}:", text("Makefile"), re.M)


def test_every_test_that_holds_a_promise_exists() -> None:
    promised = set(re.findall(r"`(test_\w+)`", text("docs/security.md")))
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert len(promised) > 30 and not [name for name in promised if f"\ndef {name}(" not in sources]


def test_every_method_and_matchmaker_is_documented() -> None:
    methods = text("docs/methods.md")
    for name in METHODS:
        assert f"`{name}`" in methods and f"`{name}`" in text("README.md")
    for name in MATCHMAKERS:
        assert f"`{name}`" in text("README.md")


def test_every_room_of_the_tree_exists_and_is_named() -> None:
    readme = text("README.md")
    for name in re.findall(r"(?<![\w/])([a-z_]+(?:\.py|/))", readme.split("## The tree")[1].split("```")[1]):
        home = ROOT if name in ("peertune/", "scripts/") else ROOT / "peertune"
        assert list(home.glob(name)) or list(home.glob(f"*/{name}")) or list(ROOT.glob(name)), name
    for path in (ROOT / "peertune").iterdir():
        if path.name not in ("__init__.py", "__pycache__", "errors.py"):
            assert path.name in readme, f"{path.name} is missing in the README's tree"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", content):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:peertune|docs|tests|scripts)/[\w/.-]+)`", content):
        if "best_source" not in path:
            assert (ROOT / path).exists(), path


def test_the_commands_of_the_readme_exist() -> None:
    from typer.main import get_command

    from peertune.cli import app

    commands = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
    named = set(re.findall(r"^peertune (\w+)", text("README.md"), re.M))
    assert named and named <= set(commands)


def test_the_listing_names_every_method_and_matchmaker(tmp_path: Path) -> None:
    listed = listing(tmp_path)
    assert {name for name, _ in listed["methods"]} == set(METHODS)
    assert {name for name, _ in listed["matchmakers"]} == set(MATCHMAKERS)


def test_the_matchmaker_of_the_extending_page_works() -> None:
    blocks = re.findall(r"```python\n(# peertune/matchmakers/best_source\.py\n.*?)```", text("docs/extending.md"), re.S)
    module = ModuleType("best_source")
    sys.modules["best_source"] = module  # dataclasses look their module up
    try:
        exec(blocks[0], module.__dict__)
    finally:
        del sys.modules["best_source"]
    contexts = {name: np.zeros(64) for name in "abc"}
    for name, score in (("a", 0.1), ("b", 0.9), ("c", 0.5)):
        contexts[name][SCORE] = score
    candidates = [
        Pair(source, receiver, contexts[source]) for source in "abc" for receiver in "abc" if source != receiver
    ]
    policy = module.BestSource()
    chosen = policy.match(policy.init(0), candidates, 1)
    assert [(pair.source, pair.receiver) for pair in chosen] == [("b", "a")]
    assert _valid_in_a_configuration(module.BestSource)


def _valid_in_a_configuration(policy: type[Matchmaker]) -> bool:
    section = TypeAdapter(one_of({"best_source": policy})).validate_python("best_source")
    config = read_config(resolve_recipe("demo"))
    method = config.method.model_copy(update={"matchmaker": section, "route": "set", "max_pairs": 3})
    check_combinations(config.model_copy(update={"method": method}))
    return True


def test_the_python_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = small_config(make_models(tmp_path), "llama gpt2").model_dump(mode="json")
    (tmp_path / "own-data.yaml").write_text(yaml.safe_dump(config | {"rounds": 1}), encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text("README.md"), re.S)
    exec(example.replace('"demo"', '"own-data.yaml"').replace("rounds=2", "rounds=1"), {})
    printed = capsys.readouterr().out
    assert "Return" not in printed and "def " not in printed  # the watch is told nobody's text
    assert "taught" in printed and "the coordinator received: {" in printed and "report.html" in printed
