"""Pictures of a comparison: how the arms learn by round, bytes and FLOPs, and the Pareto fronts. From its summary."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from peertune.report.canvas import GREY, INK, PAPER, dress, label, round_axis
from peertune.report.table import counted
from peertune.studies.compare.summary import PAID
from peertune.studies.drawing import byte_axis, canvas, line, rows_of, style
from peertune.studies.markdown import flop_unit

Row = Mapping[str, Any]
NAME = 24  # characters of an arm's name


def learning(summary: Row) -> Figure:
    """The mean score of every arm by round, bytes and client FLOPs; bands are 95 % over seeds."""
    curves, places = summary["curves"], _places(summary)
    title = f"{label(summary['name'], NAME)}: by round, {counted(len(summary['seeds']), 'seed')}"
    rows = rows_of(list(curves), [summary["local"]])
    picture = canvas(15.0, 3.9 * len(rows) + 0.2)
    panels = picture.subplots(len(rows), 3, squeeze=False, sharex="col", sharey=True)
    for (by_round, by_bytes, by_flops), shown in zip(panels, rows, strict=True):
        dress(by_round, title, "round", f"{summary['score']}, %")
        dress(by_bytes, "by bytes on all links", "bytes, up to the round", "")
        dress(by_flops, "by work of the clients", "", "")
        lines = []
        for arm in shown:
            look = {**style(places[arm]), "linewidth": 2, "markersize": 5, "zorder": 3}
            for axes, along in ((by_round, "round"), (by_bytes, "bytes"), (by_flops, "flops")):
                _draw(axes, curves[arm], along, look)
            lines.append(Line2D([], [], label=_label(summary, arm), **look))
        round_axis(by_round, 0, summary["rounds"])
        byte_axis(by_bytes, [point["bytes"] for curve in curves.values() for point in curve])
        _flop_axis(by_flops, "of all clients, up to the round")
        for axes in (by_round, by_bytes, by_flops):
            axes.tick_params(labelbottom=True)
        by_flops.legend(handles=lines, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=10, frameon=False)
    return picture


def _places(summary: Row) -> dict[str, int]:
    """Where each arm stands among colours and markers; `local` has the first."""
    names = [row["arm"] for row in summary["arms"]]
    return {name: place for place, name in enumerate(sorted(names, key=lambda name: name != summary["local"]))}


def _draw(axes: Axes, curve: list[Row], along: str, look: dict[str, Any]) -> None:
    """A logarithmic axis has no place for the warm start, which cost no bytes."""
    points = [point for point in curve if along != "bytes" or point["bytes"] > 0]
    if points:
        line(axes, [point[along] for point in points], [[100 * v for v in point["score"]] for point in points], look)


def _label(summary: Row, arm: str) -> str:
    """The arm's name, and its seeds where they are not all."""
    (seeds,) = [row["seeds"] for row in summary["arms"] if row["arm"] == arm]
    return label(arm, NAME) if seeds == len(summary["seeds"]) else f"{label(arm, NAME)} (n = {seeds})"


def _flop_axis(axes: Axes, whose: str) -> None:
    size, unit = flop_unit(axes.get_xlim()[1])
    axes.set_xlabel(f"{unit} {whose}", fontsize=10.5, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count / size:g}"))


def fronts(summary: Row) -> Figure:
    """The final score of every arm against bytes and client FLOPs; arms on the front are full and joined."""
    picture = canvas(12.2, 4.3)
    panels, places = picture.subplots(1, 2, sharey=True), _places(summary)
    dress(panels[0], f"{label(summary['name'], NAME)}: score for bytes", "bytes on all links", f"{summary['score']}, %")
    dress(panels[1], "score for work of the clients", "", "")
    for axes, cost in zip(panels, PAID, strict=True):
        for row in summary["arms"]:
            _dot(axes, row, cost, style(places[row["arm"]]), row["arm"] in summary["fronts"][cost])
        _join(axes, [row for row in summary["arms"] if row["arm"] in summary["fronts"][cost]], cost)
    byte_axis(panels[0], [row["bytes"] for row in summary["arms"]])
    _flop_axis(panels[1], "of all clients")
    panels[1].legend(
        handles=_legend(summary), loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=10, frameon=False
    )
    return picture


def _dot(axes: Axes, row: Row, cost: str, look: dict[str, Any], best: bool) -> None:
    score, low, high = (100 * value for value in row["score"])
    axes.errorbar(
        row[cost],
        score,
        yerr=[[max(0.0, score - low)], [max(0.0, high - score)]],
        **look,
        markersize=10 if best else 8,
        markerfacecolor=look["color"] if best else PAPER,
        markeredgewidth=1.6,
        elinewidth=1.2,
        zorder=4 if best else 3,
    )


def _join(axes: Axes, rows: list[Row], cost: str) -> None:
    """The front is a stair: until the next arm is paid for, the one before is the best there is."""
    found = sorted((row[cost], 100 * row["score"][0]) for row in rows)
    axes.step(*zip(*found, strict=True), where="post", color=GREY, linewidth=1.4, linestyle="--", zorder=2)


def _legend(summary: Row) -> list[Line2D]:
    arms = [
        Line2D([], [], linestyle="", markersize=8, label=_label(summary, arm), **style(place))
        for arm, place in _places(summary).items()
    ]
    plain: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 8, "color": INK}
    return [
        *arms,
        Line2D([], [], label="full: on the front", **plain),
        Line2D([], [], label="hollow: dominated", **plain, markerfacecolor=PAPER, markeredgewidth=1.6),
        Line2D([], [], label="front", color=GREY, linewidth=1.4, linestyle="--"),
    ]
