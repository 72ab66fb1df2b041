"""Alignment by time warping, the paper's: its totals, its path, and what its rule pairs."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_align_positions import spoken

from peertune.align import dtw
from peertune.align.positions import Positions, match


def cheapest(costs: np.ndarray) -> np.ndarray:
    """The plain double loop."""
    total = np.full(np.array(costs.shape) + 1, np.inf)
    total[0, 0] = 0
    for i, j in np.ndindex(*costs.shape):
        total[i + 1, j + 1] = costs[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    return total


@given(seed=st.integers(0, 1 << 30), n=st.integers(1, 8), m=st.integers(1, 8))
@settings(max_examples=60)
def test_totals_are_those_of_the_double_loop(seed: int, n: int, m: int) -> None:
    costs = np.random.default_rng(seed).integers(0, 4, (n, m))
    np.testing.assert_array_equal(dtw._totals(costs)[1:, 1:], cheapest(costs)[1:, 1:])


def test_a_path_steps_from_the_first_tokens_to_the_last() -> None:
    first, second = dtw.path([b"we", b" utilize", b" the"], [b"we", b" util", b"ize", b" the"])
    assert list(zip(first, second, strict=True)) == [(0, 0), (1, 1), (2, 2), (2, 3)]  # "the" is nearer to "ize"
    first, second = dtw.path([b"ab", b"cd", b"cd"], [b"ab", b"cd", b"cd"])
    assert first.tolist() == second.tolist() == [0, 1, 2]
    first, second = dtw.path([b"b", b"a", b"bab"], [b"a", b"bb", b"a"])
    assert list(zip(first, second, strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 2),
        (2, 2),
    ]  # or (0, 0), (1, 0), (2, 1), (2, 2)
    first, second = dtw.path([b"b", b"  "], [b"a", b" ", b"b"])
    assert list(zip(first, second, strict=True)) == [(0, 0), (1, 1), (1, 2)]  # spaces do not count


def test_time_warping_pairs_what_is_expected_next_and_nothing_else() -> None:
    source, ids = spoken(b"we", b" utilize", b" the", b" dynamic")
    target, others = spoken(b" we", b" util", b"ize", b" the", b" dynamic")
    table = np.array([0, 1, 2, 3, 5, 6])  # " utilize" counts as " util", which it meets alone
    assert [rows.tolist() for rows in dtw.rows((source, ids), (target, others), table)] == [[0, 1, 2, 3], [0, 1, 2, 4]]
    nothing = np.full(6, -1)
    assert [rows.tolist() for rows in dtw.rows((source, ids), (target, others), nothing)] == [[0, 3], [0, 4]]
    vocabulary, _ = spoken(b"ab", b"x", b"c", b"d")
    for one, other, expected in (([2, 3, 4, 5], [2, 4, 5], [0, 1]), ([2], [2, 2], [0])):  # meets two; has no next
        warped = dtw.rows((vocabulary, one), (vocabulary, other), np.arange(6))
        assert [rows.tolist() for rows in warped] == [expected] * 2
    same = dtw.rows((source, ids), (source, ids), np.arange(6))
    assert [rows.tolist() for rows in same] == [[0, 1, 2, 3]] * 2


def test_time_warping_teaches_at_another_byte_what_boundaries_do_not() -> None:
    text, cuts = "aab", ([b"a", b"ab"], [b"aa", b"b"])
    (source, ids), (target, others) = (spoken(*pieces) for pieces in cuts)
    warped = dtw.rows((source, ids), (target, others), np.array([0, 1, 2, 3]))
    assert [rows.tolist() for rows in warped] == [[0, 1], [0, 1]]
    matched = match(*(Positions.of(vocabulary, [(row, text)]) for vocabulary, row in ((source, ids), (target, others))))
    assert [rows.tolist() for rows in matched] == [[0], [0]]
