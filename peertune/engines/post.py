"""What a coordinator and the agents' sites say to each other, as bytes, and how to ask over a line that may fail.

A run that is started again begins a new `session`; within it the `round` counts the barriers, and within a round every
call has its number. Whatever arrives twice is therefore known to be the same.
"""

import math
import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from peertune.engines.base import Argument, Ref
from peertune.engines.receipts import Receipts
from peertune.engines.worker import Done, Refused, Started, Value, Withheld
from peertune.errors import PayloadError

FACTS, LIFE = -1, -2  # numbers of calls that nobody makes: one answer describes the agent, the other is a sign of life
LONGEST = 20.0  # seconds that one question waits at a site; a call may take hours
TRANSIT = (30.0, 60.0, 120.0, 240.0)  # seconds that question and answer may be on their way, attempt after attempt
BEAT = 15.0  # seconds that a sign of life may take
PAUSES = (0.2, 5.0)  # seconds between attempts, the first and the longest
LARGEST = 1 << 32  # bytes of one message
Round = Annotated[int, Meta(ge=0, lt=1 << 32)]


class Order(msgspec.Struct, frozen=True):
    """One call."""

    ref: Ref
    args: list[Argument]


class Submit(msgspec.Struct, tag=True):
    """Run these calls, in this order, after all that came before."""

    session: str
    round: Round
    orders: list[Order]


class Get(msgspec.Struct, tag=True, omit_defaults=True):
    """The answer of a call, for whoever asks; `wait` seconds for it. `look`: only if it is there."""

    session: str
    round: Round
    ref: Ref
    wait: float = LONGEST
    look: bool = False


class Drain(msgspec.Struct, tag=True):
    """What happened in the round, as soon as all its calls have run; `wait` seconds for it."""

    session: str
    round: Round
    wait: float = LONGEST


class Clear(msgspec.Struct, tag=True, omit_defaults=True):
    """The round has ended everywhere: drop its answers. `receipts`: of others for what they opened, by who signed."""

    session: str
    round: Round
    receipts: Receipts = []


class Accepted(msgspec.Struct, tag=True):
    pass


class Pending(msgspec.Struct, tag=True):
    """Not yet: ask again."""


class Drained(msgspec.Struct, tag=True, omit_defaults=True):
    """Each call of the round and what came of it; was the agent's process lost in it? `receipts`: for whom they are."""

    calls: list[tuple[Ref, Done]]
    lost: bool
    receipts: Receipts = []


Question = Submit | Get | Drain | Clear
Answer = Accepted | Pending | Drained | Started | Refused | Value | Withheld
VERBS: dict[str, type[Question]] = {"submit": Submit, "get": Get, "drain": Drain, "clear": Clear}
# (verb, question, seconds) -> answer; raises `TimeoutError` after so many seconds, `ConnectionError` if there is no way
Line = Callable[[str, bytes, float], bytes]


def ask(line: Line, question: Question, patience: float, seconds: float = math.inf) -> Answer:
    """The answer to one question, repeated until it is there, or `Pending` after so many seconds.

    Raises `ConnectionError` if there is no way for `patience` seconds, `PayloadError` for bytes that are no answer.
    """
    verb, end = type(question).__name__.lower(), time.monotonic() + seconds
    while True:
        if isinstance(question, Get) and seconds < math.inf:
            question = msgspec.structs.replace(question, wait=min(question.wait, max(0.0, end - time.monotonic())))
        raw = msgspec.msgpack.encode(question)
        answer: Answer = read(_carried(line, question.session, (verb, raw), patience), Answer)
        if not isinstance(answer, Pending) or time.monotonic() >= end:
            return answer


def alive(line: Line, session: str) -> bool:
    """Is there a site at the end of the line? It need not be able to do anything else."""
    sign = msgspec.msgpack.encode(Get(session, 0, Ref("", LIFE, ""), 0.0))
    try:
        line("get", sign, BEAT)
    except (TimeoutError, ConnectionError):
        return False
    return True


def _carried(line: Line, session: str, question: tuple[str, bytes], patience: float) -> bytes:
    """One answer; a line that is slow gets more time, one that is cut is tried again."""
    transits, pause, end = list(TRANSIT), PAUSES[0], 0.0
    while True:
        try:
            return line(*question, LONGEST + transits[0])
        except (TimeoutError, ConnectionError) as error:
            if isinstance(error, TimeoutError) and len(transits) > 1 and alive(line, session):
                del transits[0]
                continue
            end = end or time.monotonic() + patience
            if time.monotonic() + pause > end:
                raise ConnectionError(str(error)) from None
            time.sleep(pause)
            pause = min(2 * pause, PAUSES[1])


def read(raw: bytes, kind: Any) -> Any:
    """Decode one message. Raises `PayloadError`."""
    if len(raw) > LARGEST:
        raise PayloadError(f"a message has at most {LARGEST} bytes, found {len(raw)}")
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PayloadError(f"not a valid message ({type(error).__name__})") from None
