"""Where something was found in a text, and the text without it."""

from collections.abc import Iterable
from typing import NamedTuple


class Span(NamedTuple):
    """Characters `start` to `end` of a text are a find of `rule`."""

    start: int
    end: int
    rule: str


def merged(spans: Iterable[Span]) -> list[Span]:
    """Finds that overlap become one, under the name of the one that begins first, the longest of those."""
    whole: list[Span] = []
    for span in sorted(spans, key=lambda each: (each.start, -each.end, each.rule)):
        if whole and span.start < whole[-1].end:
            whole[-1] = whole[-1]._replace(end=max(whole[-1].end, span.end))
        else:
            whole.append(span)
    return whole


def redacted(text: str, spans: Iterable[Span]) -> str:
    """The text with `[rule]` in the place of each of `spans`, which are in order and do not overlap."""
    parts, at = [], 0
    for span in spans:
        parts += [text[at : span.start], f"[{span.rule}]"]
        at = span.end
    return "".join((*parts, text[at:]))
