"""What one round of pairing costs as a federation grows, and what it loses: `python benchmarks/matchmaking.py`.

Table 1, CPU seconds of one core for one round of `pairwise` after three others, half as many pairs as agents:
prefilter, posterior and scores, matching, update. Beside it the plain form, every pair scored and the exact matching,
where that is feasible, in the same run.
Table 2, what the approximations lose: the greatest true gain that a matchmaker could reach among the candidates, as a
share of that among all pairs, beside as many random candidates and a k-d tree over all agents; and what taking the best
pair first reaches of the exact matching among the same candidates. Gains: `SkillEnvironment`.

The floor, an agent and round, with 16 candidates: 12 kFLOP to compare it with the 255 others of its block, 3 kFLOP for
32 features and two scores of each candidate; 16 x (64 + 32) x 8 B = 12 kB written and read about three times, and 1 kB
of state. For 100 000 agents 1.5 GFLOP (0.08 s at 20 GFLOP/s) and 4 GB (0.4 s at 10 GB/s): memory is the bound.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
from scipy.spatial import KDTree

from peertune.matchmakers import Pairwise, matching, pairwise
from peertune.matchmakers import candidates as prefilter
from peertune.matchmakers.base import Candidates, State
from peertune.matchmakers.synthetic import SkillEnvironment
from peertune.payloads import Profile
from peertune.profiles import HISTOGRAM

SIZES = (64, 256, 1000, 4000, 10_000, 40_000, 100_000)
PLAIN = 1000  # agents up to which every pair is scored and matched exactly
WARM = 3  # rounds before the one that is measured
PARTS = {"posterior": (pairwise, "posterior"), "score": (pairwise, "_scores"), "match": (pairwise, "disjoint_edges")}
Costs = dict[str, float]


def random_profiles(agents: int) -> dict[str, Profile]:
    random = np.random.default_rng(agents)
    values = random.uniform(0, 1, (agents, 32))
    values[:, HISTOGRAM] = random.dirichlet([0.3] * 12, agents)
    return {f"agent-{index}": Profile(tuple(row)) for index, row in enumerate(values.tolist())}


def every_pair(profiles: dict[str, Profile]) -> Candidates:
    """The plain form's candidates."""
    some = prefilter.candidate_pairs(profiles)
    sources, receivers = np.nonzero(~np.eye(len(profiles), dtype=bool))
    return Candidates(
        some.names,
        some.profiles,
        some.trust,
        sources,
        receivers,
        np.zeros(len(sources), dtype=np.int64),
        np.zeros(len(sources)),
    )


