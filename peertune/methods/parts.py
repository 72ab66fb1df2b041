"""Which tensors of an adapter belong to a client of a split model, by their names alone."""

from collections.abc import Mapping
from typing import TypeVar

Tensor = TypeVar("Tensor")


def of_client(tensors: Mapping[str, Tensor], first: int, last: int | None, plain: bool) -> dict[str, Tensor]:
    """Those of blocks below `first` and, unless the head is at the server (`plain`), of blocks from `last` on and of
    what is no block: a classification head. `last`: None = no block.
    """

    def held(name: str) -> bool:
        block = block_of(name)
        if block is None:
            return not plain
        return block < first or (last is not None and block >= last)

    return {name: tensor for name, tensor in tensors.items() if held(name)}


def block_of(name: str) -> int | None:
    """The number of the block that a tensor is in, as PEFT names it: ....h.3.attn....; None if it is in none."""
    return next((int(word) for word in name.split(".") if word.isdecimal()), None)
