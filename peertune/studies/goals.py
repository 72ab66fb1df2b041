"""The goals that were set before the study was run, each with what was found: estimate, interval, reached or not.

A goal asks for a threshold *and*, where it says better, for a whole interval above 0. What was not run is not reached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peertune.studies.paired import Comparison, Interval, arms_of, compare, compare_pairs, ratio
from peertune.studies.records import Run

DIRICHLET, EXPERTS, LIARS = "knexa-dirichlet", "knexa-experts", "knexa-liars"  # federations A, B and C
HONEST = "knexa-honest"  # C without its liar
ROUTED, PAIRED = "knexa", "pairwise"
LOCAL, UNIFORM, FILTERED = "local", "uniform", "uniform_filtered"
GREEDY, PAPER = "hetero_greedy", "paper"
CENTRAL = ("central_confident", "central_filtered", "central_majority", "central_logits", "fedid")
MOST_BYTES = 0.2  # of the strongest central arm's text bytes
MOST_LOST = 0.02  # of the score, to a liar
SAME_UPDATES = 0.01  # relative: what still counts as equal

Federations = Mapping[str, Sequence[Run]]  # name -> runs, one a seed


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal in one federation. `found`: in `unit`s; None and `reached` None if its arms were not run."""

    goal: str
    federation: str
    unit: str
    found: Interval | None = None
    seeds: int = 0
    reached: bool | None = None
    note: str = ""


def judge(study: Federations) -> list[Verdict]:
    """Every goal, also those that were missed or not run."""
    verdicts = []
    for place in (EXPERTS, LIARS):
        runs = study.get(place, ())
        verdicts += [
            _gain(place, runs, (ROUTED, UNIFORM), 1.0),
            _gain(place, runs, (ROUTED, FILTERED), 0.1),
            _gain(place, runs, (PAIRED, UNIFORM), 0.25),
            *(_better(place, runs, mine, other) for mine in (ROUTED, PAIRED) for other in (GREEDY, PAPER)),
        ]
    for place in (DIRICHLET, EXPERTS, LIARS):
        runs = study.get(place, ())
        verdicts += [_nobody_loses(place, runs), _not_below_central(place, runs), _few_bytes(place, runs)]
    return [*verdicts, _liar(study.get(LIARS, ()), study.get(HONEST, ()))]


def _gain(place: str, runs: Sequence[Run], arms: tuple[str, str], least: float) -> Verdict:
    goal = f"`{arms[0]}` at least {100 * least:+.0f} % over `{arms[1]}`, the difference above 0"
    found = compare(runs, *arms)
    if found is None or found.gain is None:
        return Verdict(goal, place, "%", note="" if found is None else f"`{arms[1]}` may be 0: no relative gain")
    reached = found.gain[0] >= least and found.difference[1] > 0
    return Verdict(goal, place, "%", found.gain, len(found.seeds), reached)


def _better(place: str, runs: Sequence[Run], mine: str, other: str) -> Verdict:
    goal = f"`{mine}` above `{other}`"
    if (found := compare(runs, mine, other)) is None:
        return Verdict(goal, place, "points")
    return Verdict(goal, place, "points", found.difference, len(found.seeds), found.difference[1] > 0)


def _nobody_loses(place: str, runs: Sequence[Run]) -> Verdict:
    """Judged agent by agent; shown is the one with the lowest interval."""
    goal = f"no benign agent significantly below itself in `{LOCAL}`"
    agents = runs[0].benign if runs else []
    found = {name: one for name in agents if (one := compare(runs, ROUTED, LOCAL, [name]))}
    if not found:
        return Verdict(goal, place, "points")
    below = [name for name, one in found.items() if one.difference[2] < 0]
    worst = min(found, key=lambda name: found[name].difference[2])
    note = f"below: {', '.join(below)}" if below else f"lowest of {len(found)} agents: {worst}"
    return Verdict(goal, place, "points", found[worst].difference, len(found[worst].seeds), not below, note)


def strongest_central(runs: Sequence[Run]) -> str | None:
    """The central arm with the highest mean score over the seeds that it shares with the routed one."""
    found: dict[str, Comparison] = {
        arm: one for arm in CENTRAL if arm in arms_of(runs) and (one := compare(runs, arm, ROUTED))
    }
    return max(found, key=lambda arm: found[arm].difference[0], default=None)


def _not_below_central(place: str, runs: Sequence[Run]) -> Verdict:
    goal = f"`{ROUTED}` not significantly below the strongest central arm, at equal student updates"
    central = strongest_central(runs)
    if central is None or (found := compare(runs, ROUTED, central)) is None:
        return Verdict(goal, place, "points")
    updates = ratio(_last(runs, central, "updates"))
    equal = updates is None or abs(updates[0] - 1) <= SAME_UPDATES
    note = f"against `{central}`" + (
        "" if equal or not updates else f"; updates differ: {updates[0]:.2f} times as many"
    )
    reached = found.difference[2] >= 0 and equal
    return Verdict(goal, place, "points", found.difference, len(found.seeds), reached, note)


def _few_bytes(place: str, runs: Sequence[Run]) -> Verdict:
    goal = f"`{ROUTED}` with at most {100 * MOST_BYTES:.0f} % of that arm's text bytes"
    central = strongest_central(runs)
    pairs = _last(runs, central, "text_bytes") if central else []
    if (found := ratio(pairs)) is None:
        return Verdict(goal, place, "% of bytes")
    return Verdict(goal, place, "% of bytes", found, len(pairs), found[0] <= MOST_BYTES, f"against `{central}`")


def _last(runs: Sequence[Run], other: str, cost: str) -> list[tuple[float, float]]:
    """The cost of the routed arm and of `other` after the last round, one pair a seed."""
    both = [run.arms for run in runs if ROUTED in run.arms and other in run.arms]
    return [(getattr(arms[ROUTED].records[-1], cost), getattr(arms[other].records[-1], cost)) for arms in both]


def _liar(liars: Sequence[Run], honest: Sequence[Run]) -> Verdict:
    """The same seeds with and without the liar; of the agents that are benign with it."""
    goal = f"`{ROUTED}` loses at most {100 * MOST_LOST:.0f} points to the liar (against `{HONEST}`)"
    without = {run.seed: run.arms[ROUTED] for run in honest if ROUTED in run.arms}
    pairs = {
        run.seed: (run.arms[ROUTED], without[run.seed]) for run in liars if run.seed in without and ROUTED in run.arms
    }
    found = compare_pairs(pairs, LIARS, HONEST, liars[0].benign) if pairs else None
    if found is None:
        return Verdict(goal, LIARS, "points")
    return Verdict(goal, LIARS, "points", found.difference, len(found.seeds), found.difference[0] >= -MOST_LOST)