@contextmanager
def timed(costs: Costs) -> Iterator[None]:
    """Note the CPU seconds of each part of a match while it runs."""
    originals = {part: getattr(module, name) for part, (module, name) in PARTS.items()}

    def measured(part: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.process_time()
            result = originals[part](*arguments)
            costs[part] = time.process_time() - start
            return result

        return call

    for part, (module, name) in PARTS.items():
        setattr(module, name, measured(part))
    try:
        yield
    finally:
        for part, (module, name) in PARTS.items():
            setattr(module, name, originals[part])


def one_round(policy: Pairwise, state: State, profiles: dict[str, Profile], plain: bool) -> tuple[State, Costs]:
    """The state after a round, and what its parts cost."""
    costs: Costs = {}
    random = np.random.default_rng(int(state["clock"][0]))
    start = time.process_time()
    if plain:
        found = every_pair(profiles)
    else:
        seed = int(state["clock"][0])
        found = prefilter.candidate_pairs(profiles, seed=seed, gained=policy.gained(state))
    costs["prefilter"] = time.process_time() - start
    with timed(costs):
        chosen = policy.match(state, found, len(profiles) // 2)
    rewards = [0.5 * pair.context[10] - 0.3 * pair.context[42] + random.normal(0, 0.1) for pair in chosen]
    middle = time.process_time()
    state = policy.update_all(state, zip(chosen, rewards, strict=True))
    costs["update"] = time.process_time() - middle
    costs["round"] = time.process_time() - start
    return state, costs


def growth(sizes: tuple[int, ...]) -> None:
    columns = ("prefilter", "posterior", "score", "match", "update", "round")
    print("| agents | " + " | ".join(columns) + " | µs an agent | plain round | ratio |")
    print("|---" * (len(columns) + 4) + "|")
    for agents in sizes:
        profiles, policy = random_profiles(agents), Pairwise()
        state = policy.init(0)
        for _ in range(WARM):
            state, _ = one_round(policy, state, profiles, plain=False)
        _, costs = one_round(policy, state, profiles, plain=False)
        cells = [f"{costs[column]:.4f}" for column in columns] + [f"{1e6 * costs['round'] / agents:.0f}"]
        if agents <= PLAIN:
            bound, matching._BLOSSOM = matching._BLOSSOM, 10**18  # exact, whatever it costs
            _, plain = one_round(policy, state, profiles, plain=True)
            matching._BLOSSOM = bound
            cells += [f"{plain['round']:.4f}", f"{plain['round'] / costs['round']:.1f}"]
        else:
            cells += ["not feasible", ""]
        print(f"| {agents} | " + " | ".join(cells) + " |", flush=True)


def by_tree(profiles: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates by a k-d tree: for each receiver the sources nearest in direction, over all agents."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in prefilter.embeddings(profiles)]
    _, sources = KDTree(unit[0]).query(unit[1], k=limit)
    return np.asarray(sources).ravel(), np.repeat(np.arange(len(profiles)), limit)


def edges_of(gains: np.ndarray, sources: np.ndarray, receivers: np.ndarray) -> matching.Edges:
    """These candidates, each once and none of an agent with itself, with their true gains."""
    keys = np.unique(sources * len(gains) + receivers)
    sources, receivers = keys // len(gains), keys % len(gains)
    return matching.Edges(len(gains), sources, receivers, np.where(sources != receivers, gains[sources, receivers], 0))


def reached(edges: matching.Edges, bound: int) -> float:
    """The total gain of the matching that is made if `bound` is the most work that an exact one may take."""
    before, matching._BLOSSOM = matching._BLOSSOM, bound
    total = float(edges.weights[matching.disjoint_edges(edges, edges.agents)].sum())
    matching._BLOSSOM = before
    return total


def quality(sizes: tuple[int, ...], limit: int = 16) -> None:
    print("\n| agents | blocks and random | random alone | k-d tree | best first / exact | CPU s: blocks | k-d tree |")
    print("|---" * 7 + "|")
    for agents in sizes:
        environment, random = SkillEnvironment(agents, "high", 1000), np.random.default_rng(0)
        gains, values = environment.gains(), environment.profiles()
        profiles = {name: Profile(tuple(row)) for name, row in zip(environment.names, values.tolist(), strict=True)}
        start = time.process_time()
        ours = prefilter.candidate_pairs(profiles, limit=limit)
        middle = time.process_time()
        tree = by_tree(values, limit)
        costs = middle - start, time.process_time() - middle
        others = random.integers(agents, size=agents * limit), np.repeat(np.arange(agents), limit)
        some = [edges_of(gains, *pairs) for pairs in ((ours.sources, ours.receivers), others, tree)]
        exact = [reached(edges, 10**18) for edges in (matching.Edges.of(gains), *some)]
        shares = [total / exact[0] for total in exact[1:]] + [reached(some[0], -1) / exact[1]]
        print(f"| {agents} | " + " | ".join(f"{share:.3f}" for share in shares), end=" | ")
        print(" | ".join(f"{cost:.3f}" for cost in costs) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="up to 4000 agents; seconds instead of minutes")
    quick = parser.parse_args().quick
    growth(SIZES[:4] if quick else SIZES)
    quality((256,) if quick else (256, 1000))


if __name__ == "__main__":
    main()
