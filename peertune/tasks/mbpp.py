"""MBPP: 974 short Python problems with three asserts each (Austin et al. 2021, arXiv:2108.07732).

Splits by task id, as published: 11-510 test, 511-600 validation, 601-974 train; the ten few-shot problems,
1-10, are `transfer`. 704, train, repeats 248, test, and is left out. Published prompts show one assert (Fried
et al. 2022, arXiv:2204.05999) or all three. Ours has the same form, a docstring, but shows only the function's
name and the types of its arguments in the first assert: no value that is graded on, nothing of the reference.
"""

import ast
import builtins
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

from peertune.errors import ConfigError
from peertune.tasks.base import Example, Split, Task, with_public_tests
from peertune.tasks.programs import cut, grade_programs, read_rows
from peertune.tasks.sandbox import Sandbox

IDS: dict[str, Sequence[int]] = {
    "transfer": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": [*range(601, 704), *range(705, 975)],
}
STOPS = ('\n"""', "\nassert", "\nprint", "\nif", "\n```", "\n<|")  # where an answer ends; helpers may stay


@final
class MBPP(Task):
    """`path`: mbpp.jsonl, sanitized-mbpp.json or google-research-datasets/mbpp. `public`: so many problems of the train
    split are `transfer` instead of the ten few-shot ones. `timeout`: seconds a text.
    """

    name = "mbpp"
    categories = ("code",)

    def __init__(self, path: str | Path, sandbox: Sandbox | None, public: int = 0, timeout: float = 3.0) -> None:
        rows = read_rows(path, ("code",))
        self._sandbox, self._timeout = sandbox, timeout
        train = IDS["train"]
        if public >= len(train):
            raise ConfigError(f"MBPP has {len(train)} training problems, {public} cannot be public; lower `transfer`")
        self._ids = {**IDS, "train": train[public:], "transfer": train[:public] if public else IDS["transfer"]}
        try:
            self._examples = {int(row["task_id"]): _example(row) for row in rows}
        except (LookupError, TypeError, ValueError, SyntaxError) as error:
            raise ConfigError(f"{path}: not a row of MBPP ({type(error).__name__}: {error})") from error

    def examples(self, split: Split) -> list[Example]:
        if split not in self._ids:
            raise ConfigError(f"MBPP has no {split} split; it has {', '.join(self._ids)}")
        found = [self._examples[number] for number in self._ids[split] if number in self._examples]
        return [with_public_tests(example) for example in found] if split == "transfer" else found

    def clean(self, text: str) -> str:
        return cut(text, STOPS)

    def grade(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        """Pass (1) or fail (0) on all three asserts. A text counts up to the first of `STOPS`."""
        return grade_programs(self._sandbox, examples, [self.clean(text) for text in texts], self._timeout)


def _example(row: dict[str, Any]) -> Example:
    # The sanitized file names two fields differently.
    text = str(row["text"] if "text" in row else row["prompt"]).strip()
    setup = row["test_setup_code"] if "test_setup_code" in row else "\n".join(row["test_imports"])
    asserts = [str(test) for test in row["test_list"]]
    return Example(
        prompt=f'"""\n{text}\n{signature(asserts[0])}\n"""\n',
        completion=_lines(row["code"]) + "\n",
        category="code",
        tests=tuple(_lines("\n".join(filter(None, (setup, test)))) for test in asserts),
        key=f"MBPP/{row['task_id']}",
    )


def _lines(code: str) -> str:
    return code.replace("\r\n", "\n").rstrip()


def signature(test: str) -> str:
    """`add(int, list)` for `assert add(1, [2]) == [3]`: the first call, preferably not of a built-in."""
    nodes = [node for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Call)]
    calls = [(node.func.id, node) for node in nodes if isinstance(node.func, ast.Name)]
    if not calls:
        raise ValueError(f"no call in {test!r}")
    name, call = min(calls, key=lambda named: (hasattr(builtins, named[0]), named[1].col_offset))
    kinds = [_kind(value) for value in call.args] + [f"{k.arg}={_kind(k.value)}" for k in call.keywords]
    return f"{name}({', '.join(kinds)})"


def _kind(node: ast.expr) -> str:
    try:
        return type(ast.literal_eval(node)).__name__
    except ValueError:
        return "object"
