"""How many bytes a payload has on the wire, framing included, from its shape alone."""

import json
import math
from collections.abc import Mapping

import numpy as np

from peertune.payloads.arrays import DTYPES, Arrays

Shapes = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> (safetensors dtype, shape)
_ORDER = ("F32", "I32", "F16", "U16", "I8", "U8")  # in which safetensors writes them
_FRAME = 4  # "PT", the version, the length of the kind
_LENGTH = 8  # bytes of the integer field, and of the header's length
_ALIGNED = 8


def arrays(kind: type[Arrays], tensors: Shapes) -> int:
    """Bytes of a payload of named arrays: as `len(encode(payload))`, but nothing is made."""
    header: dict[str, object] = {}
    end = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (_ORDER.index(item[1][0]), item[0])):
        start, end = end, end + np.dtype(DTYPES[dtype]).itemsize * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    written = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    padded = math.ceil(written / _ALIGNED) * _ALIGNED
    return _FRAME + len(kind.kind) + 2 * _LENGTH + padded + end


def floats(tensors: Mapping[str, tuple[int, ...]]) -> Shapes:
    """The same arrays as fp32."""
    return {name: ("F32", shape) for name, shape in tensors.items()}


def code(dtype: np.dtype) -> str:
    """What safetensors calls it."""
    return next(name for name, kind in DTYPES.items() if dtype == kind)
