"""Which positions of two tokenizations of one answer correspond: those whose prefixes end at the same byte.

A row of knowledge says what is expected after a prefix. Where two tokenizers have both put a boundary, their models
have read the same text, and what one expects the other can learn; nowhere else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from peertune.align.tokens import Vocabulary
from peertune.errors import PayloadError

BEFORE = -1  # before the space that some tokenizers put in front of a text
MASKED = -2  # no place in the text, so comparable to nothing
_SHIFT = 32  # bits of a start, in a key of problem and start


@dataclass(frozen=True, eq=False)
class Positions:
    """Problem after problem, row after row of a `Knowledge`: where the prefix ends that a row comes after.

    `lengths` int32 [P]: rows of each problem. `starts` int32 [N]: bytes of the answer in UTF-8, 0 for a row that
    follows the prompt alone; or `BEFORE`, or `MASKED`. They rise within a problem, those that are masked apart.
    """

    lengths: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, vocabulary: Vocabulary, answers: Iterable[tuple[Sequence[int], str]]) -> "Positions":
        """Of the tokens and the text of each answer, as in `starts`."""
        parts = [starts(vocabulary, tokens, text) for tokens, text in answers]
        lengths = np.array([len(part) for part in parts], dtype=np.int32)
        return cls(lengths, np.concatenate([np.zeros(0, dtype=np.int32), *parts]))

    def only(self, keep: np.ndarray) -> "Positions":
        """Of the same problems, but none of those where `keep`, bool [P], is False; as of knowledge."""
        return Positions(np.where(keep, self.lengths, 0).astype(np.int32), self.starts[np.repeat(keep, self.lengths)])

    def check(self) -> None:
        """Raise `PayloadError` unless all is as the class says."""
        self.placed()

    def placed(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows that are not masked, and of each one number, int64, for its problem and start; both rising.

        Raises `PayloadError` unless all is as the class says.
        """
        arrays = (self.lengths, self.starts)
        if any(array.dtype != np.int32 or array.ndim != 1 for array in arrays) or (self.lengths < 0).any():
            raise PayloadError("positions: expected lengths of 0 or more and starts as int32, one number each")
        if int(self.lengths.sum(dtype=np.int64)) != len(self.starts):
            raise PayloadError(f"positions: expected lengths that sum to {len(self.starts)} starts, found others")
        rows = np.flatnonzero(self.starts != MASKED)
        problems = np.repeat(np.arange(len(self.lengths), dtype=np.int64) << _SHIFT, self.lengths)
        keys = problems[rows] + (self.starts[rows] - MASKED)
        if (self.starts < MASKED).any() or (keys[1:] <= keys[:-1]).any():
            raise PayloadError(f"positions: expected starts of {MASKED} or more that rise in a problem, found others")
        return rows, keys


def starts(vocabulary: Vocabulary, tokens: Sequence[int], text: str) -> np.ndarray:
    """Where in `text`, an answer of tokens `tokens`, the prefix of each token ends, in bytes; int32 [n].

    The row of a special token is masked, but for the first end of sequence after the whole text; so is every row whose
    token is not what the text goes on with: where text was cut off, normalised or unknown, and from there on.
    """
    pieces = [vocabulary.tokens[token] for token in tokens]
    spelt, given = b"".join(pieces), text.encode()
    spaced = _agreed(spelt, b" " + given) > _agreed(spelt, given)
    if spaced:
        given = b" " + given
    widths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    ends = np.cumsum(widths)
    agreed = _agreed(spelt, given)
    said = (widths > 0) & (ends <= agreed)
    if agreed == len(given):
        ending = (ends == agreed) & (np.asarray(tokens) == vocabulary.roles.get("eos"))
        said[np.flatnonzero(ending)[:1]] = True
    return np.where(said, ends - widths + (BEFORE if spaced else 0), MASKED).astype(np.int32)


def match(source: Positions, target: Positions) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `source` and those of `target` that correspond, pair by pair; both rise. int64.

    In time proportional to the number of rows: two rising sequences are merged. Raises `PayloadError` if they are not
    positions of as many problems, or not as `Positions` says.
    """
    if len(source.lengths) != len(target.lengths):
        raise PayloadError(
            f"positions: expected those of the same problems, found {len(source.lengths)} and {len(target.lengths)}"
        )
    (rows, keys), (others, other_keys) = source.placed(), target.placed()
    _, first, second = np.intersect1d(keys, other_keys, assume_unique=True, return_indices=True)
    return rows[first], others[second]


def _agreed(one: bytes, other: bytes) -> int:
    """How many bytes are the same from the beginning."""
    size = min(len(one), len(other))
    differ = np.frombuffer(one, np.uint8, size) != np.frombuffer(other, np.uint8, size)
    return int(differ.argmax()) if differ.any() else size
