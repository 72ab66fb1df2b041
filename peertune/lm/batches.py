"""Which rows make a batch: without replacement, epoch after epoch, from a seed and a position only."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")  # a row, or a row with its teacher


def batch_at(rows: Sequence[Item], position: int, size: int, seed_of_epoch: Callable[[int], int]) -> list[Item]:
    """`size` rows from `position` of the endless sequence that repeats `rows`, shuffled anew in every epoch."""
    places = [divmod(place, len(rows)) for place in range(position, position + size)]
    orders = {epoch: np.random.default_rng(seed_of_epoch(epoch)).permutation(len(rows)) for epoch, _ in places}
    return [rows[orders[epoch][index]] for epoch, index in places]


def batches(rows: Sequence[Item], size: int, seed: int) -> Iterator[list[Item]]:
    """Batches for ever, of `size` rows or of all there are; every row once an epoch."""
    size = min(size, len(rows))
    position = 0
    while True:
        yield batch_at(
            rows, position, size, lambda epoch: int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        )
        position += size
