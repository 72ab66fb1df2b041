"""Tokens in bytes: however a tokenizer writes them, together they are the text; and what cannot be had is refused."""

import base64
import gzip
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spelling import BYTE_TOKENS, REAL, bundled, byte_level, needs_real, of_model, sentencepiece_like
from tiny import make_tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from peertune.align import Vocabulary
from peertune.align.tokens import byte_letters
from peertune.errors import ConfigError


def spelt(tokenizer: PreTrainedTokenizerFast, text: str) -> bytes:
    tokens = Vocabulary.of(tokenizer).tokens
    ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return b"".join(tokens[id] for id in ids)


# What tokens are in bytes


@given(st.text())
def test_the_letters_of_byte_level_bpe_are_those_of_the_tokenizers_library(text: str) -> None:
    letters = byte_letters()
    assert sorted(letters) == sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert bytes(letters[letter] for piece, _ in pieces for letter in piece) == text.encode()


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=50)
def test_the_tokens_of_a_text_are_its_bytes(text: str) -> None:
    assert spelt(make_tokenizer(), text) == text.encode()
    assert spelt(bundled("gpt2"), text) == text.encode()


@pytest.mark.parametrize("metaspace", [False, True])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text[0] not in " ▁"))
@settings(max_examples=50)
def test_pieces_and_byte_tokens_are_bytes_after_the_space_that_is_put_in_front(metaspace: bool, text: str) -> None:
    assert spelt(sentencepiece_like(metaspace), text) == b" " + text.replace("▁", " ").encode()


def test_unigram_pieces_have_spaces_for_their_marker() -> None:
    pieces = [("<unk>", 0.0), ("▁", -1.0), ("▁the", -2.0), ("é", -2.0)]
    found = Vocabulary.of(of_model(models.Unigram(pieces, 0), decoders.Metaspace()))
    assert found.tokens == (b"<unk>", b" ", b" the", b"\xc3\xa9")


def test_byte_tokens_are_text_where_the_decoder_does_not_read_them() -> None:
    pieces = [("<0x41>", 0.0), ("a", -1.0)]
    assert Vocabulary.of(of_model(models.Unigram(pieces, 0), decoders.Metaspace())).tokens == (b"<0x41>", b"a")


def test_letters_outside_the_alphabet_are_what_they_are() -> None:
    assert Vocabulary.of(byte_level("Ċ", "Ġa", "Ã©", "東")).tokens == (b"\n", b" a", b"\xc3\xa9", "東".encode())


# Special and added tokens, and those that are never written


def test_special_tokens_have_no_bytes_but_roles() -> None:
    found = Vocabulary.of(make_tokenizer(chat=True))
    assert found.roles == {"eos": 0, "bos": 0, "pad": 1}
    assert found.tokens[:5] == (b"", b"", b"", b"", b"!")
    assert all(found.tokens[4:])
    assert Vocabulary.of(sentencepiece_like()).roles == {"eos": 2, "bos": 1, "unk": 0}


def test_an_added_token_is_its_text_and_hides_the_piece_with_its_bytes() -> None:
    tokenizer = byte_level("a", "ĠĠ", "Ã©")
    tokenizer.add_tokens([AddedToken("  ", normalized=True), AddedToken("é"), AddedToken("<tool>")])
    found = Vocabulary.of(tokenizer)
    assert found.tokens == (b"a", b"  ", b"\xc3\xa9", b"  ", b"\xc3\xa9", b"<tool>")
    assert found.spare == {1, 2}
    assert tokenizer.encode("  é") == [3, 4]


def test_a_byte_token_is_spare_where_there_is_a_piece_for_the_byte() -> None:
    tokenizer = sentencepiece_like()
    found = Vocabulary.of(tokenizer)
    pieces = {tokenizer.convert_ids_to_tokens(id) for id in found.spare}
    assert "<0x61>" in pieces and "<0x20>" in pieces and "<0x00>" not in pieces
    assert pieces < set(BYTE_TOKENS)
    unspared = [token for id, token in enumerate(found.tokens) if token and id not in found.spare]
    assert len(set(unspared)) == len(unspared)


# Digests


def test_a_digest_tells_vocabularies_apart() -> None:
    several = [
        Vocabulary((b"a", b"bc"), {}),
        Vocabulary((b"ab", b"c"), {}),
        Vocabulary((b"ab", b"c", b""), {}),
        Vocabulary((b"ab", b"c", b""), {"eos": 2}),
        Vocabulary((b"ab", b"c", b""), {"bos": 2}),
        Vocabulary((b"ab", b"c", b""), {"bos": 2}, frozenset({1})),
    ]
    assert len({each.digest for each in several}) == len(several)
    assert Vocabulary((b"a",), {"eos": 1, "bos": 2}).digest == Vocabulary((b"a",), {"bos": 2, "eos": 1}).digest


# What is refused


def test_a_tokenizer_that_loses_bytes_is_refused() -> None:
    for decoder, found in ((decoders.WordPiece(), "WordPiece"), (None, "none"), (decoders.BPEDecoder(), "BPEDecoder")):
        with pytest.raises(ConfigError, match=f"keeps every byte .*, found {found}"):
            Vocabulary.of(of_model(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"), decoder))


def test_a_decoder_that_says_nothing_of_spaces_is_refused() -> None:
    with pytest.raises(ConfigError, match="found ByteFallback"):
        Vocabulary.of(of_model(models.BPE({"a": 0}, []), decoders.ByteFallback()))
    with pytest.raises(ConfigError, match="found Replace"):
        Vocabulary.of(of_model(models.BPE({"a": 0}, []), decoders.Replace("x", "y")))


def test_ids_without_a_token_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"the ids 0 to 1, each for one token, found 2 tokens for 2 ids up to 2"):
        Vocabulary.of(of_model(models.BPE({"a": 0, "b": 2}, []), decoders.ByteLevel()))


def test_a_tokenizer_without_a_file_is_refused_by_name() -> None:
    class Slow:
        is_fast, name_or_path = False, "somewhere/slow"

    with pytest.raises(ConfigError, match=r"'somewhere/slow': expected a fast tokenizer .*, found Slow; convert it"):
        Vocabulary.of(Slow())


# Published tokenizers

# where the list of bytes is not what the file says: `<s>` is special, and runs of 24 to 2 spaces are text
DIFFERENT = {
    "codet5": {1: (b"<s>", b"")},
    "gpt_neox_20b": {0: (b"<|endoftext|>", b""), 1: (b"<|padding|>", b"")}
    | {50254 + n: (b"", b" " * (24 - n)) for n in range(23)},
}


@needs_real
@pytest.mark.parametrize("name", ["codet5", "gpt2", "gpt_neox_20b", "mistral_v1"])
def test_published_tokens_are_the_bytes_that_were_published(name: str) -> None:
    found = Vocabulary.of(PreTrainedTokenizerFast(tokenizer_file=str(REAL / name / "tokenizer.json"))).tokens
    with gzip.open(REAL / name / "token_bytes.b64.gz", "rt") as lines:
        published = [b"" if line == "-\n" else base64.b64decode(line) for line in lines]
    pairs = enumerate(zip(published, found, strict=True))
    assert {id: pair for id, pair in pairs if pair[0] != pair[1]} == DIFFERENT.get(name, {})
