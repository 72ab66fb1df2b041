"""Positions of two tokenizations: what corresponds, and what is masked."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_align_tokens import sentencepiece_like
from tiny import make_tokenizer
from transformers import PreTrainedTokenizerFast

from peertune.align import Vocabulary
from peertune.align.positions import BEFORE, MASKED, Positions, match, starts
from peertune.errors import PayloadError

REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "tokenizers"
BUNDLED = Path(__file__).parent.parent / "peertune" / "models"
TEXTS = (
    "we utilize the dynamic",
    "Ünïcödé über alles: naïve café, 東京 🙂",
    "def f(xs):\n\treturn  sum(xs)\n",
    "a",
    "",
)
ROLES = {"bos": 0, "eos": 1}


def spoken(*pieces: bytes) -> tuple[Vocabulary, list[int]]:
    """A vocabulary of a begin, an end and these pieces, and the ids of the pieces."""
    return Vocabulary((b"", b"", *pieces), ROLES), list(range(2, len(pieces) + 2))


def found(text: str, *pieces: bytes, before: Sequence[int] = (), after: Sequence[int] = ()) -> list[int]:
    """Where the prefix of each token ends."""
    vocabulary, ids = spoken(*pieces)
    return starts(vocabulary, [*before, *ids, *after], text).tolist()


# Where a prefix ends


def test_prefixes_end_where_tokens_begin() -> None:
    assert found("we utilize the", b"we", b" utilize", b" the", after=[1]) == [0, 2, 10, 14]
    assert found("we utilize the", b"we", b" util", b"ize", b" the", after=[1]) == [0, 2, 7, 10, 14]
    assert found("é", b"\xc3", b"\xa9") == [0, 1]


def test_special_tokens_have_no_width_and_only_the_end_has_a_row() -> None:
    assert found("ab", b"a", b"b", before=[0], after=[1]) == [MASKED, 0, 1, 2]
    assert found("ab", b"a", b"b", before=[1], after=[1, 1]) == [MASKED, 0, 1, 2, MASKED]
    assert found("ab", b"a", b"b", after=[0, 1]) == [0, 1, MASKED, 2]
    assert found("", after=[1]) == [0]
    assert found("") == []


def test_an_end_within_the_text_is_no_end() -> None:
    assert found("ab", b"a", after=[1]) == [0, MASKED]  # cut off
    vocabulary, _ = spoken(b"a", b"b")
    assert starts(vocabulary, [2, 1, 3, 1], "ab").tolist() == [0, MASKED, 1, 2]
    assert starts(replace(vocabulary, roles={}), [2, 3, 1], "ab").tolist() == [0, 1, MASKED]


def test_a_space_that_the_tokenizer_put_in_front_stands_before_the_text() -> None:
    assert found("we are", b" we", b" are", after=[1]) == [BEFORE, 2, 6]
    assert found("we are", b" ", b"we", b" are") == [BEFORE, 0, 2]
    assert found(" we are", b" we", b" are") == [0, 3]
    assert found(" we", b" ", b" we") == [BEFORE, 0]
    assert found("\n", b" ", b"\n", after=[1]) == [BEFORE, 0, 1]


def test_from_where_tokens_are_not_the_text_all_is_masked() -> None:
    assert found("abcd", b"ab", b"x", b"d") == [0, MASKED, MASKED]
    assert found("e\u0301a", "é".encode(), b"a", after=[1]) == [MASKED, MASKED, MASKED]  # normalised
    vocabulary, _ = spoken(b"a", b"b")
    assert starts(vocabulary, [2, 0, 3, 1], "a☃b").tolist() == [0, MASKED, MASKED, MASKED]  # unknown to the tokenizer
    assert found("ab", b"a", b"b", b"c", after=[1]) == [0, 1, MASKED, MASKED]


# What corresponds


def both(text: str, one: Sequence[bytes], other: Sequence[bytes]) -> list[tuple[int, int]]:
    sides = [Positions.of(vocabulary, [(ids, text)]) for vocabulary, ids in (spoken(*one), spoken(*other))]
    return list(zip(*(rows.tolist() for rows in match(*sides)), strict=True))


def test_positions_correspond_where_prefixes_end_at_the_same_byte() -> None:
    assert both("we utilize the", [b"we", b" utilize", b" the"], [b"we", b" util", b"ize", b" the"]) == [
        *((0, 0), (1, 1), (2, 3))
    ]
    assert both("we are", [b" we", b" are"], [b"we", b" are"]) == [(1, 1)]
    assert both("we are", [b" we", b" are"], [b" ", b"we", b" are"]) == [(0, 0), (1, 2)]
    assert both("ab", [b"ab"], [b"a", b"b"]) == [(0, 0)]
    assert both("", [], []) == []


def test_texts_that_differ_correspond_as_far_as_they_are_the_same() -> None:
    one, other = Vocabulary((b"a", b"b", b"c"), {}), Vocabulary((b"ab", b"c", b"x"), {})
    sides = Positions.of(one, [([0, 1, 2, 2], "abcc")]), Positions.of(other, [([0, 1, 2], "abcc")])
    assert [rows.tolist() for rows in match(*sides)] == [[0, 2], [0, 1]]


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[bytes]:
    """The bytes of a text in pieces, anywhere."""
    spelt = text.encode()
    places = draw(st.sets(st.integers(1, max(1, len(spelt) - 1)), max_size=12)) if len(spelt) > 1 else set()
    edges = [0, *sorted(places), len(spelt)]
    return [spelt[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b]


@given(data=st.data(), texts=st.lists(st.text(max_size=20), max_size=4))
@settings(max_examples=150)
def test_what_corresponds_is_what_a_search_finds(data: st.DataObject, texts: list[str]) -> None:
    sides, prefixes = [], []
    for _ in range(2):
        pieces = [data.draw(cut(text)) for text in texts]
        vocabulary, ids = spoken(*(piece for part in pieces for piece in part))
        ends = np.cumsum([0, *map(len, pieces)])
        rows = [[*ids[a:b], 1] for a, b in zip(ends, ends[1:], strict=False)]
        sides.append(Positions.of(vocabulary, zip(rows, texts, strict=True)))
        prefixes.append([(n, b"".join(part[:i])) for n, part in enumerate(pieces) for i in range(len(part) + 1)])
    first, second = match(*sides)
    assert (np.diff(first) > 0).all() and (np.diff(second) > 0).all()
    expected = [(prefixes[0].index(each), place) for place, each in enumerate(prefixes[1]) if each in prefixes[0]]
    assert list(zip(first, second, strict=True)) == expected
    assert [rows.tolist() for rows in match(sides[0], sides[0])] == [list(range(len(prefixes[0])))] * 2


def test_problems_left_out_correspond_to_nothing() -> None:
    vocabulary, ids = spoken(b"a", b"b", b"c")
    whole = Positions.of(vocabulary, [(ids[:2], "ab"), ([], ""), (ids, "abc")])
    left = whole.only(np.array([False, True, True]))
    left.check()
    assert [rows.tolist() for rows in match(whole, left)] == [[2, 3, 4], [0, 1, 2]]


def test_a_search_takes_memory_by_the_row() -> None:
    starts = np.arange(100_000, dtype=np.int32)
    side = Positions(np.array([100_000], dtype=np.int32), starts * 1000)
    tracemalloc.start()
    rows, _ = match(side, side)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 100_000 and peak < 200 * 100_000


def positions(lengths: Sequence[int], starts: Sequence[int], dtype: type = np.int32) -> Positions:
    return Positions(np.array(lengths, dtype), np.array(starts, dtype))


BAD = {
    "the same byte twice": (positions([2], [3, 3]), "rise in a problem"),
    "falling": (positions([3], [3, MASKED, 2]), "rise in a problem"),
    "below all": (positions([1], [-3]), "starts of -2 or more"),
    "too few": (positions([3], [1, 2]), "sum to 2 starts"),
    "negative length": (positions([-1], []), "lengths of 0 or more"),
    "int64": (positions([1], [0], np.int64), "as int32"),
    "a table": (Positions(np.array([1], np.int32), np.zeros((1, 1), np.int32)), "one number each"),
}


@pytest.mark.parametrize(("bad", "message"), BAD.values(), ids=BAD)
def test_positions_of_somebody_else_are_checked(bad: Positions, message: str) -> None:
    good = positions([1], [0])
    good.check()
    for sides in ((bad, good), (good, bad)):
        with pytest.raises(PayloadError, match=message):
            match(*sides)


def test_positions_of_other_problems_are_refused() -> None:
    with pytest.raises(PayloadError, match="same problems, found 1 and 2"):
        match(positions([1], [0]), positions([1, 0], [0]))


# Tokenizers


@cache
def byte_level() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@cache
def sentencepiece() -> PreTrainedTokenizerFast:
    return sentencepiece_like()


@cache
def stored(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"{folder.name} is not on this machine")
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


@cache
def vocabulary_of(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    return Vocabulary.of(tokenizer)


def placed(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[Positions, list[bytes]]:
    vocabulary = vocabulary_of(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return Positions.of(vocabulary, [(ids, text)]), [vocabulary.tokens[token] for token in ids]


def holds(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast, text: str) -> float:
    """What must be true of any two tokenizers; returns the share of the other's positions that correspond."""
    (source, pieces), (target, others) = placed(one, text), placed(other, text)
    first, second = match(source, target)
    assert (np.diff(first) > 0).all() and (np.diff(second) > 0).all()
    for i, j in zip(first, second, strict=True):
        prefixes = b"".join(pieces[:i]), b"".join(others[:j])
        at = source.starts[i]
        assert at == target.starts[j]
        assert {prefix.removesuffix(text.encode()[: max(at, 0)]) for prefix in prefixes} <= {b"", b" "}
    return len(first) / max(1, len(others))


