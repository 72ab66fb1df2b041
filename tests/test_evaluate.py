"""Metrics against exact numbers and against counting all subsets."""

import itertools
import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertune.errors import ConfigError
from peertune.evaluate import Estimate, codebleu, estimate, pass_at_k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (1, 0, 1, 0.0),
        (1, 1, 1, 1.0),
        (10, 3, 1, 0.3),
        (5, 2, 2, 0.7),
        (10, 1, 10, 1.0),
        (200, 0, 100, 0.0),
        (200, 13, 1, 0.065),
        (10, 5, 5, 1 - 1 / 252),
        (100_000, 1, 10, 1e-4),
    ],
)
def test_pass_at_k_exact(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_the_subsets_with_a_right_sample(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(itertools.combinations([i < c for i in range(n)], k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets), abs=1e-12)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_a_probability_and_agrees_with_binomials(case: tuple[int, int, int]) -> None:
    n, c, k = case
    assert 0.0 <= pass_at_k(n, c, k) <= 1.0
    assert pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-10)


@pytest.mark.parametrize(("n", "c", "k"), [(0, 0, 1), (5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0)])
def test_pass_at_k_refuses_the_impossible(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


def test_the_mean_over_problems_and_its_standard_error() -> None:
    found = estimate(np.array([0, 0.25, 0.5, 1]))
    assert found.value == 0.4375
    assert found.standard_error == pytest.approx(math.sqrt(0.546875 / 3 / 4), abs=1e-15)
    assert estimate(np.array([1.0])) == Estimate(1.0, None)
    with pytest.raises(ValueError, match="at least one"):
        estimate(np.array([]))


def test_codebleu_of_the_same_a_similar_and_a_hopeless_text() -> None:
    pytest.importorskip("codebleu")
    pytest.importorskip("tree_sitter_python")
    reference = "def f(x):\n    y = x + 1\n    return y"
    assert codebleu([reference], [reference]) == pytest.approx(1.0)
    similar = codebleu([reference], ["def f(x):\n    z = x + 2\n    return z"])
    assert 0.3 < similar < 0.9
    assert codebleu([reference], [""]) == 0.25


@pytest.mark.parametrize("error", [ImportError, TypeError("an integer is required")])
def test_codebleu_without_a_library_that_works_says_the_cure(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception] | Exception
) -> None:
    def calc_codebleu(*_: object, **__: object) -> None:
        raise error

    fake = types.ModuleType("codebleu")
    fake.__dict__["calc_codebleu"] = calc_codebleu
    monkeypatch.setitem(sys.modules, "codebleu", None if error is ImportError else fake)
    with pytest.raises(ConfigError, match="\\[metrics\\]"):
        codebleu(["x"], ["x"])
    with pytest.raises(ValueError, match="at least one text"):
        codebleu([], [])
