"""Passages of private text are found in whatever layout, if they are long enough; nothing else is."""

import random
import string
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertune.guard.copies import FOUND, STRIDE, WINDOW, Copies
from peertune.guard.spans import redacted


def prose(length: int, seed: int) -> str:
    """Random words: no two draws share a passage."""
    return "".join(random.Random(seed).choices(string.ascii_letters + string.digits + "   \n", k=length))


PRIVATE = [prose(length, seed) for seed, length in enumerate((30, 49, 200, 1000, 50_000))]
COPIES = Copies(PRIVATE)


def letters(text: str) -> int:
    return len("".join(text.split()))


@given(st.sampled_from(PRIVATE[2:]), st.integers(0, 800), st.integers(1, 150), st.integers(0, 60))
def test_every_long_passage_is_found_whole_and_no_short_one(own: str, at: int, length: int, beside: int) -> None:
    passage = own[at : at + length].strip()
    before, after = prose(beside, 99), prose(beside, 98)
    text = f"{before}{passage}{after}"
    spans = list(COPIES.find(text))
    if letters(passage) >= FOUND:
        assert len(spans) == 1
        (span,) = spans
        assert span.start <= len(before) and span.end >= len(before) + len(passage)
        assert letters(text[span.start : len(before)]) < STRIDE
        assert letters(text[len(before) + len(passage) : span.end]) < STRIDE
    elif letters(passage) + 2 < WINDOW:  # the neighbours may go on by chance
        assert spans == []


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        lambda passage: "".join(passage.split()),
        lambda passage: " \t\n".join(passage),
        lambda passage: passage.replace(" ", "\u00a0"),
    ],
)
def test_another_layout_hides_nothing(change: object) -> None:
    assert callable(change)
    changed = change(PRIVATE[3][100:200])
    (span,) = COPIES.find(changed)
    assert changed[span.start : span.end].strip() == changed.strip()
    assert redacted(changed, [span]).strip() == "[copy]"


def test_two_passages_are_two_finds() -> None:
    text = PRIVATE[3][:80] + prose(100, 77) + PRIVATE[2][:80]
    first, second = COPIES.find(text)
    assert first.start == 0 and first.end < second.start and second.end == len(text)


def test_what_everybody_has_is_nobodys() -> None:
    public = PRIVATE[3][200:400]
    copies = Copies(PRIVATE, [f"task: {public}"])
    assert list(copies.find(public)) == []
    assert list(copies.find(PRIVATE[3][400:500]))
    assert list(copies.find(PRIVATE[2]))


def test_a_passage_does_not_reach_from_one_text_into_the_next() -> None:
    copies = Copies([PRIVATE[2][:25], PRIVATE[3][:25]] * 20)
    assert list(copies.find(PRIVATE[2][:25] + PRIVATE[3][:25])) == []


@pytest.mark.parametrize("text", ["", "short", "\ud800" * 3, "\0" * 100, "北京" * 40])
def test_texts_of_other_people(text: str) -> None:
    assert list(COPIES.find(text)) == [] == list(Copies([]).find(text))
    assert len(list(Copies([text]).find(text))) == (len(text) >= FOUND)


def test_it_takes_less_than_a_byte_for_two_characters() -> None:
    length = letters(PRIVATE[4])
    copies = Copies(PRIVATE[4:])
    assert len(copies._remembered) == (length - WINDOW) // STRIDE + 1
    assert copies._remembered.dtype == np.uint64


def test_a_million_characters_take_a_moment() -> None:
    text = PRIVATE[4] * 20
    began = time.process_time()
    assert len(list(COPIES.find(text))) == 1
    assert time.process_time() - began < 3
