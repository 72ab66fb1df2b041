"""From the records of the matchmaking study to intervals, verdicts, a Markdown table and a picture.

Intervals are 95 % percentile bootstrap over seeds, paired: policies of one seed met the same federation, so seeds are
drawn, not records.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from peertune.errors import StorageError
from peertune.report.canvas import INK, MARKERS, PALETTE, dress, png
from peertune.studies.markdown import table

RESAMPLES = 2000
MEASURES = ("reward", "regret", "skill", "worst", "abstained")
ENDS = ("reward", "skill", "worst")  # what must not be below random
BASELINE, BOUND = "uniform", "oracle"

Record = Mapping[str, Any]
Interval = tuple[float, float, float]  # estimate, 2.5 %, 97.5 %
Pages = Mapping[str, Callable[[Sequence[Record]], str | bytes]]  # by file: made of the summary's rows


def interval(statistic: Callable[[np.ndarray], np.ndarray], columns: np.ndarray) -> Interval:
    """Estimate and interval of `statistic`, which maps means [..., columns] to [...]; `columns` is [seeds, columns]."""
    random = np.random.default_rng(0)
    drawn = random.integers(len(columns), size=(RESAMPLES, len(columns)))
    low, high = np.percentile(statistic(columns[drawn].mean(axis=1)), [2.5, 97.5])
    return float(statistic(columns.mean(axis=0))), float(low), float(high)


def summarise(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row for each environment x agents x heterogeneity x policy, each figure as (estimate, low, high)."""
    groups: dict[tuple[str, int, str], dict[str, dict[int, Record]]] = {}
    for record in records:
        key = (record["environment"], record["agents"], record["heterogeneity"])
        groups.setdefault(key, {}).setdefault(record["arm"], {})[record["seed"]] = record
    rows = []
    for (environment, agents, heterogeneity), arms in sorted(groups.items()):
        seeds = sorted(arms[BASELINE])
        for arm, by_seed in arms.items():
            row = {"environment": environment, "agents": agents, "heterogeneity": heterogeneity, "arm": arm}
            rows.append({**row, "seeds": len(seeds), **_figures(arms, by_seed, seeds)})
    return rows


def _figures(
    arms: Mapping[str, Mapping[int, Record]], mine: Mapping[int, Record], seeds: Sequence[int]
) -> dict[str, Interval]:
    def values(by_seed: Mapping[int, Record], measure: str) -> list[float]:
        return [by_seed[seed][measure] for seed in seeds]

    figures = {measure: interval(_first, np.array([values(mine, measure)]).T) for measure in MEASURES}
    for measure in ENDS:
        pair = np.array([values(mine, measure), values(arms[BASELINE], measure)]).T
        figures[f"{measure}_over_{BASELINE}"] = interval(_difference, pair)
    rewards = [values(one, "reward") for one in (mine, arms[BASELINE], arms[BOUND])]
    figures["gap_closed"] = interval(_gap_closed, np.array(rewards).T)
    return figures


def _first(means: np.ndarray) -> np.ndarray:
    return means[..., 0]


def _difference(means: np.ndarray) -> np.ndarray:
    return means[..., 0] - means[..., 1]


def _gap_closed(means: np.ndarray) -> np.ndarray:
    """How far from uniform pairs (0) to the exact oracle (1)."""
    return (means[..., 0] - means[..., 1]) / (means[..., 2] - means[..., 1])


def below_uniform(rows: Sequence[Record], arm: str) -> list[str]:
    """Where, and in what, a policy is below uniform pairs with its whole interval."""
    return [
        f"{_place(row)}: {measure} {estimate:+.4f} ({low:+.4f} to {high:+.4f})"
        for row in rows
        if row["arm"] == arm
        for measure in ENDS
        for estimate, low, high in [row[f"{measure}_over_{BASELINE}"]]
        if high < 0
    ]


