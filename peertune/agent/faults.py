"""Agents that are of no use to others, or harm them: for studies of what a federation bears."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from peertune.agent import Agent
from peertune.payloads import Claims, Picks, Texts
from peertune.tasks.base import Example


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples with each other's completions and tests: whoever learns from them learns nothing useful."""
    order = np.random.default_rng([seed, len(examples)]).permutation(len(examples))
    return [
        replace(example, completion=examples[other].completion, tests=examples[other].tests)
        for example, other in zip(examples, order, strict=True)
    ]


class Liar(Agent):
    """Claims to be certain of every draft and that all pass the tests; gives each problem the text of another one."""

    def draft(self, which: Picks, temperature: float, confident: int, tested: int) -> Claims:
        """As an honest agent drafts, but with made-up claims."""
        claims = super().draft(which, temperature, 0, 0)
        count = len(which.items)
        return Claims((0,) * count, (1,) * count, claims.settled)

    def share(self, which: Picks) -> Texts:
        """Fluent text for the wrong problem."""
        drafts = self._desk.drafts
        drafted = list(drafts)
        places = [(drafted.index(problem) + 1) % len(drafted) for problem in which.items if problem in drafts]
        return Texts(tuple(drafts[drafted[place]].text or "pass" for place in places))
