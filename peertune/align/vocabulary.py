"""Which token of one vocabulary stands for a token of another.

The same bytes are the same token. What the target lacks is mapped by one of three rules:

* `mined`: to the token at the least edit distance (FedMKT, arXiv:2406.02224, section 3.3; first Fu et al. 2023). Of
  several, the first by their bytes (`lex`, the paper's rule) or by id. The distance counts bytes, not letters of the
  tokenizers' own spellings, so it does not depend on how they write a space, a newline or an accent.
* `first_piece`: to the longest token that its bytes begin with. A model that is to write those bytes may write this
  token first, which cannot be said of a mined one.
* `exact`: to none.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np

from peertune.align.distance import nearest
from peertune.align.tokens import ROLES, Vocabulary

Rule = Literal["mined", "first_piece", "exact"]
Tie = Literal["lex", "id"]
NONE = -1


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
        known |= _first_pieces(missing, ids)
    table = np.array([known[token] for token in source.tokens], dtype=np.int32)
    for role in reversed(ROLES):
        if role in source.roles and role in target.roles:
            table[source.roles[role]] = target.roles[role]
    return table


def _mined(missing: list[bytes], ids: dict[bytes, int], tie: Tie) -> dict[bytes, int]:
    candidates = sorted(ids) if tie == "lex" else sorted(ids, key=ids.__getitem__)
    found, _ = nearest(missing, candidates)
    return {token: NONE if n < 0 else ids[candidates[n]] for token, n in zip(missing, found.tolist(), strict=True)}


def _first_pieces(missing: Iterable[bytes], ids: dict[bytes, int]) -> dict[bytes, int]:
    longest = max(map(len, ids), default=0)
    return {token: _first_piece(token[:longest], ids) for token in missing}


def _first_piece(token: bytes, ids: dict[bytes, int]) -> int:
    return next((ids[token[:end]] for end in range(len(token), 0, -1) if token[:end] in ids), NONE)
