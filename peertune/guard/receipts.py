"""A receipt: what a receiver signs for everything that it opened of one source in one round.

On the wire `b"PTR" | version | signature (64 bytes) | body`. It travels in the open: it holds sequence numbers and
digests, SHA-256 of `salt | SHA-256 of the content`, and the salt, 32 random bytes a message, is known to sender and
receiver alone. So nobody else can find out what a short content was by trying all.
"""

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from peertune.errors import SealError
from peertune.guard.header import Number, RunName
from peertune.guard.keys import SIGNATURE, Card, Identity, Key, PartyName

MAX_RECEIPT = 1 << 20  # bytes; 50 to a content
_CONTEXT = b"peertune receipt 1\0"
_MAGIC = b"PTR\x01"
MAX_CONTENTS = 1 << 14  # in one receipt; who opened more signs several


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`destination` has opened these contents of `source`: their digests by sequence number."""

    run: RunName
    round: Number
    source: PartyName
    destination: PartyName
    contents: Annotated[dict[Number, Key], Meta(max_length=MAX_CONTENTS)]


def digest_of(salt: bytes, content: bytes) -> bytes:
    """What a receipt says of a content whose SHA-256 is `content`; 32 bytes."""
    return hashlib.sha256(salt + content).digest()


def sign_receipt(identity: Identity, receipt: Receipt) -> bytes:
    """The wire form, signed by its destination."""
    body = msgspec.msgpack.encode(receipt)
    return _MAGIC + identity.sign(_CONTEXT + body) + body


def read_receipt(card: Card, raw: bytes) -> Receipt:
    """The receipt that the owner of `card` signed. Raises `SealError` whatever the bytes are."""
    if not len(_MAGIC) + SIGNATURE < len(raw) <= MAX_RECEIPT or raw[: len(_MAGIC)] != _MAGIC:
        raise SealError(f"these {len(raw)} bytes are not a receipt of this version of peertune")
    signature, body = raw[len(_MAGIC) : len(_MAGIC) + SIGNATURE], raw[len(_MAGIC) + SIGNATURE :]
    if not card.verifies(signature, _CONTEXT + body):
        raise SealError(f"a receipt is not signed by the key that is pinned for {card.name} ({card.fingerprint})")
    try:
        receipt = msgspec.msgpack.decode(body, type=Receipt)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SealError(f"a receipt of {card.name} is not valid ({type(error).__name__})") from None
    if receipt.destination != card.name:
        raise SealError(f"a receipt of {receipt.destination} is signed by {card.name}")
    return receipt
