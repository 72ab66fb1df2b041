"""One table of the report, and words for its cells."""

from dataclasses import dataclass

ABSENT = "–"


def counted(number: int, what: str) -> str:
    """1 seed, 2 seeds ..."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` hold one text a column; the first `labels` columns are words, the others numbers. `note` may be empty.

    The last `totals` rows sum up the others.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    labels: int = 1
    totals: int = 0
