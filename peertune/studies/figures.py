"""Pictures of a study: how the arms learn, by round and by text bytes, and who taught whom. Drawn from its summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from peertune.report.canvas import GREY, INK, PAPER, dress, label, round_axis
from peertune.report.reading import START
from peertune.studies.drawing import byte_axis, canvas, line, rows_of, style
from peertune.studies.goals import LOCAL, PAIRED, ROUTED
from peertune.studies.paired import Interval, over_seeds

Row = Mapping[str, Any]
Curve = list[tuple[float, float, Interval]]  # round, mean text bytes, score in points

SHOWN = 4  # arms whose exchanges are drawn
FIRST = (ROUTED, LOCAL)  # in every row of curves, to compare with
BLUES = LinearSegmentedColormap.from_list("taught", [PAPER, "#56B4E9", "#004C8C"])


def learning(summary: Row, federation: str) -> Figure:
    """The mean score of benign agents of every arm, by round and by text bytes; bands are 95 % over seeds."""
    about = summary["federations"][federation]
    records = [record for record in summary["records"] if record["federation"] == federation]
    names = [row["arm"] for row in about["arms"]]
    curves = {name: _curve(records, name, about["score"]) for name in names}
    rows = rows_of(names, FIRST)
    picture = canvas(11.2, 3.9 * len(rows) + 0.2)
    panels = picture.subplots(len(rows), 2, squeeze=False, sharex="col", sharey=True)
    for (left, right), shown in zip(panels, rows, strict=True):
        seeds = len(about["seeds"])
        dress(left, f"{label(federation, 24)}: by round, {seeds} seeds", "round", f"{about['score']}, benign agents, %")
        dress(right, "by text that travelled (dashed: none)", "bytes of text, up to the round", "")
        lines = [_draw((left, right), _label(about, name), at, curves[name]) for at, name in enumerate(shown)]
        round_axis(left, 0, about["rounds"])
        byte_axis(right, [point[1] for curve in curves.values() for point in curve])
        for axes in (left, right):
            axes.tick_params(labelbottom=True)
        right.legend(handles=lines, loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=10, frameon=False)
    return picture


def _label(about: Row, arm: str) -> str:
    """The arm's name, and its seeds where they are not all of the federation's."""
    (seeds,) = [row["seeds"] for row in about["arms"] if row["arm"] == arm]
    return label(arm, 24) if seeds == len(about["seeds"]) else f"{label(arm, 24)} (n = {seeds})"


def _curve(records: Sequence[Row], arm: str, score: str) -> Curve:
    """The points of all rounds that every finished seed has; the warm start is round 0 of every arm."""
    seeds = {record["seed"] for record in records if record["arm"] == arm}
    by_round: dict[int, list[Row]] = {}
    for record in records:
        if record["seed"] in seeds and record["arm"] in (arm, START) and score in record["benign"]:
            by_round.setdefault(record["round"], []).append(record)
    return [
        (
            t,
            float(np.mean([one["text_bytes"] for one in found])),
            over_seeds([100 * one["benign"][score] for one in found]),
        )
        for t, found in sorted(by_round.items())
        if len(found) == len(seeds)
    ]


def _draw(panels: tuple[Axes, Axes], name: str, place: int, curve: Curve) -> Line2D:
    """One arm in both panels; an arm that sends no text is a level line in the second."""
    look: dict[str, Any] = {**style(place), "linewidth": 2, "markersize": 5, "zorder": 3}
    sent = [point for point in curve if point[1] > 0]
    for axes, points, along in ((panels[0], curve, 0), (panels[1], sent, 1)):
        if points:
            at: list[Any] = [point[along] for point in points]
            line(axes, at, [point[2] for point in points], look)
    if curve and not sent:
        panels[1].axhline(curve[-1][2][0], color=look["color"], linewidth=2, linestyle="--", zorder=2)
    return Line2D([], [], label=name, **look)


def teaching(summary: Row, federation: str) -> Figure | None:
    """Source by receiver, one panel an arm: what each taught whom, mean over seeds. None if nobody taught anybody."""
    about = summary["federations"][federation]
    ordered = sorted(about["taught"].items(), key=lambda item: (item[0] != ROUTED, item[0] != PAIRED))
    shown = [(name, pairs) for name, pairs in ordered if pairs][:SHOWN]
    if not shown:
        return None
    names = list(about["faults"])
    side = 1.6 + 0.42 * len(names)
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    picture = canvas(columns * (side + 1.4), rows * (side + 0.7))
    title = f"{label(federation, 24)}: {about['unit']} from source to receiver in a whole run, mean over seeds"
    picture.suptitle(title, fontsize=12, color=INK)
    panels = picture.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, pairs) in zip(panels, shown, strict=False):
        matrix = np.zeros((len(names), len(names)))
        for source, receiver, count in pairs:
            matrix[names.index(source), names.index(receiver)] = count
        _heat(axes, matrix, about["faults"], _label(about, name))
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    return picture


def _heat(axes: Axes, matrix: np.ndarray, faults: Mapping[str, str], title: str) -> None:
    most = matrix.max()
    axes.imshow(matrix, cmap=BLUES, vmin=0, vmax=most, aspect="equal")
    axes.set_title(title, fontsize=12, color=INK, loc="left", pad=10)
    names = [label(f"{name} ({fault})" if fault else name, 18) for name, fault in faults.items()]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("receiver", fontsize=10.5, color=INK)
    axes.set_ylabel("source", fontsize=10.5, color=INK)
    axes.tick_params(labelsize=10, colors=INK, length=0)
    axes.spines[:].set_color(GREY)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for tick, fault in zip(ticks, faults.values(), strict=True):
            tick.set_color("#B34700" if fault else INK)
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            colour = PAPER if count > 0.7 * most else INK
            axes.text(column, row, _count(count), ha="center", va="center", fontsize=8.5, color=colour)


def _count(value: float) -> str:
    return f"{value:.1f}" if value < 10 and value != round(value) else f"{value:.0f}"
