"""Batches: every row once an epoch, whatever the batch size; the same from the same seed."""

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from peertune.lm.batches import batch_at, batches
from peertune.lm.encode import Row


def rows(count: int) -> list[Row]:
    return [Row((index,), 1, False) for index in range(count)]


@given(st.integers(1, 20), st.integers(1, 25), st.integers(0, 60))
def test_an_epoch_has_every_row_once(count: int, size: int, start: int) -> None:
    data = rows(count)
    start -= start % count  # the beginning of an epoch
    drawn: list[Row] = []
    while len(drawn) < count:
        drawn += batch_at(data, start + len(drawn), size, lambda epoch: epoch)
    assert sorted(row.ids for row in drawn[:count]) == [row.ids for row in data]


def test_batches_follow_each_other_without_gaps() -> None:
    data = rows(7)
    in_one = batch_at(data, 3, 10, lambda epoch: epoch)
    in_parts = batch_at(data, 3, 4, lambda epoch: epoch) + batch_at(data, 7, 6, lambda epoch: epoch)
    assert in_one == in_parts


def test_epochs_are_shuffled_differently() -> None:
    data = rows(50)
    assert batch_at(data, 0, 50, lambda epoch: epoch) != batch_at(data, 50, 50, lambda epoch: epoch)


def test_endless_batches_depend_on_the_seed_alone() -> None:
    data = rows(9)
    first = list(islice(batches(data, 4, seed=1), 9))
    assert first == list(islice(batches(data, 4, seed=1), 9))
    assert first != list(islice(batches(data, 4, seed=2), 9))
    assert sorted(row.ids for batch in first[:9] for row in batch) == sorted([row.ids for row in data] * 4)


def test_a_batch_is_never_larger_than_the_data() -> None:
    assert [len(batch) for batch in islice(batches(rows(3), 16, seed=0), 2)] == [3, 3]
