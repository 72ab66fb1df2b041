"""Tables of a study's page, and numbers with their intervals."""

from collections.abc import Iterable, Sequence

from peertune.report.table import ABSENT


def table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)]


def points(values: Sequence[float] | None, sign: str = "", digits: int = 1) -> str:
    """An estimate and its interval, times 100."""
    if values is None:
        return ABSENT
    estimate, low, high = (f"{100 * value:{sign}.{digits}f}" for value in values)
    return f"{estimate} ({low} to {high})"


def readable_flops(count: float) -> str:
    """12 FLOP, 3.45 MFLOP, 5.67 TFLOP ... in steps of 1000."""
    size, unit = flop_unit(count)
    return f"{round(count / size, 2):g} {unit}"


def flop_unit(count: float) -> tuple[float, str]:
    """The largest unit that `count` has one of: its size, and its name."""
    place = next((place for place in range(5, 0, -1) if count >= 1000**place), 0)
    return 1000.0**place, ("", "k", "M", "G", "T", "P")[place] + "FLOP"
