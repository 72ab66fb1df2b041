"""Rows of unlike length without their padding: what a client of a split model sends, and how it is cut into batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peertune.errors import PayloadError
from peertune.lm.encode import Row

NO_INTEGERS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Sample:
    """One row: at the tokens `reads` (ascending) the head is read, and each must predict its one of `targets`."""

    ids: tuple[int, ...]
    reads: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Smashed:
    """What leaves a client's lower part: the hidden states of all rows, one row after the other, shortest first.

    `hidden` fp32 [N, width]. `lengths` int32 [rows], in tokens, sum N. `reads` int32 [M]: the hidden states that the
    head reads, by their number among the N, ascending; empty where all N must come back. `targets` int32 [M]: the
    labels, which are sent in the plain variant alone; else empty.
    """

    hidden: np.ndarray
    lengths: np.ndarray
    reads: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, slots=True)
class Bucket:
    """Rows of like length that go through the model together: `lengths` [rows], and the reads in the padded batch
    [rows, tokens], each by its row and place; `rows`, `places` [m]. int64.
    """

    lengths: Tensor
    rows: Tensor
    places: Tensor

    @property
    def tokens(self) -> int:
        """Tokens, padding not counted."""
        return int(self.lengths.sum())


def completion(row: Row) -> Sample:
    """A prompt and its completion: the token before predicts each token of the completion."""
    return Sample(row.ids, tuple(range(row.prompt_length - 1, len(row.ids) - 1)), row.ids[row.prompt_length :])


def flat_reads(samples: Sequence[Sample]) -> np.ndarray:
    """The reads of all rows as numbers among all their tokens; int32 [M]."""
    starts = np.cumsum([0, *(len(sample.ids) for sample in samples)])
    of_rows = zip(samples, starts, strict=False)
    return np.array([start + read for sample, start in of_rows for read in sample.reads], np.int32)


def check(lengths: np.ndarray, reads: np.ndarray, targets: np.ndarray, max_rows: int, max_length: int) -> None:
    """Raise `PayloadError` unless these describe a batch, as in `Smashed`; they come from somebody else."""
    if any(array.dtype != np.int32 or array.ndim != 1 for array in (lengths, reads, targets)):
        raise PayloadError("expected lengths, reads and targets as int32, one number each")
    if not 1 <= len(lengths) <= max_rows:
        raise PayloadError(f"expected 1 to {max_rows} rows, found {len(lengths)}")
    if lengths.min() < 1 or lengths.max() > max_length or (np.diff(lengths) < 0).any():
        raise PayloadError(
            f"expected rows of 1 to {max_length} tokens, shortest first, found {lengths.min()} to {lengths.max()}"
        )
    if len(reads) and (reads[0] < 0 or reads[-1] >= lengths.sum() or (reads[1:] <= reads[:-1]).any()):
        raise PayloadError(f"expected reads as ascending numbers of some of {lengths.sum()} tokens")


def buckets(lengths: np.ndarray, reads: np.ndarray, size: int, device: torch.device) -> list[Bucket]:
    """Cut a batch into parts of `size` rows, in order; `lengths` and `reads` as in `Smashed`."""
    ends = np.cumsum(lengths)
    row_of = np.searchsorted(ends, reads, side="right")
    place_of = reads - (ends - lengths)[row_of]

    def bucket(first: int) -> Bucket:
        inside = (row_of >= first) & (row_of < first + size)
        parts = (lengths[first : first + size], row_of[inside] - first, place_of[inside])
        return Bucket(*(torch.as_tensor(part.astype(np.int64), device=device) for part in parts))

    return [bucket(first) for first in range(0, len(lengths), size)]


def pack(hidden: Tensor, lengths: Tensor) -> Tensor:
    """[rows, tokens, width] padded on the right -> [N, width], row after row."""
    return hidden[real_tokens(lengths)]


def unpack(packed: Tensor, lengths: Tensor) -> Tensor:
    """[N, width] -> [rows, tokens, width], zeros as padding."""
    real = real_tokens(lengths)
    hidden = packed.new_zeros(*real.shape, packed.shape[1])
    hidden[real] = packed
    return hidden


def real_tokens(lengths: Tensor) -> Tensor:
    """bool [rows, tokens]: is it a token of its row?"""
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
