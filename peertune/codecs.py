"""Activations and their gradients in fewer bytes: fp32 [tokens, width] <-> named arrays.

Both sides know the codec, the number of tokens and the width, so they know name, dtype and shape of every array before
one comes. Errors and bytes, for N tokens of width d, with i = 2 bytes an id, or 4 where d > 65536:

    kind  bytes                                 error of an entry x, at most
    fp32  4 N d                                 0
    fp16  2 N d + 4                             2^-11 |x| + 2^-39 max|X|, X the whole array
    int8  N (d - o) + 4 N, and with o outlier   s / 2, s = max|its token| / 127; in an outlier channel, and for s only
          channels 2 N o + i o + 4              the others count, as fp16
    topk  (2 + i) N k + 4                       as fp16 where kept, else |x|, not above the least that was kept

Rounding of fp32 (2^-23 |x|), and numbers below 2^-126, aside. A few channels of GPT-2-class models are far larger than
the rest (LLM.int8(), arXiv:2208.07339); without `outliers` they set the scale of every token. Gradients would vanish in
plain fp16, so halves share a power of two as their scale, and scales of int8 are fp32. There is no error feedback: what
one batch lost belongs to other tokens than the next batch has.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from peertune.errors import ConfigError, PayloadError

Arrays = dict[str, np.ndarray]
Kind = Literal["fp32", "fp16", "int8", "topk"]
TINY = np.float32(2.0**-126)  # the least scale: smaller numbers lose digits
EXPONENTS = 256  # of the scale of halves, on either side; fp32 needs 163


@dataclass(frozen=True, slots=True)
class Codec:
    """How to encode. `outliers`: of int8, channels that stay fp16. `keep`: of topk, entries of a token.

    Raises `ConfigError`: a number that the kind does not take.
    """

    kind: Kind = "fp32"
    outliers: int = 0
    keep: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _CODECS:
            raise ConfigError(f"codec: expected one of {', '.join(_CODECS)}, found {self.kind!r}")
        if self.outliers and self.kind != "int8" or self.outliers < 0:
            raise ConfigError(f"codec: outliers are of int8 and not negative, found {self.outliers} of {self.kind}")
        if (self.keep > 0) != (self.kind == "topk"):
            raise ConfigError(f"codec: keep is 1 or more, of topk only; found {self.keep} of {self.kind}")

    @property
    def name(self) -> str:
        """For a person, and in an audit: int8 (4 apart), topk (12)."""
        more = f" ({self.outliers} apart)" if self.outliers else f" ({self.keep})" if self.keep else ""
        return self.kind + more


def bytes_of(codec: Codec, tokens: int, width: int) -> int:
    """Bytes of the arrays of one message, without their names."""
    parts = layout(codec, tokens, width).values()
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in parts)


def layout(codec: Codec, tokens: int, width: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Dtype and shape of each array. Raises `ConfigError`: more outliers or entries than the width allows."""
    ids = np.uint16 if width <= 1 << 16 else np.int32
    if codec.outliers >= width or codec.keep > width:
        raise ConfigError(
            f"codec: hidden states have {width} channels; expected fewer outliers, and at most as many to keep; "
            f"found {codec.outliers} and {codec.keep}"
        )
    parts: dict[str, tuple[type[np.number], tuple[int, ...]]] = {}
    if codec.kind in ("fp32", "fp16"):
        parts["values"] = np.float32 if codec.kind == "fp32" else np.float16, (tokens, width)
    elif codec.kind == "int8":
        parts |= {"values": (np.int8, (tokens, width - codec.outliers)), "scales": (np.float32, (tokens,))}
    else:
        parts |= {"values": (np.float16, (tokens, codec.keep)), "ids": (ids, (tokens, codec.keep))}
    if codec.outliers:
        parts |= {"outliers": (np.float16, (tokens, codec.outliers)), "channels": (ids, (codec.outliers,))}
    if codec.outliers or codec.kind in ("fp16", "topk"):
        parts["exponent"] = np.int32, (1,)
    return {name: (np.dtype(dtype), shape) for name, (dtype, shape) in parts.items()}


def encode_array(x: np.ndarray, codec: Codec) -> Arrays:
    """fp32 [tokens, width], neither 0, to arrays as `layout` has them. Raises `PayloadError`: NaN or infinity."""
    if not np.isfinite(x).all():
        raise PayloadError(f"expected finite activations and gradients, found NaN or infinity among {x.shape}")
    parts = _CODECS[codec.kind][0](x, codec)
    return {name: parts[name].astype(dtype) for name, (dtype, _) in layout(codec, *x.shape).items()}


