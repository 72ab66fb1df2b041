"""Which token of one vocabulary stands for a token of another.

The same bytes are the same token. What the target lacks is mapped by one of three rules:

* `mined`: to the token at the least edit distance (FedMKT, arXiv:2406.02224, section 3.3; first Fu et al. 2023). Of
  several, the first by their bytes (`lex`, the paper's rule) or by id. The distance counts bytes, not letters of the
  tokenizers' own spellings, so it does not depend on how they write a space, a newline or an accent.
* `first_piece`: to the first of the pieces into which byte-pair encoding cuts its bytes, where the pair with the lowest
  id is joined first. A model that is to write those bytes writes this token first, which cannot be said of a mined one.
* `exact`: to none.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import numpy as np

from peertune.align.distance import nearest
from peertune.align.tokens import ROLES, Vocabulary

Rule = Literal["mined", "first_piece", "exact"]
Tie = Literal["lex", "id"]
NONE = -1
_READ = 128  # bytes of a token that its first piece depends on
_NEVER = 1 << 31  # the rank of a pair that is no token


def vocabulary_map(source: Vocabulary, target: Vocabulary, rule: Rule = "mined", tie: Tie = "lex") -> np.ndarray:
    """The target's id for each id of the source, int32 [len(source.tokens)]; `NONE` = it has no counterpart.

    A special token is mapped to the target's of the same role; one of several roles by the first of `ROLES` that the
    target knows, so that an end stays an end; one without a role has no counterpart.
    """
    ids = {token: id for id, token in enumerate(target.tokens) if token and id not in target.spare}
    known = {token: ids.get(token, NONE) for token in source.tokens}
    missing = [token for token, id in known.items() if token and id == NONE]
    if rule == "mined":
        known |= _mined(missing, ids, tie)
    elif rule == "first_piece":
        known |= _first_pieces(missing, ids, target)
    table = np.array([known[token] for token in source.tokens], dtype=np.int32)
    for role in reversed(ROLES):
        if role in source.roles and role in target.roles:
            table[source.roles[role]] = target.roles[role]
    return table


def _mined(missing: list[bytes], ids: dict[bytes, int], tie: Tie) -> dict[bytes, int]:
    candidates = sorted(ids) if tie == "lex" else sorted(ids, key=ids.__getitem__)
    found, _ = nearest(missing, candidates)
    return {token: NONE if n < 0 else ids[candidates[n]] for token, n in zip(missing, found.tolist(), strict=True)}


def _first_pieces(missing: list[bytes], ids: dict[bytes, int], target: Vocabulary) -> dict[bytes, int]:
    """Byte-level BPE begins with bytes. Sentencepiece begins with characters: its bytes are spare, or not there."""
    characters = any(len(target.tokens[id]) == 1 for id in target.spare)
    characters |= not any(len(token) == 1 and not token.isascii() for token in ids)
    return {token: _first_piece(token[:_READ], ids, characters) for token in missing}


def _first_piece(token: bytes, ids: dict[bytes, int], characters: bool) -> int:
    parts = list(_characters(token, ids) if characters else _bytes(token))
    while len(parts) > 1:
        rank, at = min((ids.get(left + right, _NEVER), n) for n, (left, right) in enumerate(pairwise(parts)))
        if rank == _NEVER:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return ids.get(parts[0], NONE)


def _characters(token: bytes, ids: dict[bytes, int]) -> Iterator[bytes]:
    """Its characters, those that are no tokens in bytes."""
    for letter in token.decode(errors="surrogateescape"):
        spelt = letter.encode(errors="surrogateescape")
        yield from [spelt] if spelt in ids else _bytes(spelt)


def _bytes(token: bytes) -> Iterator[bytes]:
    return (token[n : n + 1] for n in range(len(token)))
