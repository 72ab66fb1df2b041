"""A task is data, a prompt and a grade; it knows no model and no method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Split = Literal["train", "validation", "transfer", "probe", "test"]
PUBLIC = 2  # tests of a public problem that everybody may run
CODE_TASKS = ("codelets", "humaneval", "mbpp")  # graded by running the answers


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its reference completion.

    `prompt` ends where the completion starts. `tests` are programs that a right answer passes (code tasks only);
    `public` are those that everybody may run before a text is used, and no grade counts them.
    Two examples with the same `key` are the same problem; no problem stands in two splits.
    `chat`: prompt and completion are a rendered chat template: names of control tokens are control tokens.
    """

    prompt: str
    completion: str
    category: str = ""
    tests: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    key: str = ""
    chat: bool = False


class Task(ABC):
    """Examples in five splits, and a grade.

    `train` and `validation` are private and dealt to agents; `transfer` (the prompts that agents answer for each
    other), `probe` and `test` are the same for everyone. `test` is only ever used to report. `labels`: the completions
    that there are, if models are to choose one of them as a class; empty where they write text.
    """

    name: str
    categories: tuple[str, ...]
    labels: tuple[str, ...] = ()

    @abstractmethod
    def examples(self, split: Split) -> list[Example]:
        """All examples of `split`, always in the same order. Raises `ConfigError` if the task has no such split."""

    @abstractmethod
    def clean(self, text: str) -> str:
        """The part of a completion that counts: what is graded, and what is taught to others."""

    @abstractmethod
    def grade(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        """Grade `texts[i]`, a completion of `examples[i].prompt`: one number from 0 (wrong) to 1 (right) each."""

    def check(self, examples: Sequence[Example], texts: Sequence[str]) -> list[bool]:
        """Does `texts[i]` pass the public tests of `examples[i]`, which must have some?"""
        return [grade == 1.0 for grade in self.grade([replace(each, tests=each.public) for each in examples], texts)]


def with_public_tests(example: Example) -> Example:
    """The example with its first two tests made public, so that one of at least three is left to grade with."""
    if len(example.tests) <= PUBLIC:
        return example
    return replace(example, public=example.tests[:PUBLIC], tests=example.tests[PUBLIC:])
