"""What arms reach and what it costs, as one value that JSON can hold.

Scores are shares of 1, `bytes` and `flops` counts.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from peertune.report.reading import START
from peertune.studies.costs import Costs
from peertune.studies.paired import arms_of, compare, mean_score, over_seeds
from peertune.studies.records import Arm, Record, Run

SHARE = 0.9  # of the best arm's final score: what every arm is asked to reach
PAID = ("bytes", "flops")  # what a score costs

Row = Mapping[str, Any]


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """The whole comparison, of the runs of one federation; `arms` is empty, and all there is, if none is finished."""
    names = arms_of(runs)
    if not names:
        return {"arms": []}
    first = runs[0]
    local = next((run.local for run in runs if run.local), None)
    rows = [_arm([run for run in runs if name in run.arms], name, local) for name in names]
    started = [run for run in runs if START in run.arms]
    curves = {name: _curve([run for run in runs if name in run.arms], name) for name in names}
    return {
        "score": first.score,
        "rounds": first.rounds,
        "seeds": [run.seed for run in runs],
        "faults": first.faults,
        "silent": list(first.silent),
        "local": local,
        "method": first.method,
        "arms": rows,
        "warm_start": _arm(started, START, local) if started else None,
        "fronts": {cost: _front(rows, cost) for cost in PAID},
        "reach": _reach(curves),
        "curves": curves,
    }


def _arm(runs: Sequence[Run], name: str, local: str | None) -> dict[str, Any]:
    """Means over the runs, which have all finished this arm; `worst`: of the worst agent of each."""
    arms, benign = [run.arms[name] for run in runs], runs[0].benign
    lasts = [arm.records[-1] for arm in arms]
    over = compare(runs, name, local) if local and name != local else None
    under = compare(runs, runs[0].method, name) if name != runs[0].method else None
    server = [arm.server[last.round] for arm, last in zip(arms, lasts, strict=True) if last.round in arm.server]
    return {
        "arm": name,
        "seeds": len(arms),
        "score": mean_score(arms, benign),
        "worst": _mean([min(last.agents[agent] for agent in benign if agent in last.agents) for last in lasts]),
        "server_score": _mean(server) if server else None,
        "over_local": over and over.difference,
        "under_method": under and under.difference,
        "chosen": _chosen(arms),
        **_costs([arm.costs[last.round] for arm, last in zip(arms, lasts, strict=True)]),
    }


def _chosen(arms: Sequence[Arm]) -> dict[str, dict[str, float]]:
    """Learner -> source -> the share of public problems for which it was chosen as a teacher: means over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for arm in arms:
        for learner, chosen in arm.chosen.items():
            for source, share in chosen.shares().items():
                found.setdefault(learner, {}).setdefault(source, []).append(share)
    return {learner: {one: _mean(shares) for one, shares in mine.items()} for learner, mine in found.items()}


def _costs(found: Sequence[Costs]) -> dict[str, float | None]:
    """What whole arms cost, all clients and rounds together: means over seeds; of `memory` the largest."""
    totals = [costs.totals() for costs in found]
    memory = [costs.memory for costs in found if costs.memory is not None]
    return {name: _mean([one[name] for one in totals]) for name in totals[0]} | {"memory": max(memory, default=None)}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _curve(runs: Sequence[Run], name: str) -> list[dict[str, Any]]:
    """The mean score after every round that all runs evaluated, and what was paid until then; from the warm start."""
    by_round: dict[int, list[tuple[Record, Costs]]] = {}
    for run in runs:
        arm = run.arms[name]
        found = [(record, Costs()) for record in (run.arms[START].records if START in run.arms else ())]
        for record, costs in [*found, *((record, arm.costs[record.round]) for record in arm.records)]:
            if run.score in record.benign:
                by_round.setdefault(record.round, []).append((record, costs))
    return [
        {
            "round": t,
            "score": over_seeds([record.benign[runs[0].score] for record, _ in found]),
            **{cost: _mean([getattr(costs, cost) for _, costs in found]) for cost in PAID},
        }
        for t, found in sorted(by_round.items())
        if len(found) == len(runs)
    ]


def _front(rows: Sequence[Row], cost: str) -> list[str]:
    kept = front([(row[cost], row["score"][0]) for row in rows])
    return [row["arm"] for row, there in zip(rows, kept, strict=True) if there]


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Is each point (cost, score) on the Pareto front: is none as good and cheaper, or better and no dearer?"""
    kept: set[tuple[float, float]] = set()
    best = -np.inf
    for cost, group in groupby(sorted(points), key=lambda point: point[0]):
        score = max(score for _, score in group)
        if score > best:
            kept.add((cost, score))
            best = score
    return [point in kept for point in points]


def _reach(curves: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """The first evaluated round after which each arm has `SHARE` of the best final score; None if it never has."""
    finals = {name: curve[-1]["score"][0] for name, curve in curves.items() if curve}
    best = max(finals, key=finals.__getitem__)
    level = SHARE * finals[best]
    first = {name: next((p for p in curve if p["score"][0] >= level), None) for name, curve in curves.items()}
    return {
        "share": SHARE,
        "best": best,
        "level": level,
        "arms": {name: point and {key: point[key] for key in ("round", *PAID)} for name, point in first.items()},
    }
