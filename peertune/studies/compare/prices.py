"""What arms were expected to cost, beside what they did."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from peertune.config.schema import Config
from peertune.studies.compare.summary import PAID
from peertune.studies.records import Run


def prices(configs: Sequence[Config], runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """arm -> planned bytes and FLOPs, means over the seeds that have finished it, and whether they are `exact` or the
    most; of the configurations with a run.
    """
    from peertune.cost.plan import planned  # here, because it imports torch

    seeds = {run.seed: run for run in runs}
    models: Any = {}
    plans = [(seeds[one.seed], planned(one, models)) for one in configs if one.seed in seeds]
    found: dict[str, dict[str, Any]] = {}
    for arm in {arm for run in runs for arm in run.arms}:
        priced = [plan[arm] for run, plan in plans if arm in run.arms and arm in plan]
        if priced:
            found[arm] = {cost: float(np.mean([one[cost] for one in priced])) for cost in PAID}
            found[arm]["exact"] = all(one["exact"] for one in priced)
    return found
