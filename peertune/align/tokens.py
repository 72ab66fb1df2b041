"""What each token of a vocabulary stands for in bytes, whatever alphabet its tokenizer writes them in.

Three spellings are read: the letters that byte-level BPE writes bytes in (GPT-2), the sentencepiece marker for a space,
and the byte tokens `<0x0A>` that sentencepiece falls back to. The decoder of the tokenizer says which one is used.
Other decoders (WordPiece) lose spaces or letter case, so bytes cannot be had from them.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from peertune.errors import ConfigError

ROLES = ("eos", "bos", "pad", "unk", "cls", "sep", "mask")
_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_READABLE = ("ByteLevel", "Replace", "Metaspace", "ByteFallback", "Fuse", "Strip")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one tokenizer by id.

    `tokens`: the bytes of each; b"" for special tokens. `roles`: the id of each special token that has a role, of
    `ROLES`; one id may have several. `spare`: the ids that the tokenizer itself does not write, since it has another
    token for the same bytes (`<0x41>` beside `A`); nothing is mapped to them, so only a target's matter.
    """

    tokens: tuple[bytes, ...]
    roles: dict[str, int]
    spare: frozenset[int] = frozenset()

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """Of a fast tokenizer of Hugging Face.

        Bytes are those of the text that the tokenizer cuts, after its normaliser. Raises `ConfigError` if they cannot
        be had, or if the ids are not 0 to `len(tokenizer)` - 1, each once.
        """
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"tokenizer {name!r}: expected a fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}; "
                "convert it with transformers and save it"
            )
        words = _words(name, tokenizer)
        spell = _spelling(name, json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
        added = tokenizer.added_tokens_decoder
        special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        tokens = tuple(b"" if i in special else spell.token(word, i in added) for i, word in enumerate(words))
        ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ROLES}
        roles = {role: id for role, id in ids.items() if id is not None}
        return cls(tokens, roles, _spare(words, tokens, frozenset(added)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all the above."""
        lengths = np.array([len(token) for token in self.tokens], dtype="<u4")
        head = json.dumps([len(lengths), sorted(self.roles.items()), sorted(self.spare)])
        return hashlib.sha256(head.encode() + lengths.tobytes() + b"".join(self.tokens)).hexdigest()


@dataclass(frozen=True)
class _Spelling:
    """How a tokenizer writes bytes: with the letters of `alphabet`; or, if that is empty, with `marker` for a space."""

    alphabet: dict[str, int]
    marker: str = ""
    fallback: bool = False  # <0x0A> is a byte

    def token(self, word: str, added: bool) -> bytes:
        if self.alphabet:
            # added tokens are looked for in the text itself, before it is spelt in the alphabet
            literal = added or any(letter not in self.alphabet for letter in word)
            return word.encode() if literal else bytes(self.alphabet[letter] for letter in word)
        if self.fallback and (byte := _FALLBACK.fullmatch(word)):
            return bytes([int(byte[1], 16)])
        return word.replace(self.marker, " ").encode()


def byte_letters() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for (Radford et al. 2019).

    Printable bytes of Latin-1 stand for themselves; the others, in their order, are written with the letters from 256.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _words(name: str, tokenizer: Any) -> list[str]:
    """Tokens as their tokenizer writes them, by id."""
    found = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if [id for _, id in found] != list(range(len(tokenizer))):
        ids = {id for _, id in found}
        raise ConfigError(
            f"tokenizer {name!r}: expected the ids 0 to {len(tokenizer) - 1}, each for one token, found {len(found)} "
            f"tokens for {len(ids)} ids up to {max(ids, default=-1)}; give every id a token in tokenizer.json"
        )
    return [word for word, _ in found]


def _spelling(name: str, decoder: dict[str, Any] | None) -> _Spelling:
    steps = (decoder or {}).get("decoders", [decoder] if decoder else [])
    kinds = {step["type"]: step for step in steps}
    if kinds and kinds.keys() <= set(_READABLE):
        if "ByteLevel" in kinds:
            return _Spelling(byte_letters())
        if marker := _marker(kinds):
            return _Spelling({}, marker, "ByteFallback" in kinds)
    raise ConfigError(
        f"tokenizer {name!r}: expected a decoder that keeps every byte (byte-level BPE, or sentencepiece with a marker "
        f"for the space), found {' + '.join(kinds) or 'none'}; what its tokens are in bytes is not known: use a model "
        "with a tokenizer of such a kind"
    )


def _marker(kinds: dict[str, Any]) -> str:
    """What stands for a space, of a sentencepiece decoder; "" = nothing does."""
    if metaspace := kinds.get("Metaspace"):
        return metaspace["replacement"]
    replace = kinds.get("Replace", {"content": ""})
    return replace["pattern"].get("String", "") if replace["content"] == " " else ""


def _spare(words: list[str], tokens: tuple[bytes, ...], added: frozenset[int]) -> frozenset[int]:
    """Of ids with the same bytes all but one: an added token, else one that is no byte token, of these the lowest."""
    chosen: dict[bytes, int] = {}
    order = sorted(range(len(words)), key=lambda i: (i not in added, bool(_FALLBACK.fullmatch(words[i]))))
    for i in order:
        chosen.setdefault(tokens[i], i)
    return frozenset(i for i, token in enumerate(tokens) if token and chosen[token] != i)
