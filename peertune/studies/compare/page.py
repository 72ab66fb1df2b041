"""The tables of a comparison, from its summary: a whole page of Markdown, and one short table for a terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peertune.report.reading import readable_bytes
from peertune.report.table import ABSENT, counted
from peertune.studies.markdown import points, readable_flops, table

RECOVERED = (
    "Text recovered: of 100 tokens of the public test, those that the better of two simple attackers reads off the "
    "hidden states of the lowest cut (`peertune audit`)."
)

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]  # its head, and the cell of an arm


def markdown(summary: Row) -> str:
    """Scores, costs, Pareto fronts, what it takes to come near the best, and what is not in the tables."""
    lines = [f"### {summary['name']}", ""]
    lines += _measured(summary) if summary["arms"] else ["No arm is finished."]
    for title, found in (("Left out", summary["left_out"]), ("Not finished, and in no figure", summary["missing"])):
        if found:
            said = {name: why if isinstance(why, str) else ", ".join(why) for name, why in found.items()}
            lines += ["", f"{title}:", "", *(f"* `{name}`: {why}" for name, why in said.items())]
    return "\n".join(lines) + "\n"


def _measured(summary: Row) -> list[str]:
    arms, start = summary["arms"], summary["warm_start"]
    rows = [*arms, *([{**start, "arm": "(warm start)"}] if start else [])]
    return [
        *(_about(summary), ""),
        *_table(_score_columns(summary), rows),
        *(["", line] if (line := unaudited(summary)) else []),
        *("", "Bytes; up and down are what clients send and receive, whoever the other is:", ""),
        *_table(_byte_columns(summary), rows),
        *("", "Work; exchange updates are optimiser steps on what others gave (`fedavg` has own data only):", ""),
        *_table(_work_columns(summary), rows),
        *_teachers(arms),
        *("", *_fronts(summary), ""),
        *_reach(summary),
    ]


def _teachers(arms: Sequence[Row]) -> list[str]:
    """Who was chosen as a teacher of public problems, in the arms where somebody chooses."""
    choosing = [(row["arm"], learner, shares) for row in arms for learner, shares in row["chosen"].items()]
    sources = list(dict.fromkeys(source for _, _, shares in choosing for source in shares))
    rows = [
        [arm, learner, *(_or_absent(shares.get(one), _percent) for one in sources)] for arm, learner, shares in choosing
    ]
    said = "Of 100 public problems, those for which a learner chose each source as its teacher, because it loses less:"
    return ["", said, "", *table(("arm", "learner", *sources), rows)] if rows else []


def short(summary: Row) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the one table that a terminal shows."""
    paid = {"bytes": "bytes", "flops": "FLOPs"}
    score: Column = (summary["score"], lambda row: _percent(row["score"][0]))
    columns: list[Column] = [
        *(score if column[0] == score[0] else column for column in _score_columns(summary)),
        ("bytes", lambda row: readable_bytes(row["bytes"])),
        ("client FLOPs", lambda row: readable_flops(row["flops"])),
        ("front", lambda row: ", ".join(paid[cost] for cost, on in summary["fronts"].items() if row["arm"] in on)),
    ]
    return [name for name, _ in columns], [[cell(row) for _, cell in columns] for row in summary["arms"]]


def unaudited(summary: Row) -> str:
    """How to measure what the arms of split learning give away, if nobody has; else empty."""
    arms = [arm for arm, share in summary.get("recovered", {}).items() if share is None]
    if not arms:
        return ""
    return (
        f"Not measured: how much text the server could read off the hidden states of {', '.join(arms)}. Call, beside "
        f"this page, `peertune audit {summary['name']}-s{summary['seeds'][0]} --runs runs`, then compare again."
    )


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    return table([name for name, _ in columns], ([cell(row) for _, cell in columns] for row in rows))


def _arm(row: Row) -> str:
    return row["arm"]


def _about(summary: Row) -> str:
    faults = [f"{name} ({fault})" for name, fault in summary["faults"].items() if fault]
    silent = summary["silent"]
    return " ".join(
        [
            f"{counted(len(summary['faults']), 'agent')}, {counted(summary['rounds'], 'round')}, "
            f"{counted(len(summary['seeds']), 'seed')}; "
            f"{summary['score']} in points after the last round, with 95 % two-level bootstrap intervals (seeds, and "
            "test problems within a seed), gains paired; n is the number of seeds. Costs are means over seeds, of all "
            "clients and rounds from round 1 on; the warm start, from which every arm begins, stands below.",
            *([RECOVERED] if any(summary.get("recovered", {}).values()) else []),
            *([f"Not in the scores: {', '.join(faults)}."] if faults else []),
            *([f"Not in FLOPs, updates and memory, which they keep: {', '.join(silent)}."] if silent else []),
        ]
    )