def markdown(rows: Sequence[Record]) -> str:
    """The page's tables: where policies fall below random, the gap closed, and the means behind it."""
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm != BASELINE]
    policies = [arm for arm in arms if not arm.startswith(BOUND)]
    cells = len(rows) // (len(arms) + 1)
    lines = ["Significantly below `uniform` (whole interval under 0):", ""]
    for arm in policies:
        found = below_uniform(rows, arm)
        by = [f"{sum(f': {measure} ' in one for one in found)} in {measure}" for measure in ENDS]
        lines.append(f"* `{arm}`, of {cells} settings: {', '.join(by)}")
        lines += [f"    * {one}" for one in found if arm == "pairwise"]
    shown = [arm for arm in arms if arm != BOUND]
    lines += ["", "Share of the gap in mean reward between `uniform` (0) and the exact oracle (1), 95 % interval:", ""]
    lines += table(("environment", "agents", "heterogeneity", *shown), _gap_lines(rows, shown))
    lines += ["", "Means over the three heterogeneities:", ""]
    columns = (
        "environment",
        "agents",
        "policy",
        "reward",
        "regret a round",
        "final skill",
        "worst agent",
        "left empty",
    )
    return "\n".join(lines + table(columns, _mean_lines(rows))) + "\n"


def _gap_lines(rows: Sequence[Record], arms: Sequence[str]) -> list[list[str]]:
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        estimate, low, high = row["gap_closed"]
        key = (row["environment"], str(row["agents"]), row["heterogeneity"])
        found.setdefault(key, {})[row["arm"]] = f"{estimate:.2f} ({low:.2f} to {high:.2f})"
    return [[*key, *(texts[arm] for arm in arms)] for key, texts in found.items()]


def _mean_lines(rows: Sequence[Record]) -> list[list[str]]:
    groups: dict[tuple[str, int, str], list[Record]] = {}
    for row in rows:
        groups.setdefault((row["environment"], row["agents"], row["arm"]), []).append(row)
    return [
        [key[0], str(key[1]), key[2], *(f"{np.mean([row[measure][0] for row in group]):.4f}" for measure in MEASURES)]
        for key, group in groups.items()
    ]


def _place(row: Record) -> str:
    return f"{row['environment']}, {row['agents']} agents, {row['heterogeneity']}"


def picture(rows: Sequence[Record]) -> bytes:
    """Gap closed by number of agents, one panel an environment; points and bands are means over heterogeneities."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm not in (BASELINE, BOUND)]
    environments = list(dict.fromkeys(row["environment"] for row in rows))
    canvas = Figure(figsize=(5.6 * len(environments), 4.2), dpi=144, facecolor="#ffffff")
    FigureCanvasAgg(canvas)
    canvas.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    for axes, environment in zip(canvas.subplots(1, len(environments), squeeze=False)[0], environments, strict=True):
        dress(axes, environment, "agents", "gap closed: 0 random, 1 oracle")
        axes.axhline(0, color=INK, linewidth=0.9)
        axes.axhline(1, color=INK, linewidth=0.9, linestyle=":")
        for place, arm in enumerate(arms):
            mine = [row for row in rows if row["environment"] == environment and row["arm"] == arm]
            sizes = sorted({row["agents"] for row in mine})
            bounds = np.array(
                [np.mean([row["gap_closed"] for row in mine if row["agents"] == size], axis=0) for size in sizes]
            )
            colour, marker = PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]
            axes.plot(sizes, bounds[:, 0], color=colour, marker=marker, linewidth=2, label=arm)
            axes.fill_between(sizes, bounds[:, 1], bounds[:, 2], color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes := sorted({row["agents"] for row in rows}), [str(size) for size in sizes])
    handles, labels = canvas.axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=len(arms), fontsize=10, frameon=False)
    return png(canvas)


PAGES: Pages = {"table.md": markdown, "figure.png": picture}


def write(folder: Path, plan: Mapping[str, Any], rows: Sequence[Record], pages: Pages = PAGES) -> list[Path]:
    """summary.json and the pages made of it, in `folder`, replacing those of an earlier study."""
    summary = [{key: _rounded(value) for key, value in row.items()} for row in rows]
    document = "\n".join(json.dumps(row) for row in summary)
    text = f'{{"plan": {json.dumps(plan)}, "rows": [\n{document}\n]}}\n'.replace("}\n{", "},\n{")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(text, encoding="utf-8")
        for name, page in pages.items():
            content = page(summary)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); name another folder with --to") from error
    return [folder / "summary.json", *(folder / name for name in pages)]


def _rounded(value: Any) -> Any:
    return [round(number, 5) for number in value] if isinstance(value, tuple) else value
