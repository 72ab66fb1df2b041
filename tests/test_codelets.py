"""Codelets: sizes, splits, determinism; tests that accept right answers and nothing near; the corpus."""

import ast
import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peertune.errors import ConfigError
from peertune.tasks.base import Example, Split
from peertune.tasks.codelets import CATEGORIES, Codelets, deal, truncate
from peertune.tasks.codelets.corpus import documents
from peertune.tasks.codelets.problems import TESTS, problem, wrong_expressions
from peertune.tasks.codelets.templates import Template, templates
from peertune.tasks.codelets.values import SLOTS
from peertune.tasks.sandbox import Sandbox

SPLITS: tuple[Split, ...] = get_args(Split)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(allow_unsafe=True) as sandbox:  # runs answers that this test wrote
        yield sandbox


def small(seed: int, sandbox: Sandbox | None = None) -> Codelets:
    return Codelets(seed, train=120, validation=60, transfer=60, probe=24, test=60, sandbox=sandbox)


def answer(example: Example, expression: str) -> str:
    """A completion that returns `expression`, given over `a` and `b`, with the example's argument names."""
    names = example.prompt[example.prompt.index("(") + 1 : example.prompt.index(")")].split(", ")
    renamed = [f"{letter} = {name}" for letter, name in zip("ab", names, strict=False)]
    return "".join(f"\n    {line}" for line in (*renamed, f"return {expression}"))


def one_of_each(seed: int) -> list[tuple[Template, dict, Example]]:
    """For each template a problem of the test split."""
    rng = random.Random(seed)
    drawn = [(template, rng.choice(deal(template, seed)["test"])) for template in templates()]
    return [(template, constants, problem(template, constants, rng)) for template, constants in drawn]


def test_there_are_five_templates_in_each_of_twelve_categories():
    assert len(CATEGORIES) == 12
    assert Counter(t.category for t in templates()) == dict.fromkeys(CATEGORIES, 5)
    assert len({phrasing for t in templates() for phrasing in t.phrasings}) == 120
    assert len({t.key for t in templates()}) == 60


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 30), min_size=5, max_size=5))
def test_sizes_are_exact_and_spread_over_the_categories(seed: int, sizes: list[int]):
    train, validation, transfer, probe, test = sizes
    task = Codelets(seed, train, validation, transfer, probe, test)
    for split, size in zip(("train", "validation", "transfer", "probe", "test"), sizes, strict=True):
        examples = task.examples(split)
        counts = Counter(example.category for example in examples)
        assert len(examples) == size
        assert max(counts.values(), default=0) - min((counts[c] for c in CATEGORIES), default=0) <= 1


def test_every_choice_of_constants_stands_in_exactly_one_split():
    for seed in range(20):
        for template in templates():
            dealt = deal(template, seed)
            found = [tuple(constants.items()) for split in SPLITS for constants in dealt[split]]
            assert all(dealt[split] for split in SPLITS), template.key
            assert len(found) == len(set(found)), template.key


def test_no_key_stands_in_two_splits():
    for seed in range(3):
        keys = [{example.key for example in small(seed).examples(split)} for split in SPLITS]
        assert sum(map(len, keys)) == len(set.union(*keys))


def test_prompts_are_distinct_and_parse():
    task = small(0)
    for split in SPLITS:
        examples = task.examples(split)
        assert len({example.prompt for example in examples}) == len(examples)
        for example in examples:
            function = ast.parse(example.prompt + example.completion).body[0]
            assert isinstance(function, ast.FunctionDef) and ast.get_docstring(function)
            assert example.prompt.endswith('"""') and example.completion.startswith("\n    return ")
            assert len(example.public) == (2 if split in ("transfer", "probe") else 0)
            tests = (*example.public, *example.tests)
            assert len(tests) == TESTS and all("\n" not in line for line in tests)


def test_a_smaller_task_is_the_beginning_of_a_larger_one():
    assert Codelets(3, 0, 0, 0, 0, 100).examples("test")[:17] == Codelets(3, 0, 0, 0, 0, 17).examples("test")


def test_another_seed_holds_out_other_constants():
    first, second = ({e.key for e in small(seed).examples("test")} for seed in (0, 1))
    assert len(first & second) < 0.4 * len(first)
    assert small(0).examples("test") != small(1).examples("test")


def test_another_process_makes_the_same_examples_and_needs_no_torch():
    program = (
        "import hashlib, sys; from peertune.tasks.codelets import Codelets; "
        "task = Codelets(5, 24, 0, 0, 0, 60); "
        "print(hashlib.sha256(repr((task.examples('train'), task.examples('test'))).encode()).hexdigest()); "
        "assert 'torch' not in sys.modules"
    )
    task = Codelets(5, 24, 0, 0, 0, 60)
    expected = hashlib.sha256(repr((task.examples("train"), task.examples("test"))).encode()).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": "17"}
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert printed.stdout.strip() == expected, printed.stderr


