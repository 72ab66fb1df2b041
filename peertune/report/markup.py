"""Pieces of the page. All text passes `text`: names and causes in a ledger are foreign."""

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peertune.report.pictures import Picture
from peertune.report.reading import plain
from peertune.report.table import Table


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture with its file."""

    picture: Picture
    raw: bytes


def text(text: str) -> str:
    return html.escape(plain(text))


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{text(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str) -> str:
    return f"<p>{text(text)}</p>"


def none(text: str) -> str:
    return f'<p class="none">{text(text)}</p>'


def facts(facts: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in facts)}</dl>"


def as_table(table: Table) -> str:
    if not table.rows:
        return ""
    head = "".join(_cell("th", name, place >= table.labels) for place, name in enumerate(table.columns))
    rows = "".join(
        f"<tr>{''.join(_cell('td', text, place >= table.labels) for place, text in enumerate(row))}</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{text(table.note)}</p>' if table.note else ""
    return (
        f'<h3>{text(table.title)}</h3><div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{note}"
    )


def _cell(tag: str, text: str, number: bool) -> str:
    return f"<{tag}{' class=number' if number else ''}>{text(text)}</{tag}>"


def pictures(drawn: Sequence[Drawn], section: str) -> str:
    figures = "".join(_figure(item) for item in drawn if item.picture.section == section)
    return f'<div class="pictures">{figures}</div>' if figures else ""


def _figure(item: Drawn) -> str:
    data = base64.b64encode(item.raw).decode()
    caption = f"<figcaption>{text(item.picture.caption)}</figcaption>"
    wide = " class=wide" if item.picture.wide else ""
    image = (
        f'<img src="data:image/png;base64,{data}" alt="{text(item.picture.caption)}" width="{item.picture.css_width}">'
    )
    return f"<figure{wide}>{image}{caption}</figure>"
