"""Arrays: adapters and what else is too large for msgpack. On the wire: one number, then safetensors."""

import math
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from peertune.errors import PayloadError
from peertune.payloads.base import MAX_BYTES, Name, Payload, Size

MAX_HEADER_BYTES = 1 << 20  # safetensors' own limit is 100 MB, which took 600 MB of memory to refuse
MAX_TENSORS = 8192
MAX_DIMENSIONS = 8
DTYPES = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "U16": np.uint16, "U8": np.uint8, "I8": np.int8}


class Arrays(Payload, frozen=True):
    """Base of payloads of named arrays. A subclass adds one integer field, 0 to 2**53, and its checks."""

    max_bytes: ClassVar[int] = MAX_BYTES
    dtypes: ClassVar[tuple[str, ...]] = tuple(DTYPES)
    tensors: dict[str, np.ndarray]

    @property
    def number(self) -> int:
        """The integer field."""
        return getattr(self, self.__struct_fields__[1])

    def check(self) -> None:
        if not 0 <= self.number < 1 << 53:
            raise PayloadError(f"{self.kind}: {self.__struct_fields__[1]} is from 0 to 2**53, not {self.number}")
        for name, tensor in self.tensors.items():
            if not np.isfinite(tensor).all():
                raise PayloadError(f"{self.kind}: array {name[:80]!r} holds NaN or infinity")


class Weights(Arrays, frozen=True):
    """An adapter: named fp32 or fp16 arrays, and the number of training examples behind it."""

    kind: ClassVar[str] = "weights"
    dtypes: ClassVar[tuple[str, ...]] = ("F32", "F16")
    examples: int


def encode_arrays(payload: Arrays) -> bytes:
    """The body of an array payload."""
    tensors = save_safetensors({name: np.asarray(array, order="C") for name, array in payload.tensors.items()})
    _check_header(memoryview(tensors), type(payload))
    return payload.number.to_bytes(8, "little") + tensors


def decode_arrays(body: memoryview, kind: type[Arrays]) -> Arrays:
    """The payload of that kind in `body`, not yet checked. Raises `PayloadError`."""
    try:
        _check_header(body[8:], kind)
        arrays = load_safetensors(bytes(body[8:]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, SafetensorError, ValueError) as error:
        raise PayloadError(f"not valid {kind.kind} ({type(error).__name__})") from None
    build: Any = kind
    ordered = dict(sorted(arrays.items()))  # as it comes, the order changes from process to process
    return build(ordered, int.from_bytes(body[:8], "little"))


class _TensorHeader(msgspec.Struct, forbid_unknown_fields=True):
    dtype: Literal["F32", "F16", "I32", "U16", "U8", "I8"]
    shape: Annotated[tuple[Size, ...], Meta(max_length=MAX_DIMENSIONS)]
    data_offsets: tuple[Size, Size]


_HEADER = msgspec.json.Decoder(Annotated[dict[Name, _TensorHeader], Meta(max_length=MAX_TENSORS)])


def _check_header(tensors: memoryview, kind: type[Arrays]) -> None:
    if len(tensors) < 8:
        raise PayloadError(f"{kind.kind} are cut short")
    size = int.from_bytes(tensors[:8], "little")
    if size > min(MAX_HEADER_BYTES, len(tensors) - 8):
        raise PayloadError(f"a tensor header has at most {MAX_HEADER_BYTES} bytes, this one claims {size}")
    header = _HEADER.decode(tensors[8 : 8 + size])
    if strange := sorted({tensor.dtype for tensor in header.values()} - set(kind.dtypes)):
        raise PayloadError(f"{kind.kind} have numbers of {', '.join(kind.dtypes)}, not {strange[0]}")
    _check_offsets(header, len(tensors) - 8 - size)


def _check_offsets(header: dict[str, _TensorHeader], size: int) -> None:
    """Every tensor has the bytes that its shape needs, and together they fill the buffer."""
    total = 0
    for name, tensor in header.items():
        start, end = tensor.data_offsets
        needed = math.prod(tensor.shape) * np.dtype(DTYPES[tensor.dtype]).itemsize
        if end - start != needed:
            raise PayloadError(f"tensor {name[:80]!r} has {end - start} bytes, its shape needs {needed}")
        total += needed
    if total != size:
        raise PayloadError(f"tensors take {total} bytes, the payload has {size}")
