"""How good are the pairing policies where the truth is known? Every policy on synthetic federations, with oracles.

Each policy has its own copy of the federation and the same stream of noise. Regret is counted in every round against
the exact matching on the policy's own state, without noise. Only what a policy chooses differs between the arms.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peertune.errors import StorageError
from peertune.matchmakers import HeteroGreedy, LinUCB, Matchmaker, Pairwise, RoundRobin, Uniform
from peertune.matchmakers.features import GROUPS, Group
from peertune.matchmakers.matching import best_disjoint
from peertune.matchmakers.oracle import Oracle
from peertune.matchmakers.synthetic import ALPHA, ENVIRONMENTS, Heterogeneity, candidates
from peertune.studies.summary import summarise, write

Watch = Callable[[int, int], None]  # told (done, all) after each piece of work

POLICIES: dict[str, Matchmaker] = {
    "uniform": Uniform(),
    "round_robin": RoundRobin(),
    "hetero_greedy": HeteroGreedy(),
    "linucb": LinUCB(),
    "pairwise": Pairwise(),
}
_PROFILES: tuple[Group, ...] = ("overlap", "complementarity", "skill", "family")
_NOT_HERE = ("trust", "lead", "protocol")  # always 0 in synthetic federations: leaving them out changes nothing
ABLATED: dict[str, Matchmaker] = {
    **{f"without {group}": Pairwise(without=(group,)) for group in GROUPS if group not in _NOT_HERE},
    "without all four of profiles": Pairwise(without=_PROFILES),
}
ORACLES = {"oracle_greedy": False, "oracle": True}  # exact?
ARMS = (*POLICIES, *ORACLES)
MOST_PAIRS = 10  # of a round, as in the official environment; half the agents if that is less


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run: every environment x number of agents x heterogeneity x policy x seed."""

    agents: tuple[int, ...] = (8, 16, 32, 64)
    heterogeneity: tuple[Heterogeneity, ...] = tuple(ALPHA)
    seeds: int = 20
    rounds: int = 50


QUICK = Plan(agents=(8, 16), heterogeneity=("high",), seeds=4, rounds=25)


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy in one federation."""

    environment: str
    agents: int
    heterogeneity: Heterogeneity
    arm: str
    seed: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Means over the run, free of noise. `reward`: of a place for a pair, an empty place counting 0. `regret`: of a
    round, against the best pairs on this state. `skill`, `worst`: of all agents and of the least able, at the end.
    `abstained`: share of places left empty.
    """

    reward: float
    regret: float
    skill: float
    worst: float
    abstained: float


def cells(plan: Plan, arms: Sequence[str] = ARMS) -> list[Cell]:
    """The largest federations first, so that no worker is left alone with one at the end."""
    return [
        Cell(environment, agents, heterogeneity, arm, seed, plan.rounds)
        for agents in sorted(plan.agents, reverse=True)
        for seed in range(plan.seeds)
        for environment in ENVIRONMENTS
        for heterogeneity in plan.heterogeneity
        for arm in arms
    ]


def play(cell: Cell) -> Outcome:
    """Run one policy in its own copy of the federation, from start to end."""
    environment = ENVIRONMENTS[cell.environment](cell.agents, cell.heterogeneity, cell.seed)
    place = {name: index for index, name in enumerate(environment.names)}
    places = min(cell.agents // 2, MOST_PAIRS)
    given = (POLICIES | ABLATED).get(cell.arm)
    state = given.init(cell.seed) if given else {}
    reward, regret, taken = 0.0, 0.0, 0
    for _ in range(cell.rounds):
        gains = environment.gains()
        policy = given or Oracle(gains, ORACLES[cell.arm])
        pairs = policy.match(state, candidates(environment), places)
        chosen = [(place[pair.source], place[pair.receiver]) for pair in pairs]
        achieved = sum(float(gains[pair]) for pair in chosen)
        best = sum(float(gains[pair]) for pair in best_disjoint(gains, places))
        reward, regret, taken = reward + achieved, regret + best - achieved, taken + len(chosen)
        state = policy.update_all(state, zip(pairs, environment.exchange(chosen), strict=True))
    skills, total = environment.skills(), cell.rounds * places
    return Outcome(reward / total, regret / cell.rounds, float(skills.mean()), float(skills.min()), 1 - taken / total)


def study(folder: Path, plan: Plan, watch: Watch) -> list[Path]:
    """Run the plan on all cores; the files written to `folder`. Figures do not depend on the number of cores."""
    make(folder)
    return write(folder, asdict(plan), summarise(play_all(plan, watch)))


def make(folder: Path) -> None:
    """The folder to write, before minutes of work. `StorageError` if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made ({error.strerror}); name another folder with --to") from error


def play_all(plan: Plan, watch: Watch, arms: Sequence[str] = ARMS) -> list[dict[str, Any]]:
    """One flat record a cell, in worker processes of one thread each."""
    every, records = cells(plan, arms), []
    with _workers() as pool:
        for cell, outcome in zip(every, pool.map(play, every, chunksize=len(arms)), strict=True):
            records.append({**asdict(cell), **asdict(outcome)})
            watch(len(records), len(every))
    return records


@contextmanager
def _workers() -> Iterator[ProcessPoolExecutor]:
    """One process a core. Threads of the algebra library would fight over the cores and change the last digits."""
    before = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(len(os.sched_getaffinity(0)), context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        os.environ.clear()
        os.environ.update(before)
