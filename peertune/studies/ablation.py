"""What is each group of features worth to `pairwise`? The policy whole and without each, on synthetic federations.

Groups can stand in for each other, so what one loses alone says how little it can be missed, not how much it says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from peertune.matchmakers.synthetic import ENVIRONMENTS
from peertune.studies.markdown import table
from peertune.studies.matchmaking import ABLATED, Plan, Watch, make, play_all
from peertune.studies.summary import BASELINE, BOUND, interval, write

PLAN = Plan(agents=(16, 64), seeds=10)
WHOLE, ALL = "pairwise", "all"
SHOWN = (WHOLE, *ABLATED)
ARMS = (BASELINE, *SHOWN, BOUND)

Row = Mapping[str, Any]


def study(folder: Path, plan: Plan, watch: Watch) -> list[Path]:
    """Run the plan on all cores; the files written to `folder`: summary.json and table.md."""
    make(folder)
    return write(folder, asdict(plan), summarise(plan, play_all(plan, watch, ARMS)), {"table.md": markdown})


def summarise(plan: Plan, records: Sequence[Row]) -> list[dict[str, Any]]:
    """One row for each environment x agents x heterogeneity x policy, and of all heterogeneities together (the mean of
    theirs): the gap closed, and its difference to that of the whole policy, as (estimate, low, high).
    """
    keys = ("environment", "agents", "heterogeneity", "arm", "seed")
    rewards = {tuple(record[key] for key in keys): record["reward"] for record in records}
    among = {**{one: (one,) for one in plan.heterogeneity}, ALL: plan.heterogeneity}
    rows = []
    for place in ((environment, agents) for environment in ENVIRONMENTS for agents in plan.agents):
        for heterogeneity, each in among.items():
            for arm in SHOWN:
                columns = [(*place, one, who) for one in each for who in (arm, WHOLE, BASELINE, BOUND)]
                found = np.array([[rewards[*column, seed] for column in columns] for seed in range(plan.seeds)])
                about = dict(zip(keys, (*place, heterogeneity, arm), strict=False))
                figures = {"gap_closed": interval(_gap_closed, found), "over_whole": interval(_over_whole, found)}
                rows.append({**about, "seeds": plan.seeds, **figures})
    return rows


def _gap_closed(means: np.ndarray) -> np.ndarray:
    """How far from uniform pairs (0) to the exact oracle (1). `means`: of the policy, the whole one, uniform pairs and
    the oracle, by heterogeneity: [..., heterogeneities * 4].
    """
    mine, _, uniform, oracle = np.moveaxis(means.reshape(*means.shape[:-1], -1, 4), -1, 0)
    return ((mine - uniform) / (oracle - uniform)).mean(axis=-1)


def _over_whole(means: np.ndarray) -> np.ndarray:
    mine, whole, uniform, oracle = np.moveaxis(means.reshape(*means.shape[:-1], -1, 4), -1, 0)
    return ((mine - whole) / (oracle - uniform)).mean(axis=-1)


def markdown(rows: Sequence[Row]) -> str:
    """The page's table, of all heterogeneities together; differences whose interval excludes 0 are bold."""
    together = [row for row in rows if row["heterogeneity"] == ALL]
    places = list(dict.fromkeys((row["environment"], row["agents"]) for row in together))
    found = {(row["arm"], row["environment"], row["agents"]): row for row in together}
    lines = [[f"`{WHOLE}`", *(_interval(found[WHOLE, *place]["gap_closed"], "") for place in places)]]
    lines += [[arm, *(_cell(found[arm, *place]) for place in places)] for arm in ABLATED]
    columns = ("policy", *(f"`{environment}`, {agents} agents" for environment, agents in places))
    head = "Gap closed; without a group, also the difference to the whole policy, 95 % interval (bold: 0 is not in it):"
    return "\n".join([head, "", *table(columns, lines)]) + "\n"


def _cell(row: Row) -> str:
    difference = _interval(row["over_whole"], "+")
    _, low, high = row["over_whole"]
    return f"{row['gap_closed'][0]:.2f}; {f'**{difference}**' if low > 0 or high < 0 else difference}"


def _interval(values: Sequence[float], sign: str) -> str:
    estimate, low, high = (f"{value:{sign}.2f}" for value in values)
    return f"{estimate} ({low} to {high})"
