"""Pieces of the page. All text passes `escaped`: names and causes in a ledger are foreign."""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peertune.report.pictures import Picture
from peertune.report.reading import plain
from peertune.report.table import Table

LONG = 32  # letters; longer texts are broken into lines


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture with its file."""

    picture: Picture
    raw: bytes


def escaped(text: str) -> str:
    """`text` in one line that can neither be markup nor move or hide what stands around it."""
    return html.escape(plain(text))


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escaped(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={kind}' if kind else ''}>{escaped(text)}</p>"


def definitions(facts: Iterable[tuple[str, str]]) -> str:
    """Names and values, one below the other."""
    return f"<dl>{''.join(f'<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>' for name, value in facts)}</dl>"


def grid(table: Table, titled: bool = True) -> str:
    """A table with title and note, which scrolls sideways where the screen is narrow; nothing if it has no rows."""
    if not table.rows:
        return ""
    details = len(table.rows) - table.totals
    head = _row("th", table.columns, table.labels)
    rows = "".join(_row("td", row, table.labels, place >= details) for place, row in enumerate(table.rows))
    title = f"<h3>{escaped(table.title)}</h3>" if titled else ""
    note = paragraph(table.note, "note") if table.note else ""
    body = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return f'{title}<div class="scroll" tabindex="0">{body}</div>{note}'


def _row(tag: str, cells: Sequence[str], labels: int, total: bool = False) -> str:
    parts = (f"<{tag}{_kind(text, place >= labels)}>{escaped(text)}</{tag}>" for place, text in enumerate(cells))
    return f"<tr{' class=total' if total else ''}>{''.join(parts)}</tr>"


def _kind(text: str, number: bool) -> str:
    if number:
        return " class=number"
    return " class=long" if len(text) > LONG else ""


def gallery(drawn: Sequence[Drawn], section: str) -> str:
    """The pictures of one section side by side; nothing if there are none."""
    figures = "".join(_figure(item) for item in drawn if item.picture.section == section)
    return f'<div class="pictures">{figures}</div>' if figures else ""


def _figure(item: Drawn) -> str:
    data, caption = base64.b64encode(item.raw).decode(), escaped(item.picture.caption)
    wide = " class=wide" if item.picture.wide else ""
    image = f'<img src="data:image/png;base64,{data}" alt="{caption}" width="{item.picture.css_width}">'
    return f"<figure{wide}>{image}<figcaption>{caption}</figcaption></figure>"
