"""Pictures of who taught whom: a graph over the whole run, and a timeline of rounds and agents, one arm each."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from peertune.ledger import Event
from peertune.report.canvas import GREY, INK, REWARDS, WIDTH, dress, figure, label, name_agents, round_axis
from peertune.report.plots import places
from peertune.report.table import counted

Pair = tuple[str, str]  # source, receiver


def reward_scale(pairs: Sequence[Event]) -> TwoSlopeNorm:
    """One scale of colours for all arms, with grey at zero."""
    widest = max((abs(event.body["reward"]) for event in pairs), default=0.0) or 1.0
    return TwoSlopeNorm(0.0, -widest, widest)


def pairing_graph(pairs: Sequence[Event], agents: Sequence[str], title: str, scale: TwoSlopeNorm) -> Figure:
    """Agents on a circle; an arrow source -> receiver, as wide as it was frequent, coloured by its mean reward."""
    rewards = _rewards(pairs)
    picture, axes = figure(5.2)
    axes.set_title(title, fontsize=12, color=INK, loc="left", pad=10)
    points = _circle(agents)
    most = max(len(values) for values in rewards.values())
    for (source, receiver), values in sorted(rewards.items(), key=lambda item: len(item[1])):
        colour = REWARDS(scale(float(np.mean(values))))
        axes.add_patch(
            _arrow(points[source], points[receiver], colour, 1.2 + 4.0 * (len(values) - 1) / max(1, most - 1), 0.16)
        )
    for name, (x, y) in points.items():
        axes.plot(x, y, "o", markersize=15, color="white", markeredgecolor=INK, markeredgewidth=1.4, zorder=5)
        sideways = "left" if x > 0.1 else "right" if x < -0.1 else "center"
        upright = "bottom" if y > 0.9 else "top" if y < -0.9 else "center"
        axes.text(1.14 * x, 1.14 * y, label(name), ha=sideways, va=upright, fontsize=11, color=INK)
    axes.set_xlim(-1.75, 1.75)
    axes.set_ylim(-1.3, 1.3)
    axes.set_aspect("equal")
    axes.set_axis_off()
    _reward_bar(picture, axes, scale, f"mean reward (widest arrow: {counted(most, 'exchange')})")
    return picture


def pairing_timeline(
    pairs: Sequence[Event], failures: Sequence[Event], agents: Sequence[str], title: str, scale: TwoSlopeNorm
) -> Figure:
    """Every exchange as an arrow between the lines of two agents, in its round; failed calls as crosses."""
    rounds = [event.round for event in (*pairs, *failures)]
    span = max(rounds) - min(rounds) + 1
    picture, axes = figure(2.0 + 0.42 * len(agents), min(4 * WIDTH, max(WIDTH, 0.32 * span + 1.4)))
    dress(axes, title, "round", "")
    axes.grid(visible=False, axis="x")
    name_agents(axes, agents)
    round_axis(axes, min(rounds), max(rounds))
    for edge in range(min(rounds), max(rounds)):
        axes.axvline(edge + 0.5, color="#e3e6ea", linewidth=0.8, zorder=0)
    line = {name: place for place, name in enumerate(agents)}
    for x, event in zip(places(pairs), pairs, strict=True):
        source, receiver = line[event.body["source"]], line[event.body["receiver"]]
        colour = REWARDS(scale(event.body["reward"]))
        axes.plot(x, source, "o", color=colour, markersize=5, zorder=4)
        axes.add_patch(_arrow((x, source), (x, receiver), colour, 2.2, 0.0))
    known = [event for event in failures if event.body["agent"] in line]
    for event in known:
        axes.plot(
            event.round, line[event.body["agent"]], "X", color=INK, markersize=9, markeredgecolor="white", zorder=6
        )
    if known:
        cross = Line2D(
            [], [], marker="X", linestyle="", color=INK, markersize=9, markeredgecolor="white", label="a call failed"
        )
        picture.legend(handles=[cross], loc="outside upper right", fontsize=10, frameon=False)
    _reward_bar(picture, axes, scale, "reward")
    return picture


def _rewards(pairs: Sequence[Event]) -> Mapping[Pair, list[float]]:
    rewards: dict[Pair, list[float]] = defaultdict(list)
    for event in pairs:
        rewards[event.body["source"], event.body["receiver"]].append(event.body["reward"])
    return rewards


def _circle(names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """The first on top, the others clockwise."""
    turns = np.pi / 2 - 2 * np.pi * np.arange(len(names)) / len(names)
    return {name: (float(np.cos(turn)), float(np.sin(turn))) for name, turn in zip(names, turns, strict=True)}


def _arrow(
    start: tuple[float, float], end: tuple[float, float], colour: tuple[float, ...], width: float, bend: float
) -> FancyArrowPatch:
    shrink = 11.0 if bend else 0.0  # points: arrows end at the rim of the graph's circles, at the timeline's lines
    return FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=9 + 2.2 * width,
        connectionstyle=f"arc3,rad={bend}",
        color=colour,
        linewidth=width,
        shrinkA=shrink,
        shrinkB=shrink,
        zorder=3,
    )


def _reward_bar(picture: Figure, axes: Axes, scale: TwoSlopeNorm, text: str) -> None:
    bar = picture.colorbar(
        ScalarMappable(scale, REWARDS), ax=axes, orientation="horizontal", shrink=0.7, aspect=32, pad=0.04
    )
    bar.set_label(text, fontsize=10.5, color=INK)
    bar.ax.tick_params(labelsize=10, colors=INK, color=GREY)
    bar.ax.locator_params(axis="x", nbins=5)
    bar.outline.set_visible(False)