def test_right_answers_pass(sandbox: Sandbox):
    task = small(0, sandbox)
    for split in SPLITS:
        examples = task.examples(split)
        assert task.grade(examples, [example.completion for example in examples]) == [1.0] * len(examples)


def test_answers_with_one_wrong_operator_or_constant_fail(sandbox: Sandbox):
    task = small(0, sandbox)
    cases = [
        (example, wrong, template.key)
        for template, constants, example in one_of_each(11)
        for wrong in wrong_expressions(template, constants)
    ]
    assert {key for _, _, key in cases} == {template.key for template in templates()}
    grades = task.grade([example for example, _, _ in cases], [answer(e, wrong) for e, wrong, _ in cases])
    assert [case[1:] for case, grade in zip(cases, grades, strict=True) if grade] == []


def test_answers_to_other_problems_fail(sandbox: Sandbox):
    """Other constants of the same template, and every other template with the same arguments."""
    task, rng = small(0, sandbox), random.Random(2)
    cases: list[tuple[Example, str]] = []
    for template, constants, example in one_of_each(12):
        for slot, value in constants.items():
            others = [other for other in SLOTS[slot] if other not in (value, *constants.values())]
            changed = constants | {slot: rng.choice(others)}
            cases.append((example, template.expression.format(a="a", b="b", **changed)))
        for other in templates():
            if other is not template and other.kinds == template.kinds and set(other.slots) <= set(constants):
                cases.append((example, other.expression.format(a="a", b="b", **constants)))
    grades = task.grade([example for example, _ in cases], [answer(*case) for case in cases])
    assert len(cases) > 250
    assert [(e.key, wrong) for (e, wrong), grade in zip(cases, grades, strict=True) if grade] == []


@pytest.mark.parametrize("text", ["", "\n    pass", "\n    return None", "\n    return 0", "\n    return (", "x"])
def test_answers_that_say_nothing_fail(sandbox: Sandbox, text: str):
    examples = small(1).examples("test")
    assert sum(small(1, sandbox).grade(examples, [text] * len(examples))) == 0


def test_what_follows_the_function_is_not_graded(sandbox: Sandbox):
    example = small(0).examples("test")[0]
    text = example.completion + "\ndef another(:\n    nonsense"
    assert small(0, sandbox).grade([example], [text]) == [1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n    return 1\n", "\n    return 1\n"),
        ("\n    return 1\ndef f():\n    pass", "\n    return 1\n"),
        (
            "\n    if x:\n\n        return 1\n\treturn 2\nx = 3",
            "\n    if x:\n\n        return 1\n\treturn 2\n",
        ),
        (" # comment\n    return 1\n\n\nprint(1)", " # comment\n    return 1\n"),
        ("x = 1", "x = 1\n"),
        ("", "\n"),
    ],
)
def test_truncate(text: str, expected: str):
    assert truncate(text) == expected
    assert truncate(expected) == expected


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="0 or more test examples, found -1"):
        Codelets(0, 0, 0, 0, 0, -1)
    with pytest.raises(ConfigError, match="only with a sandbox"):
        small(0).grade([], [])
    with pytest.raises(ConfigError, match="not 'dev'"):
        small(0).examples("dev")  # pyright: ignore[reportArgumentType]


def as_pattern(phrasing: str) -> str:
    """A regular expression for every docstring that a benchmark's phrasing can give."""
    return re.sub(r"\\\{\w\\\}", r"(\\w+|\\W)", re.escape(phrasing))


def test_the_corpus_holds_no_docstring_of_the_benchmark():
    patterns = "|".join(as_pattern(phrasing) for t in templates() for phrasing in t.phrasings)
    known = re.compile(f'"""({patterns})"""')
    assert all(known.search(example.prompt) for example in small(0).examples("test"))
    for seed in (1, 2, 3, 4):  # all that scripts/pretrain.py showed to the four tokenizers and models
        sources = documents(seed, 6000) + documents(1000 + seed, 80_000)
        assert [source for source in sources if known.search(source)] == []


def test_the_corpus_parses_and_is_the_one_the_models_learned_from():
    sources = documents(1001, 2000)
    for source in sources:
        assert isinstance(ast.parse(source).body[0], ast.FunctionDef)
    digest = hashlib.sha256("".join(sources).encode()).hexdigest()
    assert digest == "6836b43cd3e8fc669c0043dcc9181460130c9e4995dc01c74ec0025a0fa5f0f6"
