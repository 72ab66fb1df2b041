"""How answers travel between agents: a site closes and opens bytes for and from other agents here and nowhere else."""

from typing import Protocol

from peertune.errors import SealError


class Seal(Protocol):
    """Closes what leaves an agent, so that nobody on the way can read or change it.

    `round`: barriers since the session began; `call`: the call that this is the answer of; `verdict`: the guard's.
    """

    def close(self, destination: str, round: int, raw: bytes, call: int = 0, verdict: str = "not examined") -> bytes:
        """What leaves for `destination`. Raises `PeertuneError` if it must not."""
        ...

    def open(self, source: str, round: int, sealed: bytes, call: int = 0) -> bytes:
        """What `close` was given. Raises `PeertuneError` if it is not what `source` sent."""
        ...

    def receipts(self) -> list[tuple[str, bytes]]:
        """Signed, each with the party it is for: for all that was opened and is not settled. Raises `PeertuneError`."""
        ...

    def confirm(self, destination: str, raw: bytes) -> object:
        """Keep a receipt of `destination`. Raises `PeertuneError` if it is not for what was closed for it."""
        ...

    def settle(self, round: int) -> None:
        """Receipts up to this round were handed over, and nothing of it opens any more. Raises `PeertuneError`."""
        ...


class Plain:
    """No seal: whoever carries the bytes is trusted with them, and nobody signs for anything."""

    def close(self, destination: str, round: int, raw: bytes, call: int = 0, verdict: str = "not examined") -> bytes:
        return raw

    def open(self, source: str, round: int, sealed: bytes, call: int = 0) -> bytes:
        return sealed

    def receipts(self) -> list[tuple[str, bytes]]:
        return []

    def confirm(self, destination: str, raw: bytes) -> object:
        raise SealError("nothing is sealed here, so nothing can be confirmed")

    def settle(self, round: int) -> None:
        """There is nothing to forget."""
