"""One table of the report."""

from dataclasses import dataclass, field

ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """`rows` hold one text a column; the first `labels` columns are words, the others numbers. `note` may be empty."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
    labels: int = field(default=1)
