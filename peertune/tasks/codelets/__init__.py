"""Codelets: small generated programming problems in twelve categories, fit for models of 0.4M parameters.

A problem is a template with constants in its slots. The constants of each template are dealt to the splits: a
test problem asks for a known kind of function with constants never trained on. Answers are executed.
"""

import random
from collections.abc import Sequence
from itertools import accumulate, pairwise

from peertune.errors import ConfigError
from peertune.tasks.base import Example, Split, Task, with_public_tests
from peertune.tasks.codelets.problems import problem
from peertune.tasks.codelets.templates import Template, templates
from peertune.tasks.codelets.values import Constant
from peertune.tasks.programs import grade_programs
from peertune.tasks.sandbox import Sandbox

CATEGORIES = tuple(dict.fromkeys(template.category for template in templates()))
SHARES: dict[Split, int] = {"train": 50, "validation": 12, "transfer": 13, "probe": 10, "test": 15}  # percent

_TIMEOUT = 2.0  # seconds for one answer
_MOST_CHOICES = 1000  # of a template's choices of constants so many are dealt; the largest has 325 500


def truncate(text: str) -> str:
    """`text` up to the first line, after the very first, that starts at column 0: where the function ends."""
    lines = text.split("\n")
    end = next((i for i, line in enumerate(lines) if i > 0 and line[:1] not in ("", " ", "\t")), len(lines))
    return "\n".join(lines[:end]).rstrip() + "\n"


def deal(template: Template, seed: int) -> dict[Split, list[dict[str, Constant]]]:
    """The template's choices of constants, shuffled by `seed`: each in one split, and no split is empty."""
    rng = random.Random(f"{seed}|deal|{template.key}")
    order = rng.sample(range(template.size), min(template.size, _MOST_CHOICES))
    found = [constants for index in order if (constants := template.constants_at(index)) is not None]
    cuts = [(share * len(found) + 50) // 100 for share in accumulate(SHARES.values(), initial=0)]
    return {split: found[start:stop] for split, (start, stop) in zip(SHARES, pairwise(cuts), strict=True)}


class Codelets(Task):
    """`train`, `validation`, `transfer`, `probe` and `test` count examples over all twelve categories.

    Example i is of category i mod 12, so a smaller task is the beginning of a larger one with the same seed.
    Another seed deals the constants differently and draws other examples. Without a `sandbox`, `grade` raises
    `ConfigError`.
    """

    name = "codelets"
    categories = CATEGORIES

    def __init__(  # noqa: PLR0913
        self,
        seed: int,
        train: int,
        validation: int,
        transfer: int,
        probe: int,
        test: int,
        sandbox: Sandbox | None = None,
    ) -> None:
        self._seed = seed
        self._sizes: dict[str, int] = dict(
            train=train, validation=validation, transfer=transfer, probe=probe, test=test
        )
        for split, size in self._sizes.items():
            if size < 0:
                raise ConfigError(f"codelets needs 0 or more {split} examples, found {size}.")
        self._sandbox = sandbox
        self._made: dict[str, list[Example]] = {}

    def examples(self, split: Split) -> list[Example]:
        """All examples of `split`, made at the first call. Raises `ConfigError` if there is no such split."""
        if split not in self._sizes:
            raise ConfigError(f"codelets has the splits {', '.join(self._sizes)}, not {split!r}.")
        if split not in self._made:
            self._made[split] = self._make(split)
        return list(self._made[split])

    def clean(self, text: str) -> str:
        return truncate(text)

    def grade(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        """1 where the prompt, the truncated text and the tests run without an error, else 0."""
        return grade_programs(self._sandbox, examples, [truncate(text) for text in texts], _TIMEOUT)

    def _make(self, split: Split) -> list[Example]:
        dealt = {template.key: deal(template, self._seed)[split] for template in templates()}
        by_category = [[t for t in templates() if t.category == category] for category in CATEGORIES]
        found: list[Example] = []
        prompts: set[str] = set()
        for i in range(self._sizes[split]):
            turn, category = divmod(i, len(CATEGORIES))
            cycle, which = divmod(turn, len(by_category[category]))
            template = by_category[category][which]
            constants = dealt[template.key][cycle % len(dealt[template.key])]
            rng = random.Random(f"{self._seed}|{split}|{i}")
            found.append(problem(template, constants, rng, prompts))
            prompts.add(found[-1].prompt)
        return [with_public_tests(example) for example in found] if split in ("transfer", "probe") else found
