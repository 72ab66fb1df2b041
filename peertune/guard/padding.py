"""Padding: the size of a sealed message tells only its bucket.

Buckets are 4, 16, 64 and 256 KiB, and above that eight for each doubling, so a large payload grows by 12.5 % at most.
A padded message is `length (8 bytes, little-endian) | content | zeros`.
"""

from peertune.errors import SealError

_BASE = 4096  # bytes
_COARSE = 256 * 1024  # bytes up to which a bucket is four times the one before
_LENGTH = 8  # bytes


def bucket(size: int) -> int:
    """The smallest bucket that holds `size` bytes."""
    if size <= _COARSE:
        limit = _BASE
        while limit < size:
            limit *= 4
        return limit
    step = 1 << ((size - 1).bit_length() - 4)
    return -(-size // step) * step


def padded_size(size: int) -> int:
    """Bytes of a padded content of `size` bytes."""
    return bucket(_LENGTH + size)


def pad(*parts: bytes) -> bytearray:
    """The parts one after the other, padded."""
    size = sum(map(len, parts))
    padded = bytearray(padded_size(size))
    padded[:_LENGTH] = size.to_bytes(_LENGTH, "little")
    start = _LENGTH
    for part in parts:
        padded[start : start + len(part)] = part
        start += len(part)
    return padded


def unpad(padded: bytes) -> memoryview:
    """The content of a padded message. Raises `SealError` unless its size is that of its bucket."""
    size = int.from_bytes(padded[:_LENGTH], "little")
    if len(padded) < _LENGTH or padded_size(size) != len(padded):
        raise SealError(f"a padded message of {len(padded)} bytes does not have the size of its bucket")
    return memoryview(padded)[_LENGTH : _LENGTH + size]
