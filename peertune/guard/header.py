"""The header of a sealed message, in the open: `b"PTE" | version | length (2 bytes) | msgpack`.

Reading it is bounded and believes nothing: it is authentic only once the signature over it has been checked.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from peertune.errors import SealError
from peertune.guard.keys import PartyName

MAX_HEADER = 1024  # bytes
_MAGIC = b"PTE\x01"
_START = len(_MAGIC) + 2
MAX_HEAD = _START + MAX_HEADER  # bytes

RunName = Annotated[str, Meta(min_length=1, max_length=128)]
Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who sends what to whom. `sequence` is of the sender and never comes twice in a run; `call` is the number of the
    call that the message answers, so that two answers of a round cannot be exchanged.
    """

    version: Literal[1]
    run: RunName
    round: Number
    source: PartyName
    destination: PartyName
    sequence: Number
    call: Number


def write_header(header: Header) -> bytes:
    """The bytes before the signature. Raises `SealError` if the receiver would refuse them."""
    raw = msgspec.msgpack.encode(header)
    head = _MAGIC + len(raw).to_bytes(2, "little") + raw
    read_header(head)
    return head


def read_header(sealed: bytes) -> tuple[Header, bytes]:
    """The header of a sealed message, and the bytes up to its end. Raises `SealError` whatever the bytes are."""
    if len(sealed) < _START or sealed[: len(_MAGIC)] != _MAGIC:
        raise SealError(f"these {len(sealed)} bytes are not a sealed message of this version of peertune")
    length = int.from_bytes(sealed[len(_MAGIC) : _START], "little")
    if length > min(MAX_HEADER, len(sealed) - _START):
        raise SealError(f"a sealed message of {len(sealed)} bytes: expected a header of at most {MAX_HEADER} in it")
    head = sealed[: _START + length]
    try:
        return msgspec.msgpack.decode(head[_START:], type=Header), head
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SealError(f"the header of a sealed message is not valid ({type(error).__name__})") from None


def difference(expected: Header, found: Header) -> str:
    """The first field that differs."""
    pairs = [(name, getattr(expected, name), getattr(found, name)) for name in Header.__struct_fields__]
    return next(f"expected {name} {want!r}, found {have!r:.80}" for name, want, have in pairs if want != have)
