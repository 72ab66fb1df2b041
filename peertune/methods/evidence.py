"""What the coordinator knows of agents' conduct from exchanges: who taught well, who did not. Scalars only."""

from collections.abc import Iterable, Sequence, Set

import numpy as np

from peertune.federation import Federation
from peertune.methods.base import State
from peertune.methods.texts import Order, Pulled

_MEMORY = 0.9  # what the evidence of one round weighs in the next
_GOOD, _BAD = 0, 1


class Evidence:
    """Counts for each agent as a source: texts accepted and lessons kept, against texts refused, lessons rolled back
    and calls that failed. `state` is the array to keep; the given one is not changed.
    """

    def __init__(self, state: State, fed: Federation) -> None:
        self._rows = {agent.name: row for row, agent in enumerate(fed.everyone)}
        self._counts = _MEMORY * state["counts"]

    @staticmethod
    def init(agents: int) -> State:
        return {"counts": np.zeros((agents, 2))}

    @property
    def state(self) -> State:
        return {"counts": self._counts}

    def trust(self) -> dict[str, float]:
        """The mean of a Beta posterior with a flat prior: 0.5 for an agent that nothing is known of."""
        good, bad = self._counts[:, _GOOD] + 1, self._counts[:, _BAD] + 1
        return {name: float(good[row] / (good[row] + bad[row])) for name, row in self._rows.items()}

    def note(self, orders: Iterable[Order], pulled: Pulled, failed: Set[str]) -> None:
        """Each order with texts counts once: by the share that was of use; by nothing but bad if its source failed."""
        for order in orders:
            row, passed = self._rows[order.source], pulled.get(order)
            if passed is None:
                self._counts[row, _BAD] += order.source in failed
            elif passed:
                self._counts[row] += (useful_share(passed), 1 - useful_share(passed))

    def regret(self, source: str, share: float, age: int) -> None:
        """A lesson noted `age` rounds ago, with this share of useful texts, was rolled back: it counts half."""
        self._counts[self._rows[source]] += _MEMORY**age * np.array([-share / 2, share / 2])


def useful_share(passed: Sequence[int]) -> float:
    """Of the texts of one order; 0 if nothing was ordered."""
    return sum(passed) / len(passed) if passed else 0.0
