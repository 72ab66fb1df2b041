"""What a study of federations ends with, as one value that JSON can hold: rows of tables, and their Markdown.

All scores are shares of 1 there; pages show them in points, of 100.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from peertune.report.table import ABSENT
from peertune.studies.goals import FILTERED, LOCAL, ROUTED, UNIFORM, Federations, judge
from peertune.studies.markdown import points, table
from peertune.studies.paired import arms_of, compare, mean_score
from peertune.studies.records import Run

Row = Mapping[str, Any]
BASES = (LOCAL, UNIFORM, FILTERED)  # every arm is compared with these


def summarise(study: Federations, missing: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The whole study. `missing`: run -> the arms that it has not finished."""
    return {
        "missing": {run: list(arms) for run, arms in missing.items()},
        "goals": [asdict(verdict) for verdict in judge(study)],
        "federations": {name: _federation(runs) for name, runs in study.items()},
        "records": [
            asdict(one) for runs in study.values() for run in runs for arm in run.arms.values() for one in arm.records
        ],
    }


def _federation(runs: Sequence[Run]) -> dict[str, Any]:
    first, names = runs[0], arms_of(runs)
    return {
        "score": first.score,
        "rounds": first.rounds,
        "unit": first.unit,
        "faults": first.faults,
        "seeds": [run.seed for run in runs],
        "arms": [_arm(runs, name) for name in names],
        "comparisons": [asdict(found) for pair in _pairs(names) if (found := compare(runs, *pair))],
        "taught": {name: _taught(runs, name) for name in names},
    }


def _arm(runs: Sequence[Run], name: str) -> dict[str, Any]:
    """One line of a federation's table: means over the seeds that finished this arm."""
    arms = [run.arms[name] for run in runs if name in run.arms]
    lasts = [arm.records[-1] for arm in arms]
    gains = [last.worst_gain for last in lasts if last.worst_gain is not None]
    rounds = runs[0].rounds
    over = {base: compare(runs, name, base) for base in (LOCAL, UNIFORM) if base != name}
    return {
        "arm": name,
        "seeds": len(arms),
        "score": mean_score(arms, runs[0].benign),
        "all": float(np.mean([last.all[runs[0].score] for last in lasts])),
        "over": {base: found.difference for base, found in over.items() if found},
        "worst": float(np.mean(gains)) if gains and name != LOCAL else None,
        "measures": _measures([last.benign for last in lasts]),
        **{
            cost: float(np.mean([getattr(last, cost) for last in lasts])) / rounds for cost in ("text_bytes", "updates")
        },
        "bytes": float(np.mean([sum(last.bytes.values()) for last in lasts])) / rounds,
        "gflop": float(np.mean([last.gflop for last in lasts])),
    }


def _measures(benign: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = [name for name in benign[0] if all(name in one for one in benign)]
    return {name: float(np.mean([one[name] for one in benign])) for name in names}


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Every arm over each base, and the routed arm over every other; no two bases both ways."""
    bases = [base for base in BASES if base in names]
    found = [(name, base) for base in bases for name in names if name not in bases[: bases.index(base) + 1]]
    if ROUTED in names:
        found += [(ROUTED, name) for name in names if name != ROUTED]
    return list(dict.fromkeys(found))


def _taught(runs: Sequence[Run], name: str) -> list[list[Any]]:
    """[source, receiver, mean over seeds] of every pair that met."""
    arms = [run.arms[name] for run in runs if name in run.arms]
    pairs = sorted({pair for arm in arms for pair in arm.taught})
    return [[*pair, float(np.mean([arm.taught.get(pair, 0.0) for arm in arms]))] for pair in pairs]


# Markdown


def markdown(summary: Row) -> str:
    """The goals, then every federation's tables, then what is missing."""
    lines = ["Goals that were set before the study was run:", ""]
    lines += table(("goal", "federation", "found, 95 % interval", "n", "reached"), map(_goal_line, summary["goals"]))
    for name, federation in summary["federations"].items():
        lines += ["", f"### {name}", "", _about(federation), ""]
        lines += _arm_table(federation)
        lines += _measure_table(federation["arms"])
        lines += ["", "Differences in the same score, paired by seed and problem:", ""]
        columns = ("arm", "over", "points, 95 % interval", "relative, %", "seeds better", "n")
        lines += table(columns, map(_comparison_line, federation["comparisons"]))
    if summary["missing"]:
        lines += ["", "Not finished, and in no figure:", ""]
        lines += [f"* `{run}`: {', '.join(arms)}" for run, arms in summary["missing"].items()]
    return "\n".join(lines) + "\n"


def _about(federation: Row) -> str:
    faults = [f"{name} ({fault})" for name, fault in federation["faults"].items() if fault]
    return (
        f"{len(federation['faults'])} agents, {federation['rounds']} rounds, {len(federation['seeds'])} seeds; "
        f"{'not benign: ' + ', '.join(faults) if faults else 'all benign'}. {federation['score']} in points after the "
        "last round, of benign agents but in the column *all*; 95 % two-level bootstrap intervals (seeds, and test "
        "problems within a seed); n is the number of seeds."
    )


def _arm_table(federation: Row) -> list[str]:
    bases = [base for base in (LOCAL, UNIFORM) if any(base in row["over"] for row in federation["arms"])]
    columns = [
        *("arm", "n", federation["score"], "all", *(f"over {base}" for base in bases), "worst agent over local"),
        *("text kB a round", "all kB a round", "updates a round", "GFLOP"),
    ]
    return table(columns, (_arm_line(row, bases) for row in federation["arms"]))


def _arm_line(row: Row, bases: Sequence[str]) -> list[str]:
    return [
        *(row["arm"], str(row["seeds"]), points(row["score"]), f"{100 * row['all']:.1f}"),
        *(points(row["over"].get(base), "+") for base in bases),
        ABSENT if row["worst"] is None else f"{100 * row['worst']:+.1f}",
        *(f"{row[key] / 1000:.1f}" for key in ("text_bytes", "bytes")),
        *(f"{row[key]:,.0f}" for key in ("updates", "gflop")),
    ]


def _measure_table(arms: Sequence[Row]) -> list[str]:
    """What was measured beside the main score, which comes first."""
    names = list(dict.fromkeys(name for row in arms for name in list(row["measures"])[1:]))
    if not names:
        return []
    lines = ([row["arm"], *(_measure(row["measures"].get(name)) for name in names)] for row in arms)
    heads = [name.replace("_", " ") for name in names]
    return [
        "",
        "Other measures of the same round, means over benign agents and seeds:",
        "",
        *table(("arm", *heads), lines),
    ]


def _measure(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def _comparison_line(row: Row) -> list[str]:
    seeds = len(row["seeds"])
    difference, gain = points(row["difference"], "+"), points(row["gain"], "+", digits=0)
    return [row["arm"], row["other"], difference, gain, f"{row['positive']} of {seeds}", str(seeds)]


def _goal_line(row: Row) -> list[str]:
    if row["reached"] is None:
        return [
            row["goal"],
            row["federation"],
            row["note"] or ABSENT,
            ABSENT,
            "not judged" if row["note"] else "not run",
        ]
    sign = "" if row["unit"] == "% of bytes" else "+"
    found = f"{points(row['found'], sign)} {row['unit']}" + (f"; {row['note']}" if row["note"] else "")
    return [row["goal"], row["federation"], found, str(row["seeds"]), "yes" if row["reached"] else "**no**"]
