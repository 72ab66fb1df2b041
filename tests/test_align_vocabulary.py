"""Maps between vocabularies equal brute force, of their rule and ties, and are the same in every process."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from spelling import BUNDLED, REAL, bundled, needs_real, sentencepiece_like
from tiny import make_tokenizer
from transformers import PreTrainedTokenizerFast

from peertune.align import Vocabulary, distance
from peertune.align.distance import nearest
from peertune.align.tokens import byte_letters
from peertune.align.vocabulary import NONE, Rule, Tie, vocabulary_map

Measure = Callable[[bytes, bytes], int]

LETTERS = st.sampled_from(b"ab e\x00\x80\xc3")
SHORT = st.lists(LETTERS, max_size=6).map(bytes)
MIXED = st.one_of(SHORT, SHORT, st.binary(max_size=12), st.lists(LETTERS, max_size=70).map(bytes))
TIES: tuple[Tie, ...] = ("lex", "id")


def edits(left: bytes, right: bytes) -> int:
    """Wagner and Fischer 1974, as they wrote it."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def by_force(queries: list[bytes], candidates: list[bytes], measure: Measure) -> tuple[list[int], list[int]]:
    """The first of the nearest, and its distance, from all distances."""
    rows = [[measure(query, each) for each in candidates] for query in queries]
    return [row.index(min(row)) for row in rows], [min(row) for row in rows]


def mined_by_force(token: bytes, target: Vocabulary, tie: Tie, measure: Measure = edits) -> int:
    """The rule `mined`, token by token."""
    ids = [id for id, each in enumerate(target.tokens) if each and id not in target.spare]

    def rank(id: int) -> tuple[int, bytes | int]:
        return measure(token, target.tokens[id]), target.tokens[id] if tie == "lex" else id

    return min(ids, key=rank, default=NONE)


def sound(words: list[bytes], roles: dict[str, int] | None = None) -> Vocabulary:
    """A vocabulary of these words, the second of each two equal ones spare, as `Vocabulary.of` makes it."""
    return Vocabulary(tuple(words), roles or {}, frozenset(i for i, w in enumerate(words) if w and w in words[:i]))


@cache
def real(name: str) -> Vocabulary:
    special = {"bos_token": "<s>", "eos_token": "</s>"} if name == "mistral_v1" else {"eos_token": "<|endoftext|>"}
    return Vocabulary.of(PreTrainedTokenizerFast(tokenizer_file=str(REAL / name / "tokenizer.json"), **special))


@cache
def of_bundled(name: str) -> Vocabulary:
    return Vocabulary.of(bundled(name))


@cache
def with_byte_tokens() -> Vocabulary:
    return Vocabulary.of(sentencepiece_like())


# The nearest word


@given(st.lists(MIXED, max_size=8), st.lists(MIXED, min_size=1, max_size=20))
@example([b""], [b"ab", b"b", b"a"])
@example([b"\x00"], [b"", b"\x00\x00", b"a"])
@example([b"abc" * 100], [b"b" * 299, b"abc" * 99, b"", b"abc" * 101])
@example([b"a" * 300], [b"b" * 300, b"a" * 20])  # distances that a byte does not hold
@example([b"a" * 300], [b"a" * 40, b"a" * 60])
def test_the_nearest_is_that_of_brute_force(queries: list[bytes], candidates: list[bytes]) -> None:
    found, far = nearest(queries, candidates)
    assert (found.tolist(), far.tolist()) == by_force(queries, candidates, edits)


@given(st.lists(SHORT, min_size=1, max_size=40), st.lists(SHORT, min_size=1, max_size=40))
def test_it_does_not_depend_on_how_the_work_is_cut(queries: list[bytes], candidates: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "_PAIRS", 1)
        patch.setattr(distance, "_CELLS", 1)
        found, far = nearest(queries, candidates)
    assert (found.tolist(), far.tolist()) == by_force(queries, candidates, edits)


def test_among_none_there_is_none() -> None:
    assert nearest([b"a", b""], [])[0].tolist() == [NONE, NONE]
    assert nearest([], [b"a"])[0].tolist() == []


# The map


@pytest.mark.parametrize("tie", TIES)
@given(source=st.lists(MIXED, max_size=8), target=st.lists(MIXED, max_size=20))
def test_a_mined_map_is_that_of_brute_force(tie: Tie, source: list[bytes], target: list[bytes]) -> None:
    ours, theirs = sound(source), sound(target)
    expected = [mined_by_force(token, theirs, tie) if token else NONE for token in source]
    table = vocabulary_map(ours, theirs, "mined", tie)
    assert table.dtype == np.int32 and table.tolist() == expected


