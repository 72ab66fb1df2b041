"""The texts of an agent: drafts that it wrote for public problems, and lessons that it keeps to learn from.

A gate decides which drafts others may have. Confidence: a model's own mean log-probability tells right from wrong
texts; where to cut is learnt on public problems whose answers are known.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peertune.errors import PayloadError
from peertune.knowledge import Knowledge
from peertune.payloads import Logits, Picks, Texts
from peertune.profiles import Lesson
from peertune.tasks.base import Example, Task

MOST_SURPRISE = (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class Draft:
    """One text. `surprise`: -mean log p of the text under its own author, thousandths of a nat a token.
    `verified`: it passed the public tests; None if there are none, or if nobody asked.
    """

    text: str
    surprise: int
    verified: bool | None

    def offered(self, threshold: float) -> bool:
        """May others have it? Not if it is empty, fails the tests, or is more surprising than `threshold`."""
        return bool(self.text.strip()) and self.verified is not False and self.surprise <= threshold


def add_lesson(lessons: dict[int, Lesson], problem: int, lesson: Lesson) -> None:
    """Keep the best text seen: a verified one is never replaced by one that is not; of equals the newer one stays."""
    kept = lessons.get(problem)
    if kept is None or lesson.verified or not kept.verified:
        lessons[problem] = lesson


def fitting(logits: Logits, which: Picks, width: int) -> Knowledge:
    """What somebody knows of these problems. Raises `PayloadError` if it is of others, or of another vocabulary."""
    known = logits.knowledge()
    if (len(known.lengths), known.width) != (len(which.items), width):
        raise PayloadError(
            f"expected logits of {len(which.items)} problems and width {width}, found {len(known.lengths)} and "
            f"{known.width}"
        )
    return known


def surprise(nats: float, tokens: float) -> int:
    return min(MOST_SURPRISE, round(1000 * nats / tokens))


def confidence_threshold(surprises: np.ndarray, right: np.ndarray) -> float:
    """The surprise up to which texts are best told apart into right and wrong (Youden's J: sensitivity plus
    specificity). -1, which no text passes, if none was right; infinity if none was wrong.
    """
    right = right.astype(bool)
    if not right.any():
        return -1.0
    if right.all():
        return float("inf")
    cuts = np.unique(surprises)
    passed = surprises[None, :] <= cuts[:, None]
    youden = passed[:, right].mean(1) - passed[:, ~right].mean(1)
    return float(cuts[int(np.argmax(youden))])


class PublicProblems:
    """The problems that everybody holds, numbered: transfer first, which agents learn from, then the probe. Final."""

    def __init__(self, task: Task, transfer: Sequence[Example], probe: Sequence[Example]) -> None:
        self._task, self._all, self._transfer = task, [*transfer, *probe], len(transfer)

    def of(self, which: Picks, texts: Texts | None = None) -> list[Example]:
        """The problems of these numbers. Raises `PayloadError` if there is no such, or not one text for each."""
        if texts and len(texts.items) != len(which.items):
            raise PayloadError(f"{len(which.items)} problems were answered with {len(texts.items)} texts")
        if max(which.items, default=-1) >= len(self._all):
            raise PayloadError(f"there are {len(self._all)} public problems, and number {max(which.items)} was asked")
        return [self._all[problem] for problem in which.items]

    def numbered(self, problems: Iterable[int]) -> dict[int, Example]:
        return {problem: self._all[problem] for problem in problems}

    def teaches(self, problem: int) -> bool:
        """Is it there to learn from, and not to measure with?"""
        return problem < self._transfer

    def verify(self, problems: Sequence[Example], texts: Sequence[str], tested: bool) -> list[bool | None]:
        """Do the texts pass the public tests? None where there are none, or none are to be run."""
        chosen = [at for at, problem in enumerate(problems) if tested and problem.public]
        found: list[bool | None] = [None] * len(problems)
        passed = self._task.check([problems[at] for at in chosen], [texts[at] for at in chosen])
        for at, one in zip(chosen, passed, strict=True):
            found[at] = one
        return found

    def accuracy(self, lessons: Mapping[int, Lesson]) -> float | None:
        """Share of right lessons, by the tests or answers that nobody used to choose them; None if there are none."""
        graded = {at: self._all[at] for at in lessons if self._all[at].tests or self._all[at].completion}
        if not graded:
            return None
        return float(np.mean(self._task.grade(list(graded.values()), [lessons[at].text for at in graded])))
