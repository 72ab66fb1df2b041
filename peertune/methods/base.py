"""What a method is: `init` and `round` over a federation. State is a value; a method holds hyper-parameters only."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from peertune.federation import Federation
from peertune.payloads import Picks

State = Mapping[str, np.ndarray]


def joined(**parts: State) -> State:
    """Several states as one: the name of its part stands before each key."""
    return {f"{name}/{key}": array for name, state in parts.items() for key, array in state.items()}


def part(state: State, name: str) -> State:
    return {key.removeprefix(f"{name}/"): array for key, array in state.items() if key.startswith(f"{name}/")}


@dataclass(frozen=True, slots=True)
class Budget:
    """Optimiser steps that an agent may spend in a round: alone, and on an exchange. Every method of a run has the
    same.
    """

    local_steps: int
    exchange_steps: int


@dataclass(frozen=True, slots=True)
class Public:
    """What is known to all of one public problem: its category, and whether there are tests that anybody may run."""

    category: str
    tested: bool


@dataclass(frozen=True, slots=True)
class Run:
    """What the run gives to every method: its length, seed, budget, and the public problems that all agents hold.

    `transfer`: to learn from each other's answers (the paper's X_u). `probe`: to measure with; answers are known.
    Problems are numbered, those of `transfer` first. `agents`, `server`: facts by name, as in the ledger's `run`
    event; no server where there is none.
    """

    rounds: int
    seed: int
    budget: Budget
    transfer: tuple[Public, ...]
    probe: tuple[Public, ...] = ()
    agents: tuple[Mapping[str, Any], ...] = ()
    server: Mapping[str, Any] | None = None

    def fact(self, key: str) -> dict[str, Any]:
        """One fact of every agent, by name; nothing of none."""
        return {facts["name"]: facts[key] for facts in self.agents} if key else {}


def drawn(run: Run, problems: int | None, t: int) -> Picks:
    """So many public problems to learn from in round `t`, None = all; the same for everybody."""
    count = len(run.transfer)
    order = np.random.default_rng([run.seed, t]).permutation(count)
    return Picks(tuple(sorted(order[: problems or count].tolist())))


@dataclass(frozen=True)
class Method(ABC):
    """A way to fine-tune together. A subclass is a frozen dataclass: its fields are its hyper-parameters."""

    run: Run
    needs_server: ClassVar[bool] = False  # whatever its hyper-parameters are

    @property
    def server_learns(self) -> bool:
        """Does the server end with a whole model, which is graded beside the agents?"""
        return False

    @abstractmethod
    def check(self, agents: Sequence[Mapping[str, Any]]) -> None:
        """Raise `MethodError` if these agents (facts by name, as in the ledger's `run` event) do not fit the method."""

    @abstractmethod
    def init(self, fed: Federation) -> State:
        """The state before round 1."""

    @abstractmethod
    def round(self, state: State, fed: Federation, t: int) -> State:
        """Round `t`, counted from 1; returns the next state."""

    def deploy(self, state: State, fed: Federation) -> None:  # noqa: B027  most methods have nothing to do
        """Leave every agent able to answer alone with what the federation has learnt: before each evaluation."""