@given(st.lists(SHORT, max_size=8), st.lists(SHORT, max_size=20))
def test_exact_maps_equal_bytes_alone_and_a_first_piece_begins_the_token(
    source: list[bytes], target: list[bytes]
) -> None:
    ours, theirs = sound(source), sound(target)
    same = [target.index(token) if token and token in target else NONE for token in source]
    assert vocabulary_map(ours, theirs, "exact").tolist() == same
    for token, exact, id in zip(source, same, vocabulary_map(ours, theirs, "first_piece").tolist(), strict=True):
        assert id == exact or (id != NONE and token.startswith(target[id]) and id not in theirs.spare)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), min_size=1), unique=True))
@settings(max_examples=50)
def test_a_first_piece_is_the_one_that_the_tokenizer_cuts(words: list[str]) -> None:
    letters = {byte: letter for letter, byte in byte_letters().items()}
    spellings: list[tuple[PreTrainedTokenizerFast, Callable[[str], str]]] = [
        (bundled("gpt2"), lambda word: "".join(letters[byte] for byte in word.encode())),
        (sentencepiece_like(), lambda word: word.replace(" ", "▁")),
    ]
    for tokenizer, spell in spellings:
        target = Vocabulary.of(tokenizer)
        missing = [word for word in words if word.encode() not in target.tokens]
        table = vocabulary_map(sound([word.encode() for word in missing]), target, "first_piece")
        assert table.tolist() == [tokenizer.backend_tokenizer.model.tokenize(spell(word))[0].id for word in missing]


def test_a_first_piece_of_characters_where_there_are_no_bytes() -> None:
    target = sound(["東".encode(), "京".encode(), "東京".encode(), b"a"])
    source = sound(["東京a".encode(), "a東".encode(), "東京".encode()[:4], b"\xe6a", b"xa"])
    assert vocabulary_map(source, target, "first_piece").tolist() == [2, 3, 0, NONE, NONE]


def test_ties_go_to_the_first_by_bytes_or_by_id() -> None:
    source, target = sound([b" cats"]), sound([b" hats", b" cat", b" bats", b" cat's"])
    assert vocabulary_map(source, target, tie="lex").tolist() == [2]
    assert vocabulary_map(source, target, tie="id").tolist() == [0]


def test_nothing_is_mapped_to_a_spare_token() -> None:
    target = Vocabulary((b"a", b"a", b"x", b"b"), {}, frozenset({0, 2}))
    source = sound([b"a", b"x"])
    assert vocabulary_map(source, target, "mined").tolist() == [1, 1]
    assert vocabulary_map(source, target, "first_piece").tolist() == [1, NONE]
    assert vocabulary_map(source, target, "exact").tolist() == [1, NONE]


@pytest.mark.parametrize("rule", ["mined", "first_piece", "exact"])
def test_special_tokens_pair_by_role_and_otherwise_with_none(rule: Rule) -> None:
    words = [b"", b"", b"", b"", b"a"]
    source = sound(words, {"bos": 0, "eos": 1, "pad": 2})
    assert vocabulary_map(source, sound(words, {"eos": 3, "bos": 1, "unk": 0}), rule).tolist() == [1, 3, -1, -1, 4]
    assert vocabulary_map(source, sound(words), rule).tolist() == [-1, -1, -1, -1, 4]
    both = sound(words, {"bos": 0, "eos": 0})
    assert vocabulary_map(both, sound(words, {"bos": 1, "eos": 2}), rule).tolist() == [2, -1, -1, -1, 4]
    assert vocabulary_map(sound(words, {"bos": 1, "eos": 2}), both, rule).tolist() == [-1, 0, 0, -1, 4]
    assert vocabulary_map(both, sound(words, {"bos": 1}), rule).tolist() == [1, -1, -1, -1, 4]


# Of tokenizers


def pairs_of_tokenizers() -> list[tuple[Vocabulary, Vocabulary]]:
    trained = Vocabulary.of(make_tokenizer())
    return [
        (trained, with_byte_tokens()),
        (with_byte_tokens(), trained),
        (of_bundled("gpt2"), of_bundled("qwen2")),
        (of_bundled("gpt2"), of_bundled("bloom")),
    ]


@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("number", range(4))
def test_maps_of_tokenizers_are_those_of_brute_force(number: int, tie: Tie) -> None:
    source, target = pairs_of_tokenizers()[number]
    table = vocabulary_map(source, target, "mined", tie)
    missing = [id for id, token in enumerate(source.tokens) if token and token not in target.tokens]
    assert len(missing) >= 15
    expected = [mined_by_force(source.tokens[id], target, tie, Levenshtein.distance) for id in missing]
    assert table[missing].tolist() == expected


