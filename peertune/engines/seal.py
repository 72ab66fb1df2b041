"""How answers travel between agents: a site closes and opens bytes for and from other agents here and nowhere else."""

from typing import Protocol


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


class Plain:
    """No seal: whoever carries the bytes is trusted with them."""

    def close(self, destination: str, round: int, raw: bytes, call: int = 0, verdict: str = "not examined") -> bytes:
        return raw

    def open(self, source: str, round: int, sealed: bytes, call: int = 0) -> bytes:
        return sealed
