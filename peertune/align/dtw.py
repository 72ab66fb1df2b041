"""Alignment by dynamic time warping over edit distances, as FedMKT has it (arXiv:2406.02224): here for comparison.

The paper teaches a position whose token has no counterpart the token that stands there, though what is expected at a
position is the next token: such a student learns to say everything twice. Here such positions are masked.
"""

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from peertune.align.tokens import Vocabulary

_FAR = 1 << 40  # more than any path costs


def path(source: Sequence[bytes], target: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The cheapest path from the first tokens of both texts to the last: the tokens that meet, pair by pair, int64.

    The cost of a pair is the Levenshtein distance of the two without their spaces. Of equally cheap steps back the
    diagonal one is taken, then that in the source. Neither text is empty. Time and memory grow with the product of the
    lengths.
    """
    spelt = [[token.replace(b" ", b"").decode("latin-1") for token in side] for side in (source, target)]
    total = _totals(cdist(*spelt, scorer=Levenshtein.distance, dtype=np.int32))
    i, j = len(source), len(target)
    pairs = []
    while i and j:
        pairs.append((i - 1, j - 1))
        steps = ((i - 1, j - 1), (i - 1, j), (i, j - 1))
        i, j = min(steps, key=lambda step: total[step])
    first, second = np.array(pairs[::-1], dtype=np.int64).T
    return first, second


def rows(
    source: tuple[Vocabulary, Sequence[int]], target: tuple[Vocabulary, Sequence[int]], vocabulary_map: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of knowledge that the paper's rule pairs, of one answer as each side has it: vocabulary and ids.

    A token of the target that meets one token of the source alone, which is the same or has it for counterpart, takes
    over what is expected after it: of both the next row. The first rows follow the prompt, and correspond.
    """
    (of_source, ids), (of_target, others) = source, target
    first, second = path([of_source.tokens[i] for i in ids], [of_target.tokens[i] for i in others])
    met, own = np.asarray(ids)[first], np.asarray(others)[second]
    same = [of_source.tokens[a] == of_target.tokens[b] != b"" for a, b in zip(met, own, strict=True)]
    alone = np.bincount(second)[second] == 1
    taken = alone & (same | (vocabulary_map[met] == own)) & (first + 1 < len(ids)) & (second + 1 < len(others))
    return np.append(0, first[taken] + 1), np.append(0, second[taken] + 1)


def _totals(costs: np.ndarray) -> np.ndarray:
    """The cost of the cheapest path to each pair, [n + 1, m + 1]; row 0 and column 0 stand before the first tokens.

    total[i, j] = cost[i, j] + min(total[i - 1, j], total[i, j - 1], total[i - 1, j - 1]), row by row: less the sum of
    the costs up to j, what comes from the left is a running minimum.
    """
    n, m = costs.shape
    total = np.full((n + 1, m + 1), _FAR, dtype=np.int64)
    total[0, 0] = 0
    for i in range(n):
        above = np.minimum(total[i, :-1], total[i, 1:])
        passed = np.cumsum(costs[i], dtype=np.int64)
        total[i + 1, 1:] = passed + np.minimum.accumulate(above - (passed - costs[i]))
    return total