def decode_array(parts: Mapping[str, np.ndarray], codec: Codec, tokens: int, width: int) -> np.ndarray:
    """The fp32 [tokens, width] in arrays that somebody sent, in the memory of a few of its like.

    Raises `PayloadError` unless they are as `layout` has them, ids in order and below `width`, all numbers finite.
    """
    _check(parts, layout(codec, tokens, width))
    with np.errstate(over="ignore", invalid="ignore"):  # looked for below
        x = _CODECS[codec.kind][1](parts, codec, (tokens, width))
    if not np.isfinite(x).all():
        raise PayloadError("expected finite numbers, found NaN, infinity or a scale that makes them so")
    return x


def _check(parts: Mapping[str, np.ndarray], expected: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> None:
    if parts.keys() != expected.keys():
        raise PayloadError(f"expected the arrays {sorted(expected)}, found {len(parts)} arrays by other names")
    for name, (dtype, shape) in expected.items():
        if parts[name].dtype != dtype or parts[name].shape != shape:
            raise PayloadError(
                f"{name}: expected {dtype} {shape}, found {parts[name].dtype} {parts[name].shape}; use the same codec "
                "on both sides"
            )


def _plain(x: np.ndarray, codec: Codec) -> Arrays:
    return {"values": x}


def _from_plain(parts: Mapping[str, np.ndarray], codec: Codec, shape: tuple[int, int]) -> np.ndarray:
    return parts["values"]


def _fp16(x: np.ndarray, codec: Codec) -> Arrays:
    values, exponent = _halves(x)
    return {"values": values, "exponent": exponent}


def _from_fp16(parts: Mapping[str, np.ndarray], codec: Codec, shape: tuple[int, int]) -> np.ndarray:
    return _whole(parts["values"], parts["exponent"])


def _int8(x: np.ndarray, codec: Codec) -> Arrays:
    channels = np.sort(np.argsort(np.abs(x).max(axis=0))[x.shape[1] - codec.outliers :])
    outliers, exponent = _halves(x[:, channels])
    rest = np.delete(x, channels, axis=1)
    scales = np.maximum(np.abs(rest).max(axis=1) / np.float32(127), TINY)
    values = np.rint(rest / scales[:, None])
    return {"values": values, "scales": scales, "outliers": outliers, "channels": channels, "exponent": exponent}


def _from_int8(parts: Mapping[str, np.ndarray], codec: Codec, shape: tuple[int, int]) -> np.ndarray:
    x = np.empty(shape, np.float32)
    usual = np.ones(shape[1], bool)
    if codec.outliers:
        _check_ids(parts["channels"], shape[1])
        usual[parts["channels"]] = False
        x[:, ~usual] = _whole(parts["outliers"], parts["exponent"])
    x[:, usual] = parts["values"] * parts["scales"][:, None]
    return x


def _topk(x: np.ndarray, codec: Codec) -> Arrays:
    split = x.shape[1] - codec.keep
    ids = np.sort(np.argpartition(np.abs(x), split, axis=1)[:, split:], axis=1)
    values, exponent = _halves(np.take_along_axis(x, ids, axis=1))
    return {"values": values, "ids": ids, "exponent": exponent}


def _from_topk(parts: Mapping[str, np.ndarray], codec: Codec, shape: tuple[int, int]) -> np.ndarray:
    _check_ids(parts["ids"], shape[1])
    x = np.zeros(shape, np.float32)
    np.put_along_axis(x, parts["ids"].astype(np.int64), _whole(parts["values"], parts["exponent"]), axis=1)
    return x


_CODECS: dict[str, tuple[Callable[..., Arrays], Callable[..., np.ndarray]]] = {
    "fp32": (_plain, _from_plain),
    "fp16": (_fp16, _from_fp16),
    "int8": (_int8, _from_int8),
    "topk": (_topk, _from_topk),
}


def _check_ids(ids: np.ndarray, width: int) -> None:
    """Each row of ids ascends from 0 or more to below `width`."""
    wide = ids.astype(np.int64)
    if wide.min() < 0 or wide.max() >= width or (np.diff(wide, axis=-1) < 1).any():
        raise PayloadError(f"expected ascending channels from 0 to {width - 1}, found others, or one twice")


def _halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x as fp16 times 2^exponent, so chosen that the largest is in 2^14 .. 2^15; fp16 ends at 65504."""
    exponent = int(np.frexp(np.abs(x).max(initial=0))[1]) - 15
    return np.ldexp(x, -exponent).astype(np.float16), np.array([exponent], np.int32)


def _whole(halves: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    if abs(int(exponent[0])) > EXPONENTS:
        raise PayloadError(f"expected an exponent within +-{EXPONENTS}, found {exponent[0]}")
    return np.ldexp(halves.astype(np.float32), int(exponent[0]))
