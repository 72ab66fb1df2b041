"""What all pictures share: one look, colours that everyone can tell apart, PNG bytes. No global state."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from peertune.report.reading import plain

DPI = 192  # two pixels a CSS pixel: sharp on a phone
WIDTH = 5.6  # inches; pictures stand side by side on a wide page and below each other on a narrow one
INK, GREY, PAPER = "#1b1f24", "#8a919b", "#ffffff"
# Okabe and Ito, Color Universal Design, without the yellow that white paper swallows
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
REWARDS = LinearSegmentedColormap.from_list("rewards", ["#B34700", "#E69F00", "#a9aeb5", "#56B4E9", "#004C8C"])


def figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """An empty figure with one plot area, in inches."""
    canvas = Figure(figsize=(width, height), dpi=DPI, facecolor=PAPER)
    FigureCanvasAgg(canvas)
    canvas.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return canvas, canvas.add_subplot()


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, axis names, a light grid and no box."""
    axes.set_title(title, fontsize=12, color=INK, loc="left", pad=10)
    axes.set_xlabel(x, fontsize=10.5, color=INK)
    axes.set_ylabel(y, fontsize=10.5, color=INK)
    axes.tick_params(labelsize=10, colors=INK, color=GREY)
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def round_axis(axes: Axes, first: int, last: int) -> None:
    """Whole rounds from `first` to `last`, with half a round of air on both sides."""
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))


def name_agents(axes: Axes, names: Sequence[str]) -> None:
    """One line an agent, the first on top."""
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def label(text: str, length: int = 16) -> str:
    """Foreign text for a picture: short, in letters that the font has, and never read as a formula."""
    short = plain(text).encode("ascii", "replace").decode()
    short = short if len(short) <= length else short[: length - 1] + "…"
    return short.replace("$", r"\$")


def png(picture: Figure) -> bytes:
    """The picture's file; the same picture gives the same bytes."""
    file = io.BytesIO()
    picture.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
