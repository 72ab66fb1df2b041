"""What the pictures of studies share: canvases of many panels, curves with bands, axes of bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from peertune.report.canvas import DPI, MARKERS, PALETTE, PAPER
from peertune.report.reading import readable_bytes

A_ROW = 6  # curves that a reader can tell apart


def canvas(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI * 0.75, facecolor=PAPER)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure


def rows_of(names: Sequence[str], first: Sequence[str]) -> list[list[str]]:
    """The arms that share a row of panels; those of `first` are in every row, to compare with."""
    held = [name for name in first if name in names]
    others = [name for name in names if name not in held]
    size = A_ROW - len(held)
    return [[*held, *others[at : at + size]] for at in range(0, max(1, len(others)), size)]


def style(place: int) -> dict[str, Any]:
    """Colour and marker, told apart for 43 places. The first colour is of place 0 alone, which others stand beside."""
    around, colour = divmod(place - 1, len(PALETTE) - 1) if place else (0, -1)
    return {"color": PALETTE[colour + 1], "marker": MARKERS[(colour + 1 + around) % len(MARKERS)]}


def line(axes: Axes, at: Sequence[float], values: Sequence[Sequence[float]], look: dict[str, Any]) -> None:
    """A curve of estimates and the band of their intervals; `values` are (estimate, low, high)."""
    bounds = np.array(values)
    axes.plot(at, bounds[:, 0], **look)
    axes.fill_between(at, bounds[:, 1], bounds[:, 2], color=look["color"], alpha=0.13, linewidth=0)


def byte_axis(axes: Axes, found: Sequence[float]) -> None:
    """Positive counts on a logarithmic scale; no ticks if there are none."""
    positive = [count for count in found if count > 0]
    if not positive:
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    axes.set_xlim(min(positive) / 1.4, max(positive) * 1.4)
    spread = max(positive) / min(positive)
    steps = (1.0, 2.0, 5.0) if spread < 40 else (1.0, 3.0) if spread < 1000 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=8))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: readable_bytes(count)))
