"""Payloads as bytes: true ones that are a promise, frames with any body, and what `decode` may do with either."""

import json

import numpy as np

from peertune.assessment import Assessment
from peertune.errors import PayloadError
from peertune.knowledge import pack
from peertune.payloads import (
    PAYLOADS,
    Arrays,
    Assessed,
    Change,
    Claims,
    Factors,
    Gain,
    Number,
    Payload,
    Picks,
    Profile,
    Receipt,
    Record,
    Records,
    Scores,
    Texts,
    Verdicts,
    Weights,
    decode,
    encode,
)

INTEGERS = np.array([1, 2], np.int32)
EXAMPLE = Assessed.of(
    Assessment(
        pack(np.random.default_rng(0).normal(0, 1, (3, 50)), np.array([1, 2]), 4),
        np.array([0, 0, 3], np.int32),
        np.ones(2, np.float32),
        INTEGERS,
        "ab" * 32,
    )
)
GOLDEN = [
    (Number(3), "505401066e756d62657281a576616c756503"),
    (Number(0.5), "505401066e756d62657281a576616c7565cb3fe0000000000000"),
    (Texts(("a", "é")), "50540105746578747381a56974656d7392a161a2c3a9"),
    (
        Records((Record("a", "é"),)),
        "505401077265636f72647381a56974656d739182a670726f6d7074a161aa636f6d706c6574696f6ea2c3a9",
    ),
    (Profile((0.0,) * 32), "5054010770726f66696c6581a676616c756573dc0020" + "cb0000000000000000" * 32),
    (
        Gain(Change(2.0, 1.5, 0.25), None, 0.5, kept=False),
        "505401046761696e84a77072697661746583a66265666f7265cb4000000000000000a56166746572cb3ff80000000000"
        "00a56572726f72cb3fd0000000000000a570726f6265c0a96b696c6f6279746573cb3fe0000000000000a46b657074c2",
    ),
    (
        Gain(Change(2.0, 1.5, 0.25), Change(1.0, 0.0, 0.5), 0.5, kept=True),
        "505401046761696e84a77072697661746583a66265666f7265cb4000000000000000a56166746572cb3ff80000000000"
        "00a56572726f72cb3fd0000000000000a570726f626583a66265666f7265cb3ff0000000000000a56166746572cb0000"
        "000000000000a56572726f72cb3fe0000000000000a96b696c6f6279746573cb3fe0000000000000a46b657074c3",
    ),
    (
        Picks((0, 300)),
        "505401057069636b7381a56974656d739200cd012c",
    ),
    (
        Claims((7, 65535), (1, 0), (0, 1)),
        "50540106636c61696d7383a873757270726973659207cdffffa76f666665726564920100a7736574746c6564920001",
    ),
    (Factors("AB"), "50540107666163746f727381a76c657474657273a24142"),
    (
        Verdicts((1, 0)),
        "50540108766572646963747381a6706173736564920100",
    ),
    (
        Scores((1.0, 0.0), 2, {"x": 1.0}),
        "5054010673636f72657383a7636f727265637492cb3ff0000000000000cb0000000000000000a773616d706c657302"
        "a76d65747269637381a178cb3ff0000000000000",
    ),
    (Receipt("ab" * 32), "50540107726563656970" + "7481a6646967657374d940" + "6162" * 32),
    (
        Weights({"w": np.array([1.0, -2.0], np.float32)}, 3),
        "505401077765696768747303000000000000003800000000000000"
        + b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '.hex()
        + "0000803f000000c0",
    ),
]


def frame(kind: str, body: bytes) -> bytes:
    """A payload of `kind` with any body."""
    return b"PT\x01" + bytes([len(kind)]) + kind.encode() + body


def weights_frame(header: object, data: bytes = b"", claimed: int | None = None) -> bytes:
    """Weights with any header, as JSON or as raw bytes, and any claim about its size."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if claimed is None else claimed
    return frame("weights", bytes(8) + size.to_bytes(8, "little") + raw + data)


def tensor(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def assert_same(left: Payload, right: Payload) -> None:
    """Equal, arrays bit by bit."""
    if not isinstance(left, Arrays):
        assert left == right
        return
    assert isinstance(right, Arrays)
    assert (left.kind, left.number) == (right.kind, right.number) and left.tensors.keys() == right.tensors.keys()
    for name, array in left.tensors.items():
        other = right.tensors[name]
        assert (array.dtype, array.shape, array.tobytes()) == (other.dtype, other.shape, other.tobytes())


def refused(raw: bytes) -> bool:
    """Does `raw` raise `PayloadError`? If it decodes, it must be a payload that encodes again to the same value."""
    try:
        payload = decode(raw)
    except PayloadError as error:
        assert len(str(error)) < 300
        return True
    assert payload.kind in PAYLOADS
    assert_same(decode(encode(payload)), payload)
    return False
