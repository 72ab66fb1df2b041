"""No problem stands in two splits: whatever its key, its white space and the file that it comes from."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import make_models, run, small_config

from peertune.errors import ConfigError
from peertune.tasks.base import Example
from peertune.tasks.codelets import SHARES, Codelets
from peertune.tasks.disjoint import check_disjoint, text_key


def example(prompt: str, key: str = "", completion: str = "secret answer") -> Example:
    return Example(prompt, completion, key=key)


def test_different_problems_pass() -> None:
    check_disjoint("a0", train=[example("a", "1"), example("a", "1")], validation=[example("b", "2")], test=[])
    check_disjoint("a0", train=[example("", completion="x")], test=[example("", completion="y")])


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (example("secret", "1"), example("other", "1")),
        (example("secret", "1"), example("secret", "2")),
        (example(" secret\n text", "1"), example("secret text ", "2")),
        (example("secret text"), example("", completion="secret  text")),  # a plain text is its own prompt
        (example("<user> secret text", text_key("secret text")), example("secret text", "Task/7")),  # a chat
    ],
)
def test_the_same_problem_is_found(train: Example, test: Example) -> None:
    with pytest.raises(ConfigError) as caught:
        check_disjoint("agent a0", train=[train, train], validation=[example("b")], test=[example("c"), test])
    assert str(caught.value) == (
        "agent a0: expected different problems in train, validation, test, found 1 of test in train; "
        "a test would measure memory. Remove them from one of the two."
    )


def test_every_pair_of_splits_is_named_and_counted() -> None:
    some = [example(f"secret {number}") for number in range(4)]
    with pytest.raises(
        ConfigError,
        match="found 4 of validation in train, 1 of transfer in train, 2 of test in train, 1 of transfer in validation",
    ):
        check_disjoint("x", train=some, validation=some, transfer=[some[0], example("p")], test=some[:1] * 2)


@given(st.text(), st.text(" \n\t\u2003", min_size=1))
def test_white_space_makes_no_other_problem(text: str, space: str) -> None:
    assert text_key(text) == text_key(space + text + space) and len(text_key(text)) == 32
    assert text_key("a" + space + "b") == text_key("a b") != text_key("ab")


# Runs are refused before anything is trained


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("models"))


def write(folder: Path, name: str, prompts: list[str]) -> str:
    rows = [{"prompt": prompt, "completion": f" secret {number}"} for number, prompt in enumerate(prompts)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / f"{name}.jsonl")


def human_eval(folder: Path) -> dict[str, Any]:
    rows = [
        {"task_id": f"HumanEval/{n}", "prompt": f"def f{n}():\n    ", "canonical_solution": "return 1", "test": "",
         "entry_point": f"f{n}"} for n in range(4)
    ]  # fmt: skip
    (folder / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"type": "humaneval", "path": str(folder / "h.jsonl"), "transfer": write(folder, "t", ["def g():", "p"])}


def records(folder: Path) -> dict[str, Any]:
    names = {"test": ["secret 0", "secret  1\n"], "transfer": ["p", "q"]}
    return {"type": "records", **{name: write(folder, name, prompts) for name, prompts in names.items()}}


@pytest.mark.parametrize(
    ("task", "prompts", "found"),
    [
        (records, ["secret 0", "secret 1"] * 6 + ["a", "b"], "2 of test in "),
        (records, ["p", *"abcdefghijk"], "1 of transfer in train"),
        (human_eval, [*"abcdefghijk", "def f2(): "], "1 of test in train"),
        (human_eval, [*"abcdefghijk", "def  g():"], "1 of transfer in "),
    ],
)
def test_own_data_must_not_hold_public_problems(
    models: dict[str, str], tmp_path: Path, task: Any, prompts: list[str], found: str
) -> None:
    good = {"model": models["llama"], "name": "clinic", "data": {"path": write(tmp_path, "good", [*"uvwxyz"])}}
    bad = {"model": models["gpt2"], "name": "lab", "data": {"path": write(tmp_path, "bad", prompts)}}
    config = small_config({}, "", agents=[good, bad], task=task(tmp_path), sandbox="unsafe")
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "run", config)
    said = str(caught.value)
    assert said.startswith(f"agent lab ({tmp_path}/bad.jsonl): expected different problems in train, validation")
    assert found in said and "secret" not in said


def test_transfer_prompts_must_not_be_test_problems(models: dict[str, str], tmp_path: Path) -> None:
    task = human_eval(tmp_path) | {"transfer": write(tmp_path, "t", ["def f0():", "def f1():"])}
    agent = {"data": {"path": write(tmp_path, "good", [*"uvwxyz"])}}
    agents = [{"model": model, **agent} for model in models.values()]
    with pytest.raises(ConfigError, match="found 2 of test in transfer"):
        run(tmp_path / "run", small_config({}, "", agents=agents, task=task, sandbox="unsafe"))


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_codelets_are_disjoint_by_construction(seed: int) -> None:
    task = Codelets(seed, 60, 24, 24, 12, 24)
    check_disjoint("codelets", **{split: task.examples(split) for split in SHARES})
