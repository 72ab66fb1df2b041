"""How answers travel between agents: the one place where bytes for another agent are closed, and opened again."""

from typing import Protocol

from peertune.engines.base import Ref


class Seal(Protocol):
    """Closes what leaves an agent, so that nobody on the way can read or change it. `round`: the barriers before it."""

    def close(self, raw: bytes, ref: Ref, reader: str, round: int) -> bytes:
        """What leaves `ref.owner` for `reader`. Raises `PayloadError` if it must not."""
        ...

    def open(self, raw: bytes, ref: Ref, reader: str, round: int) -> bytes:
        """What `close` was given. Raises `PayloadError` if it is not what `ref.owner` sent to `reader`."""
        ...


class Plain:
    """No seal: whoever carries the bytes is trusted with them."""

    def close(self, raw: bytes, ref: Ref, reader: str, round: int) -> bytes:
        return raw

    def open(self, raw: bytes, ref: Ref, reader: str, round: int) -> bytes:
        return raw
