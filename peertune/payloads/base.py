"""What every payload is: a frozen value of one kind, with bounds that are checked before it is believed."""

from collections.abc import Iterable
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from peertune.errors import PayloadError

MAX_BYTES = 1 << 30  # of one payload; a rank-64 adapter of a 70B model is below

Text = Annotated[str, Meta(max_length=1 << 16)]
LongText = Annotated[str, Meta(max_length=1 << 20)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Size = Annotated[int, Meta(ge=0, le=MAX_BYTES)]
Bit = Annotated[int, Meta(ge=0, le=1)]


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all payloads; a subclass names its `kind` and adds checks that types cannot express in `check`."""

    kind: ClassVar[str]
    max_bytes: ClassVar[int] = 4096  # on the wire

    def check(self) -> None:
        """Raise `PayloadError` if a value is out of its bounds."""


def finite(kind: str, values: Iterable[float], limit: float) -> None:
    """Raise `PayloadError` unless all are numbers within +-limit."""
    for value in values:
        if not abs(value) <= limit:  # also false for NaN
            raise PayloadError(f"{kind}: {value!r:.40} is not a number within +-{limit:g}")
