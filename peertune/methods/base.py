"""What a method is: `init` and `round` over a federation. State is a value; a method holds hyper-parameters only."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peertune.federation import Federation
from peertune.payloads import Texts

State = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Budget:
    """Optimiser steps that an agent may spend in a round: alone, and on an exchange. Every method of a run has the
    same.
    """

    local_steps: int
    exchange_steps: int


@dataclass(frozen=True, slots=True)
class Run:
    """What the run gives to every method: its length, seed, budget and the public prompts (the paper's X_u)."""

    rounds: int
    seed: int
    budget: Budget
    transfer: tuple[str, ...]

    def prompts(self) -> Texts:
        """The public prompts as a payload."""
        return Texts(self.transfer)


class Method(ABC):
    """A way to fine-tune together. A subclass is a frozen dataclass: its fields are its hyper-parameters."""

    run: Run

    @abstractmethod
    def check(self, agents: Sequence[Mapping[str, Any]]) -> None:
        """Raise `MethodError` if these agents (facts by name, as in the ledger's `run` event) do not fit the method."""

    @abstractmethod
    def init(self, fed: Federation) -> State:
        """The state before round 1."""

    @abstractmethod
    def round(self, state: State, fed: Federation, t: int) -> State:
        """Round `t`, counted from 1; returns the next state."""
