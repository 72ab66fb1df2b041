"""Which of many intents a message has, as in BANKING77 (Casanueva et al. 2020, arXiv:2003.04807)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import final

import numpy as np

from peertune.errors import ConfigError
from peertune.tasks.base import Example, Split, Task
from peertune.tasks.records import KINDS, exact_match, read_examples

FILES = (*KINDS, ".csv")
FROM_TRAIN: tuple[Split, ...] = ("probe", "transfer", "validation", "train")


@final
class Intent(Task):
    """A message is the prompt, the name of its intent the completion. The labels, sorted, are the categories.

    `path` and `test_path`: files of `FILES`, folders or hub ids with the fields `text` and `category`, or `prompt` and
    `completion`. `sizes`: messages of each split; None = all that there are, for `train` all that is left. All but the
    test are drawn from `path` by `seed`, `train` last, so that the others do not depend on its size. A message that
    stands there twice, white space aside, counts once: the first; those of `test_path` are left out of `path`.
    `as_text`: models write the name after a prompt that asks for it; else they choose it as a class.
    Raises `ConfigError`: a row without message or label, too few messages or labels, a test label that nobody learns.
    """

    name = "intent"

    def __init__(
        self, path: str, test_path: str, seed: int, sizes: Mapping[str, int | None], as_text: bool = False
    ) -> None:
        train, test = _by_key(path), _by_key(test_path)
        self._known = tuple(sorted({row.completion for row in train.values()}))
        self.categories, self._lead = self._known, " " if as_text else ""
        self.labels = () if as_text else self._known
        self._check_labels(path, test_path, test.values())
        learnt = [row for key, row in train.items() if key not in test]
        drawn = {"test": _draw(test_path, list(test.values()), seed, {"test": sizes["test"]})["test"]}
        drawn |= _draw(path, learnt, seed, {split: sizes[split] for split in FROM_TRAIN})
        self._splits = {split: [_asked(row) for row in rows] if as_text else rows for split, rows in drawn.items()}

    def examples(self, split: Split) -> list[Example]:
        return list(self._splits[split])

    def clean(self, text: str) -> str:
        """The name of the intent as it is taught; empty if there is no such intent."""
        return self._lead + text.strip() if text.strip() in self._known else ""

    def grade(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        return exact_match(examples, texts)

    def _check_labels(self, path: str, test_path: str, test: Collection[Example]) -> None:
        if len(self._known) < 2:
            raise ConfigError(f"{path}: expected messages of at least 2 intents, found {len(self._known)}; add others.")
        if unknown := {row.completion for row in test} - set(self._known):
            raise ConfigError(
                f"{test_path}: expected the {len(self._known)} intents of {path}, found {len(unknown)} that are not "
                "there; nobody could learn them. Remove those messages, or add some to train on."
            )


def _by_key(path: str) -> dict[str, Example]:
    """Key -> a message and its label; of each message the first."""
    found: dict[str, Example] = {}
    for number, row in enumerate(read_examples(path, kinds=FILES), start=1):
        message, label = (row.prompt, row.completion) if row.prompt else (row.completion, row.category)
        if not message.strip() or not label.strip():
            raise ConfigError(
                f"{path}: row {number}: expected 'text' and 'category', or 'prompt' and 'completion', found one empty "
                "or none."
            )
        found.setdefault(row.key, Example(message.strip(), label.strip(), label.strip(), key=row.key))
    return found


def _asked(row: Example) -> Example:
    """For models that write the answer."""
    return replace(row, prompt=f"query: {row.prompt}\nintent:", completion=f" {row.completion}")


def _draw(path: str, pool: list[Example], seed: int, sizes: Mapping[Split, int | None]) -> dict[Split, list[Example]]:
    """The splits one after the other from the shuffled pool; a size of None takes what is left."""
    needed = sum(1 if size is None else size for size in sizes.values())
    if needed > len(pool):
        wanted = ", ".join(f"{split} {size or 'at least 1'}" for split, size in sizes.items())
        raise ConfigError(
            f"{path}: {wanted} need {needed} different messages, found {len(pool)} that are not in the test; "
            "ask for fewer."
        )
    shuffled = [pool[index] for index in np.random.default_rng([seed, len(pool)]).permutation(len(pool))]
    splits: dict[Split, list[Example]] = {}
    start = 0
    for split, size in sizes.items():
        stop = len(pool) if size is None else start + size
        splits[split], start = shuffled[start:stop], stop
    return splits
