"""Sealed messages from party to party; whoever carries them can neither read, forge, exchange nor repeat them.

On the wire `b"PTE" | version | header length (2 bytes) | header | signature (64 bytes) | ciphertext`. The ciphertext is
HPKE (RFC 9180, base mode, single shot) of `salt | content`, padded, to the receiver's pinned key, and everything before
the signature is its `info`. The Ed25519 signature, by the sender's pinned key, is over SHA-256 of all the rest: the
sender of HPKE's base mode is anonymous.

The header is in the open: run, round, source, destination, sequence, call. A receiver says which of them it expects.
"""

import hashlib
import secrets
import threading
from collections.abc import Iterator

from peertune.errors import SealError
from peertune.guard.header import MAX_HEAD, Header, difference, read_header, write_header
from peertune.guard.keys import ENCAPSULATION, SIGNATURE, Identity
from peertune.guard.outbox import Outbox
from peertune.guard.padding import pad, padded_size, unpad
from peertune.guard.peers import Peers
from peertune.guard.receipts import MAX_CONTENTS, Receipt, digest_of, read_receipt, sign_receipt
from peertune.guard.replay import Replay
from peertune.payloads.base import MAX_BYTES

_CONTEXT = b"peertune envelope 1\0"
_SALT = 32
_TAG = 16  # of ChaCha20-Poly1305
MAX_SEALED = MAX_HEAD + SIGNATURE + ENCAPSULATION["hybrid"] + padded_size(_SALT + MAX_BYTES) + _TAG  # bytes


class Seal:
    """What one party needs to exchange sealed messages in one run. Threads may share it.

    `run` names one start of a run, as `run/start`: where rounds and calls are counted anew, another name must stand.
    From then on nothing more of the run's earlier starts opens here.
    """

    def __init__(self, identity: Identity, peers: Peers, run: str, replay: Replay, outbox: Outbox) -> None:
        self._identity = identity
        self._peers = peers
        self._run = run
        self._replay = replay
        self._outbox = outbox
        replay.begin(run)
        # a new start for every process, drawn from so many that no two ever meet: nothing need be stored to go on
        self._sequence = secrets.randbits(62)
        self._lock = threading.Lock()

    def close(self, destination: str, round: int, raw: bytes, call: int = 0, verdict: str = "not examined") -> bytes:
        """`raw` sealed to `destination`, after it was written to the outbox with the guard's `verdict`.

        Raises `SealError` if no key of `destination` is pinned or `raw` is too large, `StorageError` if the outbox
        cannot be written: then nothing may leave.
        """
        if len(raw) > MAX_BYTES:
            raise SealError(f"a message has at most {MAX_BYTES} bytes, this one has {len(raw)}")
        card = self._peers[destination]
        header = Header(1, self._run, round, self._identity.name, destination, self._next(), call)
        head, salt = write_header(header), secrets.token_bytes(_SALT)
        ciphertext = card.encrypt(pad(salt, raw), _CONTEXT + head)
        signature = self._identity.sign(_signed(head, ciphertext))
        self._outbox.record(header, salt, raw, verdict)
        return b"".join((head, signature, ciphertext))

    def open(self, source: str, round: int, sealed: bytes, call: int = 0) -> bytes:
        """What `source` sealed to this party in this run and round as the answer to `call`; it opens once.

        Raises `SealError` whatever the bytes are, `StorageError` if the seen-set cannot be written.
        """
        if len(sealed) > MAX_SEALED:
            raise SealError(f"a sealed message has at most {MAX_SEALED} bytes, this one has {len(sealed)}")
        header, head = read_header(sealed)
        expected = Header(1, self._run, round, source, self._identity.name, header.sequence, call)
        if header != expected:
            raise SealError(
                f"a message from {source} is not the one that was asked for: {difference(expected, header)}"
            )
        card = self._peers[source]
        start = len(head) + SIGNATURE
        ciphertext = memoryview(sealed)[start:]
        if not card.verifies(sealed[len(head) : start], _signed(head, ciphertext)):
            raise SealError(
                f"a message from {source} is not signed by the key that is pinned for it ({card.fingerprint}), or was "
                f"changed on the way; compare this fingerprint with {source}"
            )
        content = unpad(self._identity.decrypt(ciphertext, _CONTEXT + head))
        salt, raw = bytes(content[:_SALT]), bytes(content[_SALT:])
        digest = digest_of(salt, hashlib.sha256(raw).digest())
        if not self._replay.first(self._run, source, header.sequence, round, digest):
            raise SealError(
                f"message {header.sequence} of {source} was opened before, or its round is over: somebody sent it again"
            )
        return raw

    def receipts(self) -> list[tuple[str, bytes]]:
        """Signed receipts, each with the party that it is for, of all that this party opened and has not settled.

        What earlier starts of the run left is among it. Raises `StorageError` if the seen-set cannot be read.
        """
        mine = self._identity
        return [
            (source, sign_receipt(mine, Receipt(run, round, source, mine.name, dict(contents))))
            for (run, round, source), opened in self._replay.received(self._run).items()
            for contents in _parts(list(opened.items()))
        ]

    def settle(self, round: int) -> None:
        """The receipts of all rounds up to this one were handed over: nothing of these rounds opens any more.

        Raises `StorageError`.
        """
        self._replay.settle(self._run, round)

    def confirm(self, destination: str, raw: bytes) -> Receipt:
        """Check a receipt of `destination` and put it to what this party sent, in whichever start of a run.

        Raises `SealError`, `StorageError` if the outbox cannot be written.
        """
        receipt = read_receipt(self._peers[destination], raw)
        if receipt.source != self._identity.name:
            raise SealError(f"a receipt of {destination} is for {receipt.source}")
        self._outbox.confirm(receipt, raw)
        return receipt

    def _next(self) -> int:
        with self._lock:
            self._sequence += 1
            return self._sequence


def _parts(opened: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    for start in range(0, len(opened), MAX_CONTENTS):
        yield opened[start : start + MAX_CONTENTS]


def _signed(head: bytes, ciphertext: bytes | memoryview) -> bytes:
    """What the signature is over; the head tells its own length."""
    digest = hashlib.sha256(head)
    digest.update(ciphertext)
    return _CONTEXT + digest.digest()