@pytest.mark.parametrize("text", TEXTS)
def test_one_tokenizer_corresponds_to_itself_everywhere(text: str) -> None:
    for tokenizer in (byte_level(), sentencepiece(), stored(BUNDLED / "qwen2")):
        side, pieces = placed(tokenizer, text)
        expected = list(range(len(pieces)))
        assert [rows.tolist() for rows in match(side, side)] == [expected, expected]


@given(text=st.text(max_size=40))
@settings(max_examples=60)
def test_generated_and_bundled_tokenizers_correspond_at_equal_prefixes(text: str) -> None:
    kinds = (byte_level(), sentencepiece(), stored(BUNDLED / "qwen2"), stored(BUNDLED / "bloom"))
    for one in kinds:
        for other in kinds:
            holds(one, other, text)


NAMES = ("gpt2", "gpt_neox_20b", "mistral_v1", "codet5", "qwen", "openai_cl100k")
PLAIN = (
    "The committee agreed that the measurements, although imprecise, were consistent with earlier studies of the same "
    "river basin. Water levels rose by 12.5 cm between March and June; in some villages people had to move."
)


@pytest.mark.parametrize("name", NAMES[1:])
@given(text=st.text(max_size=40))
@settings(max_examples=20)
def test_real_tokenizers_correspond_at_equal_prefixes(name: str, text: str) -> None:
    """Reading 100 000 tokens and more takes a second or two of CPU time, once."""
    for one, other in ((NAMES[0], name), (name, NAMES[0])):
        holds(stored(REAL / one), stored(REAL / other), text)


@pytest.mark.parametrize("name", NAMES)
def test_of_plain_text_most_positions_of_real_tokenizers_correspond(name: str) -> None:
    assert holds(stored(REAL / "gpt2"), stored(REAL / name), PLAIN) > 0.75
    assert holds(stored(REAL / name), stored(REAL / name), PLAIN) == 1
