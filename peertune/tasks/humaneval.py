"""HumanEval: 164 Python functions to complete from their docstrings (Chen et al. 2021, arXiv:2107.03374).

There is a test split, nothing else. The program that runs is prompt + completion + test + `check(function)`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import final

from peertune.errors import ConfigError
from peertune.tasks.base import Example, Split, Task
from peertune.tasks.programs import cut, grade_programs, read_rows
from peertune.tasks.sandbox import Sandbox

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # Chen et al., section 3.1: where a completion ends


@final
class HumanEval(Task):
    """`path`: HumanEval.jsonl(.gz), or "openai/openai_humaneval". `timeout`: seconds for one answer."""

    name = "humaneval"
    categories = ("code",)

    def __init__(self, path: str | Path, sandbox: Sandbox | None, timeout: float = 3.0) -> None:
        rows = read_rows(path, ("task_id", "prompt", "canonical_solution", "test", "entry_point"))
        self._sandbox, self._timeout = sandbox, timeout
        self._examples = [
            Example(
                prompt=row["prompt"],
                completion=row["canonical_solution"],
                category="code",
                tests=(row["test"], f"check({row['entry_point']})\n"),
                key=row["task_id"],
            )
            for row in rows
        ]

    def examples(self, split: Split) -> list[Example]:
        if split != "test":
            raise ConfigError(
                f"HumanEval has 164 test problems and no {split} split; use other data for that, such as mbpp"
            )
        return list(self._examples)

    def clean(self, text: str) -> str:
        return cut(text, STOPS)

    def grade(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        """Pass (1) or fail (0). A text counts up to the first of `STOPS`."""
        return grade_programs(self._sandbox, examples, [self.clean(text) for text in texts], self._timeout)