def _score_columns(summary: Row) -> list[Column]:
    columns: list[Column] = [
        ("arm", _arm),
        ("n", lambda row: str(row["seeds"])),
        (summary["score"], lambda row: points(row["score"])),
        ("worst agent", lambda row: _percent(row["worst"])),
    ]
    if local := summary["local"]:
        columns.append((f"over {local}", lambda row: points(row["over_local"], "+")))
    if any(row["under_method"] for row in summary["arms"]):
        columns.append((f"{summary['method']} over it", lambda row: points(row["under_method"], "+")))
    recovered = summary.get("recovered", {})
    if any(share is not None for share in recovered.values()):
        columns.append(("text recovered", lambda row: _or_absent(recovered.get(row["arm"]), _percent)))
    if any(row["server_score"] is not None for row in summary["arms"]):
        columns.append(("server", lambda row: _or_absent(row["server_score"], _percent)))
    return columns


def _byte_columns(summary: Row) -> list[Column]:
    share = len(summary["faults"]) * summary["rounds"]
    columns: list[Column] = [
        ("arm", _arm),
        ("up, client and round", lambda row: readable_bytes(row["up"] / share)),
        ("down, client and round", lambda row: readable_bytes(row["down"] / share)),
        ("round trips, client and round", lambda row: f"{row['client_trips'] / share:,.4g}"),
    ]
    heads = {"up": "up", "down": "down", "bytes": "all", "server_bytes": "server"}
    heads |= {"deploy_bytes": "to deploy", "evaluate_bytes": "to evaluate"}
    columns += [(head, _cell(key, readable_bytes)) for key, head in _used(summary, heads)]
    return [*columns, *_planned(summary, "bytes", ("all, planned", readable_bytes))]


def _work_columns(summary: Row) -> list[Column]:
    heads = {"flops": "client FLOPs", "server_flops": "server FLOPs"}
    heads |= {"deploy_flops": "to deploy", "evaluate_flops": "to evaluate"}
    columns = [(head, _cell(key, readable_flops)) for key, head in _used(summary, heads)]
    columns.append(("exchange updates", _cell("updates", lambda count: f"{count:,.0f}")))
    columns.append(("client seconds", _cell("seconds", lambda seconds: f"{seconds:,.1f}")))
    columns += [("peak memory", _cell("memory", readable_bytes)) for _ in _used(summary, {"memory": ""})]
    return [("arm", _arm), *columns, *_planned(summary, "flops", ("client FLOPs, planned", readable_flops))]


def _planned(summary: Row, cost: str, column: tuple[str, Callable[[float], str]]) -> list[Column]:
    """What the configuration said beforehand, and by how much that was too much; or the most that it said."""
    plans, (head, show) = summary.get("planned", {}), column

    def cell(row: Row) -> str:
        plan = plans.get(row["arm"])
        if plan is None or not plan["exact"]:
            return ABSENT if plan is None else f"<= {show(plan[cost])}"
        return show(plan[cost]) + (f" ({100 * (plan[cost] / row[cost] - 1):+.1f} %)" if row[cost] else "")

    return [(head, cell)] if plans else []


def _used(summary: Row, heads: Mapping[str, str]) -> list[tuple[str, str]]:
    """Key and head of what some arm has any of."""
    return [(key, head) for key, head in heads.items() if any(row[key] for row in summary["arms"])]


def _cell(key: str, show: Callable[[float], str]) -> Callable[[Row], str]:
    return lambda row: _or_absent(row[key], show)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _or_absent(value: float | None, show: Callable[[float], str]) -> str:
    return ABSENT if value is None else show(value)


def _fronts(summary: Row) -> list[str]:
    against = {"bytes": "bytes on all links", "flops": "client FLOPs"}
    return [
        f"* Pareto front of {summary['score']} against {against[cost]}: {', '.join(f'`{arm}`' for arm in on)}"
        for cost, on in summary["fronts"].items()
    ]


def _reach(summary: Row) -> list[str]:
    found = summary["reach"]
    lines = [
        [arm, str(point["round"]), readable_bytes(point["bytes"]), readable_flops(point["flops"])]
        if point
        else [arm, "never", ABSENT, ABSENT]
        for arm, point in found["arms"].items()
    ]
    return [
        f"To reach {100 * found['level']:.1f} points, {100 * found['share']:.0f} % of what the best, "
        f"`{found['best']}`, ends with, in the mean over seeds and after evaluated rounds; round 0 is the warm start:",
        "",
        *table(("arm", "round", "bytes", "client FLOPs"), lines),
    ]
