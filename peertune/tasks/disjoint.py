"""What is trained on is not tested on: no problem stands in two splits, wherever their examples come from."""

import hashlib
from collections.abc import Sequence
from itertools import combinations

from peertune.errors import ConfigError
from peertune.tasks.base import Example


def text_key(text: str) -> str:
    """The key of a problem that is known by its text: equal for texts that differ in white space only."""
    return hashlib.sha256(" ".join(text.split()).encode(errors="surrogatepass")).hexdigest()[:32]


def check_disjoint(who: str, **splits: Sequence[Example]) -> None:
    """Raise `ConfigError` if two splits share a problem: equal keys, or equal prompts but for white space.

    The error counts the problems, it never quotes them. `who`: whose splits these are.
    """
    known = {split: {name for example in examples for name in _names(example)} for split, examples in splits.items()}
    shared = [
        f"{count} of {second} in {first}"
        for first, second in combinations(splits, 2)
        if (count := sum(not known[first].isdisjoint(_names(example)) for example in splits[second]))
    ]
    if shared:
        raise ConfigError(
            f"{who}: expected different problems in {', '.join(splits)}, found {', '.join(shared)}; "
            "a test would measure memory. Remove them from one of the two."
        )


def _names(example: Example) -> set[str]:
    """All that an example is known by: a task's own key says nothing to another task."""
    return {example.key, text_key(example.prompt or example.completion)} - {""}
