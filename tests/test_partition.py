"""Partitions: nothing dealt twice, nothing lost that should not be, and skew that is really there."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peertune.errors import ConfigError
from peertune.partition import (
    IID,
    MIN_TRAIN,
    MIN_VALIDATION,
    PARTITIONS,
    ByCategory,
    Dirichlet,
    Experts,
    Partition,
    deal,
    hold_out,
    shares,
    skew,
)
from peertune.tasks.base import Example

CATEGORIES = tuple(f"c{index:02}" for index in range(12))
KINDS: list[Partition] = [IID(), Dirichlet(alpha=0.1), Dirichlet(alpha=5.0), ByCategory(), Experts(experts=2)]


def pool(size: int, name: str) -> list[Example]:
    return [Example(f"{name} {index}", "", CATEGORIES[index % 12], key=f"{name}{index}") for index in range(size)]


TRAIN, VALIDATION = pool(480, "train"), pool(240, "validation")


def keys(examples: Sequence[Example]) -> list[str]:
    return [example.key for example in examples]


def histogram(examples: Sequence[Example]) -> list[float]:
    return [sum(example.category == category for example in examples) / len(examples) for category in CATEGORIES]


def dealt_skew(partition: Partition, seed: int) -> float:
    parts = deal((TRAIN, VALIDATION), CATEGORIES, 6, partition, seed)
    return skew([histogram(train) for train, _ in parts])


# Shares


@settings(max_examples=60)
@given(st.sampled_from(KINDS), st.integers(3, 9), st.integers(1, 14), st.integers(0, 1000))
def test_shares_are_shares(partition: Partition, agents: int, categories: int, seed: int) -> None:
    matrix = shares(agents, categories, partition, np.random.default_rng(seed))
    assert matrix.shape == (agents, categories)
    assert (matrix >= 0).all()
    sums = matrix.sum(axis=0)
    if isinstance(partition, Experts):
        assert (sums < 1 + 1e-12).all() and (sums >= partition.expert_share - 1e-12).all()
    else:
        np.testing.assert_allclose(sums, 1.0)


def test_shares_of_iid_and_by_category() -> None:
    random = np.random.default_rng(0)
    np.testing.assert_array_equal(shares(4, 3, IID(), random), np.full((4, 3), 0.25))
    matrix = shares(5, 12, ByCategory(), random)
    assert sorted(np.unique(matrix).tolist()) == [0.0, 1.0]
    assert sorted(matrix.sum(axis=1).tolist()) == [2, 2, 2, 3, 3]


def test_shares_of_experts() -> None:
    """Two experts own 80 % of six categories each; four novices share the rest of one category each."""
    matrix = shares(6, 12, Experts(experts=2, expert_share=0.75), np.random.default_rng(3))
    kinds = sorted(tuple(sorted(row[row > 0].tolist())) for row in matrix)
    assert kinds == [(0.25,)] * 4 + [(0.75,) * 6] * 2


def test_novices_of_one_field_divide_it() -> None:
    matrix = shares(7, 2, Experts(experts=1, expert_share=0.8), np.random.default_rng(0))
    np.testing.assert_allclose(matrix.sum(axis=0), [1.0, 1.0])
    novices = matrix[(matrix < 0.5).all(axis=1)]
    np.testing.assert_allclose(np.sort(novices[novices > 0]), [0.2 / 3] * 6)


def test_dirichlet_draws_each_category_by_itself() -> None:
    """The concentration is per category: small alpha gives a category to few agents, and not to always the same."""
    matrix = shares(6, 2000, Dirichlet(alpha=0.1), np.random.default_rng(0))
    largest = matrix.max(axis=0)
    assert 0.75 < largest.mean() < 0.8  # 0.774 over 200 000 draws of Dirichlet(0.1) over six
    owners = np.bincount(matrix.argmax(axis=0), minlength=6)
    assert owners.min() > 250
    even = shares(6, 2000, Dirichlet(alpha=100.0), np.random.default_rng(0))
    assert even.max() < 0.3


@pytest.mark.parametrize("alpha", [1e-300, 1e-5, 1e5])
def test_extreme_concentrations(alpha: float) -> None:
    matrix = shares(6, 12, Dirichlet(alpha=alpha), np.random.default_rng(0))
    np.testing.assert_allclose(matrix.sum(axis=0), 1.0)


# Dealing


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(3, 8), st.integers(0, 1000))
def test_every_example_is_dealt_once(partition: Partition, agents: int, seed: int) -> None:
    parts = deal((TRAIN, VALIDATION), CATEGORIES, agents, partition, seed)
    assert len(parts) == agents
    for place, source in enumerate((TRAIN, VALIDATION)):
        dealt = [key for part in parts for key in keys(part[place])]
        assert len(dealt) == len(set(dealt))
        if isinstance(partition, Experts):
            assert set(dealt) <= set(keys(source))
        else:
            assert set(dealt) == set(keys(source))
    assert min(len(train) for train, _ in parts) >= MIN_TRAIN
    assert min(len(validation) for _, validation in parts) >= MIN_VALIDATION


def test_validation_is_of_the_same_kind_as_training() -> None:
    for train, validation in deal((TRAIN, VALIDATION), CATEGORIES, 6, Dirichlet(alpha=0.1), 0):
        assert np.abs(np.array(histogram(train)) - histogram(validation)).max() < 0.15


def test_iid_is_even() -> None:
    parts = deal((TRAIN, VALIDATION), CATEGORIES, 6, IID(), 0)
    assert all(70 <= len(train) <= 90 for train, _ in parts)
    assert len({tuple(keys(train)) for train, _ in parts}) == 6
    assert dealt_skew(IID(), 0) < 0.05


@pytest.mark.parametrize("partition", KINDS, ids=repr)
def test_a_seed_is_a_partition(partition: Partition) -> None:
    def draw(seed: int) -> list[tuple[list[str], list[str]]]:
        parts = deal((TRAIN, VALIDATION), CATEGORIES, 6, partition, seed)
        return [(keys(train), keys(validation)) for train, validation in parts]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_skew_is_ordered_by_alpha() -> None:
    """Measured over these 20 seeds: 0.66, 0.33 and 0.04."""
    means = [np.mean([dealt_skew(Dirichlet(alpha=alpha), seed) for seed in range(20)]) for alpha in (0.1, 1.0, 100.0)]
    np.testing.assert_allclose(means, [0.66, 0.33, 0.04], atol=0.02)
    assert dealt_skew(ByCategory(), 0) == pytest.approx(5 / 6)


def test_skew_exactly() -> None:
    assert skew([[1, 0], [0, 1]]) == 0.5
    assert skew([[0.5, 0.5]] * 3) == 0.0
    assert skew([[1, 0], [0.5, 0.5]]) == 0.25


def test_examples_of_no_category_of_the_task_are_not_dealt() -> None:
    stray = Example("stray", "", "unheard of", key="stray")
    parts = deal(([*TRAIN, stray], VALIDATION), CATEGORIES, 3, IID(), 0)
    assert "stray" not in [key for train, _ in parts for key in keys(train)]


@pytest.mark.parametrize(
    ("sizes", "agents", "partition"),
    [
        ((40, 12), 6, IID()),  # 48 training examples are needed
        ((480, 23), 6, IID()),  # 24 validation examples are needed
        ((480, 240), 13, ByCategory()),
        ((0, 0), 1, IID()),
        ((480, 96), 6, Experts(experts=2)),  # a novice has a fifth of 8 validation examples
        ((480, 240), 40, Dirichlet(alpha=0.001)),
    ],
)
def test_what_cannot_be_dealt(sizes: tuple[int, int], agents: int, partition: Partition) -> None:
    pools = (pool(sizes[0], "train"), pool(sizes[1], "validation"))
    name = next(name for name, kind in PARTITIONS.items() if isinstance(partition, kind))
    with pytest.raises(ConfigError, match=f"partition '{name}' .* use more examples, fewer agents or less"):
        deal(pools, CATEGORIES, agents, partition, 0)


# An agent's own examples


@settings(max_examples=200)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=80), st.floats(0.01, 0.9), st.integers(0, 99))
def test_own_examples_are_divided_by_prompt(prompts: list[int], share: float, seed: int) -> None:
    examples = [Example(f"p{prompt}", str(place), key=f"p{prompt}") for place, prompt in enumerate(prompts)]
    groups, wanted = len(set(prompts)), max(4 if len(prompts) >= 20 else 1, round(share * len(prompts)))
    if groups == 1 or wanted >= len(prompts):
        with pytest.raises(ConfigError, match="^x.jsonl: (expected at least 2 different prompts|a `validation` share)"):
            hold_out("x.jsonl", examples, share, seed)
        return
    train, validation = hold_out("x.jsonl", examples, share, seed)
    assert sorted(example.completion for example in train + validation) == sorted(map(str, range(len(prompts))))
    assert train and validation and not set(keys(train)) & set(keys(validation))
    if groups == len(prompts):
        assert len(validation) == wanted
    if len(prompts) >= 20:
        assert len(validation) >= 4 or len(set(keys(train))) == 1
    assert hold_out("x.jsonl", examples, share, seed) == (train, validation)


def test_how_many_own_examples_validate() -> None:
    sizes = {size: len(hold_out("x", pool(size, "own"), 0.1, 0)[1]) for size in (2, 8, 19, 20, 39, 60, 1000)}
    assert sizes == {2: 1, 8: 1, 19: 2, 20: 4, 39: 4, 60: 6, 1000: 100}
    with pytest.raises(ConfigError, match="x: a `validation` share of 0.99 leaves none of 20 examples to train on"):
        hold_out("x", pool(20, "own"), 0.99, 0)
    with pytest.raises(ConfigError, match="x: expected at least 2 different prompts, .* found 1; examples of one"):
        hold_out("x", pool(1, "own") * 30, 0.1, 0)
