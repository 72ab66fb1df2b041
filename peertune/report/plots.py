"""Curves and bars of a run: learning, rewards predicted and realised, bytes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from peertune.ledger import Event
from peertune.report.canvas import GREY, INK, MARKERS, PALETTE, dress, figure, label, round_axis
from peertune.report.reading import LINKS, START, Flow, Volume, readable_bytes

Curves = Mapping[str, Mapping[str, Mapping[int, float]]]  # arm -> agent -> round -> value


def learning_curves(curves: Curves, title: str, unit: str) -> Figure:
    """The mean over agents of each arm, every agent faint behind it; the start is round 0 of every arm."""
    picture, axes = figure(4.0)
    dress(axes, title, "round", unit)
    shown = {arm: curves[arm] for arm in curves if arm != START} or curves
    means: list[Line2D] = []
    for place, (arm, agents) in enumerate(shown.items()):
        colour = _colour(place, len(shown))
        joined = {agent: {**curves.get(START, {}).get(agent, {}), **values} for agent, values in agents.items()}
        for values in joined.values():
            axes.plot(*_line(values), color=colour, alpha=0.28, linewidth=1.0, zorder=2)
        mean = _mean_over(joined)
        marker = MARKERS[place % len(MARKERS)]
        means += axes.plot(*_line(mean), color=colour, linewidth=2.4, marker=marker, zorder=3, label=label(arm, 20))
    rounds = [round_ for agents in curves.values() for values in agents.values() for round_ in values]
    round_axis(axes, min(rounds), max(rounds))
    faint = Line2D([], [], color=GREY, linewidth=1.0, label="one agent")
    _legend_below(picture, [*means, faint])
    return picture


def _mean_over(agents: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """The mean of each round in which all of these agents have a value, so that it is always over the same agents."""
    rounds = set.intersection(*(set(values) for values in agents.values()))
    return {round_: float(np.mean([values[round_] for values in agents.values()])) for round_ in rounds}


def _line(values: Mapping[int, float]) -> tuple[list[int], list[float]]:
    rounds = sorted(values)
    return rounds, [values[round_] for round_ in rounds]


def _colour(place: int, count: int) -> str:
    """The method, which comes last, has the first colour in every run."""
    return PALETTE[(count - 1 - place) % len(PALETTE)]


def reward_history(pairs: Sequence[Event], title: str, limits: tuple[float, float]) -> Figure:
    """Every exchange of one arm by round: what the matchmaker predicted, where it did, and what came."""
    picture, axes = figure(3.8)
    dress(axes, title, "round", "reward")
    axes.axhline(0, color=INK, linewidth=0.9)
    for x, event in zip(places(pairs), pairs, strict=True):
        reward, predicted = event.body["reward"], event.body["predicted"]
        if predicted is not None:
            axes.plot([x, x], [predicted, reward], color=GREY, linewidth=1.0, zorder=2)
            axes.plot(x, predicted, "o", color=PALETTE[3], markerfacecolor="white", markersize=6, zorder=3)
        axes.plot(x, reward, "o", color=PALETTE[0], markersize=6, zorder=4)
    rounds = [event.round for event in pairs]
    round_axis(axes, min(rounds), max(rounds))
    axes.set_ylim(*limits)
    handles = [Line2D([], [], marker="o", linestyle="", color=PALETTE[0], label="realised")]
    if any(event.body["predicted"] is not None for event in pairs):
        handles.append(
            Line2D([], [], marker="o", linestyle="", color=PALETTE[3], markerfacecolor="white", label="predicted")
        )
    _legend_below(picture, handles)
    return picture


def reward_limits(pairs: Sequence[Event]) -> tuple[float, float]:
    """One scale for the rewards of all arms, with zero on it."""
    values = [event.body[key] for event in pairs for key in ("reward", "predicted") if event.body[key] is not None]
    low, high = min(0.0, *values), max(0.0, *values)
    air = 0.08 * (high - low) or 0.1
    return low - air, high + air


def places(pairs: Sequence[Event]) -> list[float]:
    """Where each exchange stands on the axis of rounds: those of one round side by side, in order."""
    in_round: dict[int, int] = defaultdict(int)
    for event in pairs:
        in_round[event.round] += 1
    seen: dict[int, int] = defaultdict(int)
    found = []
    for event in pairs:
        count, seen[event.round] = in_round[event.round], seen[event.round] + 1
        found.append(event.round + (seen[event.round] - (count + 1) / 2) * 0.7 / count)
    return found


def traffic_bars(volumes: Mapping[Flow, Volume], arms: Sequence[str]) -> Figure:
    """Bytes of the rounds by arm and link, stacked by payload."""
    totals: dict[tuple[str, str], dict[str, int]] = {
        (arm, link): {flow.payload: volume.bytes for flow, volume in volumes.items() if _is(flow, arm, link)}
        for arm in arms
        for link in LINKS
    }
    bars = {key: parts for key, parts in totals.items() if parts}
    payloads = sorted({payload for parts in bars.values() for payload in parts})
    picture, axes = figure(1.6 + 0.52 * max(1, len(bars)))
    dress(axes, "Bytes in rounds", "", "")
    widest = max((sum(parts.values()) for parts in bars.values()), default=1)
    for row, parts in enumerate(bars.values()):
        left = 0
        for payload, count in sorted(parts.items()):
            colour = PALETTE[payloads.index(payload) % len(PALETTE)]
            axes.barh(row, count, left=left, color=colour, height=0.62, edgecolor="white", linewidth=0.6)
            left += count
        axes.text(left + 0.01 * widest, row, readable_bytes(left), va="center", fontsize=10, color=INK)
    axes.set_yticks(range(len(bars)), [f"{label(arm)}\n{link}" for arm, link in bars])
    axes.set_ylim(max(1, len(bars)) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * widest)
    _byte_axis(axes)
    handles = [
        Line2D(
            [], [], marker="s", linestyle="", markersize=9, color=PALETTE[place % len(PALETTE)], label=label(payload)
        )
        for place, payload in enumerate(payloads)
    ]
    _legend_below(picture, handles)
    return picture


def _is(flow: Flow, arm: str, link: str) -> bool:
    return (flow.arm, flow.phase, flow.link) == (arm, "round", link)


def _byte_axis(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: readable_bytes(value)))
    axes.locator_params(axis="x", nbins=4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _legend_below(picture: Figure, handles: Sequence[Line2D]) -> None:
    if handles:
        columns = min(len(handles), 4)
        picture.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=10, frameon=False)
