"""Questions of several categories with one right answer each, from a user's own file, dealt to the agents.

Nothing is run: an answer is right if it equals the completion, white space aside. `scripts/make_answers.py` makes
such files.
"""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np

from peertune.errors import ConfigError
from peertune.tasks.base import Example, Split, Task
from peertune.tasks.records import exact_match, read_examples

ORDER: tuple[Split, ...] = ("test", "probe", "transfer", "validation", "train")


@final
class Answers(Task):
    """`path`: records with prompt, completion and category, as in `read_examples`. `sizes`: examples of each split.

    A prompt that stands there twice, white space aside, counts once: the first. Each category's prompts are shuffled
    by `seed` and cut into the splits, the test first: it depends on the seed and its own size only. Example i is of
    category i mod the number of categories. Raises `ConfigError` for a record without a prompt or a category, and
    if a category has too few prompts.
    """

    name = "answers"

    def __init__(self, path: str, seed: int, sizes: Mapping[str, int]) -> None:
        pools = _by_category(path)
        self.categories = tuple(pools)
        self._splits = _deal(path, [_shuffled(pool, seed) for pool in pools.values()], sizes)

    def examples(self, split: Split) -> list[Example]:
        return list(self._splits[split])

    def clean(self, text: str) -> str:
        """The text but for white space at its end; that at its start stays, so that it is taught as it was written."""
        return text.rstrip()

    def grade(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        return exact_match(examples, texts)


def _by_category(path: str) -> dict[str, list[Example]]:
    """Category -> its examples, of which no two have the same key; names sorted."""
    rows = read_examples(path)
    for number, row in enumerate(rows, start=1):
        missing = [field for field in ("prompt", "category") if not getattr(row, field).strip()]
        if missing:
            raise ConfigError(
                f"{path}: row {number}: expected 'prompt', 'completion' and 'category', found none or empty: "
                f"{', '.join(map(repr, missing))}."
            )
    unique: dict[str, Example] = {}
    for row in rows:
        unique.setdefault(row.key, row)
    names = sorted({row.category for row in unique.values()})
    return {name: [row for row in unique.values() if row.category == name] for name in names}


def _shuffled(pool: Sequence[Example], seed: int) -> list[Example]:
    """Drawn for each category by its name: another category more or less changes nothing here."""
    random = np.random.default_rng([seed, *pool[0].category.encode()])
    return [pool[index] for index in random.permutation(len(pool))]


def _deal(path: str, pools: Sequence[Sequence[Example]], sizes: Mapping[str, int]) -> dict[Split, list[Example]]:
    for place, pool in enumerate(pools):
        needed = sum(_share(sizes[split], place, len(pools)) for split in ORDER)
        if len(pool) < needed:
            raise ConfigError(
                f"{path}: {', '.join(reversed(ORDER))} of {', '.join(str(sizes[split]) for split in reversed(ORDER))} "
                f"examples need {needed} different prompts of each of {len(pools)} categories, found one with "
                f"{len(pool)}; ask for fewer, or add prompts."
            )
    splits: dict[Split, list[Example]] = {}
    starts = [0] * len(pools)
    for split in ORDER:
        turns = [divmod(index, len(pools)) for index in range(sizes[split])]
        splits[split] = [pools[place][starts[place] + turn] for turn, place in turns]
        starts = [start + _share(sizes[split], place, len(pools)) for place, start in enumerate(starts)]
    return splits


def _share(size: int, place: int, categories: int) -> int:
    """How many of the numbers below `size` are `place` modulo `categories`."""
    return len(range(place, size, categories))
