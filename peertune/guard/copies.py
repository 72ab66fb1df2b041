"""Copies of private text: passages that a text shares with what its author was trained on.

Texts are compared without blanks and without regard to the case of ASCII letters, so that another layout hides nothing.
Of the private text every `STRIDE`-th window of `WINDOW` characters is remembered by a polynomial hash modulo 2^64 (Karp
and Rabin 1987); of a text that is to leave, every window is looked up. So each shared passage of `FOUND` characters is
found, none shorter than `WINDOW`, and n characters of private text take 8 n / `STRIDE` bytes.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from peertune.guard.spans import Span

WINDOW, STRIDE = 32, 19  # characters that are no blanks; a window is a power of two
FOUND = WINDOW + STRIDE - 1
_BASE = 0x9E3779B97F4A7C15  # odd
_AT_ONCE = 1 << 15  # windows; they stay in the cache


class Copies:
    """What must not be copied: the passages of `private`, but for those that are also in `public`."""

    def __init__(self, private: Iterable[str], public: Iterable[str] = ()) -> None:
        own, others = (_hashes(_letters("\0".join(texts))[0]) for texts in (private, public))
        self._remembered = np.setdiff1d(own[::STRIDE], others)
        bits = (16 * len(self._remembered)).bit_length()
        self._shift = np.uint64(64 - bits)
        self._begun = np.zeros(1 << bits, bool)  # do any of `remembered` begin with these bits?
        self._begun[self._remembered >> self._shift] = True

    def find(self, text: str) -> Iterator[Span]:
        """The passages of `text` that are copies, in order, each with up to `STRIDE` - 1 characters beside it: which of
        its windows is remembered depends on where it stood.
        """
        letters, places = _letters(text)
        for start, end in _passages(np.flatnonzero(self._holds(_hashes(letters)))):
            yield Span(int(places[start]), int(places[min(end, len(places)) - 1]) + 1, "copy")

    def _holds(self, hashes: np.ndarray) -> np.ndarray:
        """Which of `hashes` are remembered."""
        held = self._begun[hashes >> self._shift]
        rest = hashes[held]  # one in 16, and those that are
        held[held] = self._remembered[np.searchsorted(self._remembered[:-1], rest)] == rest
        return held


def _letters(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The code points of what is no blank, in lower case; and where they stand in `text`."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    places = np.flatnonzero((codes > ord(" ")) & (codes != 0xA0) | (codes == 0))
    letters = codes[places].astype(np.uint64)
    capital = (letters >= ord("A")) & (letters <= ord("Z"))
    return np.where(capital, letters + np.uint64(32), letters), places


def _hashes(letters: np.ndarray) -> np.ndarray:
    """The hash of every window: of letters c, the sum of c[i] BASE^(WINDOW - 1 - i) modulo 2^64."""
    last = len(letters) - WINDOW + 1
    return np.concatenate(
        [np.empty(0, np.uint64)]
        + [_doubled(letters[at : at + _AT_ONCE + WINDOW - 1]) for at in range(0, last, _AT_ONCE)]
    )


def _doubled(hashes: np.ndarray) -> np.ndarray:
    """The hashes of windows of WINDOW letters, of those of one: H_2k[i] = H_k[i] BASE^k + H_k[i + k]."""
    size = 1
    while size < WINDOW:
        hashes = hashes[:-size] * np.uint64(pow(_BASE, size, 1 << 64)) + hashes[size:]
        size *= 2
    return hashes


def _passages(starts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Windows that begin at `starts`, widened by what may belong to the same passage, and joined where they meet."""
    if not len(starts):
        return
    apart = np.flatnonzero(np.diff(starts) > WINDOW + 2 * (STRIDE - 1))
    for first, last in zip([0, *(apart + 1)], [*apart, -1], strict=True):
        yield max(0, int(starts[first]) - STRIDE + 1), int(starts[last]) + FOUND