@pytest.mark.parametrize("rule", ["mined", "first_piece", "exact"])
def test_equal_vocabularies_map_each_token_to_itself(rule: Rule) -> None:
    for vocabulary in (of_bundled("bloom"), Vocabulary.of(make_tokenizer()), with_byte_tokens()):
        table = vocabulary_map(vocabulary, vocabulary, rule)
        kept = [id for id, token in enumerate(vocabulary.tokens) if token and id not in vocabulary.spare]
        assert table[kept].tolist() == kept
        assert all(vocabulary.tokens[table[id]] == vocabulary.tokens[id] for id in vocabulary.spare)


@pytest.mark.parametrize("rule", ["mined", "first_piece", "exact"])
def test_total_is_a_token_like_any_other(rule: Rule) -> None:
    """The authors' code overwrites its entry by the size of the vocabulary."""
    for source, target in pairwise(map(of_bundled, ("gpt2", "bloom", "gpt_neox", "llama", "gpt2"))):
        assert vocabulary_map(source, target, rule)[source.tokens.index(b"total")] == target.tokens.index(b"total")


def test_the_order_in_which_a_tokenizer_lists_its_tokens_changes_nothing() -> None:
    """It differs from process to process."""

    class Shuffled(PreTrainedTokenizerFast):
        def get_vocab(self) -> dict[str, int]:
            return dict(sorted(super().get_vocab().items(), key=lambda item: item[1] * 7919 % 10007))

    folder = BUNDLED / "qwen2"
    assert Vocabulary.of(Shuffled.from_pretrained(folder)).digest == of_bundled("qwen2").digest


def test_maps_and_digests_are_the_same_in_every_process() -> None:
    """The order of a set of bytes differs from process to process."""
    source, target = of_bundled("gpt2"), with_byte_tokens()
    program = (
        "import hashlib, json, sys\n"
        "from peertune.align.vocabulary import Vocabulary, vocabulary_map\n"
        "sides = json.load(sys.stdin)\n"
        "sides = [Vocabulary(tuple(map(bytes.fromhex, t)), r, frozenset(s)) for t, r, s in sides]\n"
        "maps = [vocabulary_map(*sides, 'mined', tie).tobytes() for tie in ('lex', 'id')]\n"
        "print([s.digest for s in sides] + [hashlib.sha256(m).hexdigest() for m in maps])\n"
    )
    sides = [([token.hex() for token in each.tokens], each.roles, sorted(each.spare)) for each in (source, target)]
    maps = [hashlib.sha256(vocabulary_map(source, target, "mined", tie).tobytes()).hexdigest() for tie in TIES]
    for seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            input=json.dumps(sides),
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        assert found.strip() == str([source.digest, target.digest, *maps])


# Published tokenizers


@needs_real
@pytest.mark.parametrize(("a", "b"), [("gpt2", "mistral_v1"), ("mistral_v1", "gpt2")])
def test_maps_of_published_tokenizers_are_those_of_brute_force_on_a_sample(a: str, b: str) -> None:
    """Takes some 4 seconds: 30 000 tokens among 50 000."""
    source, target = real(a), real(b)
    table = vocabulary_map(source, target)
    exact = vocabulary_map(source, target, "exact")
    missing = np.flatnonzero((exact == NONE) & (table != NONE))
    assert len(missing) == {"gpt2": 29_016, "mistral_v1": 10_632}[a]
    assert (table[exact != NONE] == exact[exact != NONE]).all()
    for id in np.random.default_rng(0).choice(missing, 20, replace=False).tolist():
        assert table[id] == mined_by_force(source.tokens[id], target, "lex", Levenshtein.distance)
    total, newline = (vocabulary.tokens.index(b"total") for vocabulary in (source, target)), source.tokens.index(b"\n")
    assert table[next(total)] == next(total)
    assert target.tokens[table[newline]] == b"\n" and table[newline] not in target.spare
    assert table[source.roles["eos"]] == target.roles["eos"]
    first = vocabulary_map(source, target, "first_piece")
    assert (first[missing] != NONE).all()
    assert all(source.tokens[id].startswith(target.tokens[first[id]]) for id in missing.tolist())


@needs_real
@pytest.mark.parametrize(("a", "b", "tie"), [("gpt_neox_20b", "codet5", "lex"), ("openai_cl100k", "qwen", "id")])
def test_maps_of_more_published_tokenizers_are_those_of_brute_force_on_a_sample(a: str, b: str, tie: Tie) -> None:
    """Takes some seconds: 50 000 tokens among 32 000; and two vocabularies of 100 000 and more, to read them."""
    source, target = real(a), real(b)
    table, exact = (vocabulary_map(source, target, rule, tie) for rule in ("mined", "exact"))
    missing = np.flatnonzero((exact == NONE) & (table != NONE))
    assert len(missing) > 1000 and (table[exact != NONE] == exact[exact != NONE]).all()
    for id in np.random.default_rng(0).choice(missing, 10, replace=False).tolist():
        assert table[id] == mined_by_force(source.tokens[id], target, tie, Levenshtein.distance)
