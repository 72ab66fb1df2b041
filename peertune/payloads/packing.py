"""Arrays in fewer bytes: the first bytes of all numbers, then all second bytes, and so on, compressed with zstd.

A receiver knows how many numbers to expect and unpacks no more. What would shrink more than `MOST` times travels as it
is, so nobody needs to believe a few bytes that claim to be a gigabyte.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import zstandard

from peertune.errors import PayloadError

MOST = 64
_LEVEL = 9
_PACKED = ".zst"  # after the name of an array that is compressed


def packed(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """`array` under its name, or compressed under that name and `.zst`, uint8."""
    planes = np.frombuffer(array.tobytes(), np.uint8).reshape(-1, array.itemsize).T.tobytes()
    small = zstandard.ZstdCompressor(level=_LEVEL).compress(planes)
    if len(small) < len(planes) <= MOST * len(small):
        return {name + _PACKED: np.frombuffer(small, np.uint8)}
    return {name: array}


def names(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Of the arrays in `tensors`, compressed or not."""
    return [name.removesuffix(_PACKED) for name in tensors]


def unpacked(tensors: Mapping[str, np.ndarray], name: str, dtype: Any, count: int) -> np.ndarray:
    """The array of that name, `count` numbers of `dtype`. Raises `PayloadError` if it is another, or none is there."""
    wanted = np.dtype(dtype)
    if name + _PACKED in tensors:
        raw = _grown(name, tensors[name + _PACKED], count * wanted.itemsize)
        planes = np.frombuffer(raw, np.uint8).reshape(wanted.itemsize, count)
        return np.ascontiguousarray(planes.T).view(wanted).reshape(count)
    array = tensors.get(name)
    if array is None or array.dtype != wanted or array.shape != (count,):
        found = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise PayloadError(f"expected {name} to be {wanted} ({count},), found {found}")
    return array


def _grown(name: str, small: np.ndarray, size: int) -> bytes:
    raw = small.tobytes()
    try:
        claimed = zstandard.get_frame_parameters(raw).content_size
        if small.dtype != np.uint8 or claimed != size or size > MOST * len(raw):
            raise PayloadError(f"expected {name} to unpack to {size} bytes, at most {MOST} times its size")
        return zstandard.ZstdDecompressor().decompress(raw, allow_extra_data=False)
    except zstandard.ZstdError:
        raise PayloadError(f"expected {name} to be compressed with zstd, found other bytes") from None
