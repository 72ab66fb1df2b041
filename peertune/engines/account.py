"""What a site may say of its agent and its calls: it could be anybody's software, and the ledger is the run's."""

import math
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from peertune.engines.base import METRICS, Entry, Ref, failure_row
from peertune.engines.worker import Done, Withheld
from peertune.errors import AgentError

MOST = 1 << 14  # characters of a text
ROWS = 1 << 12  # of one call
Text = Annotated[str, Meta(max_length=MOST)]
Word = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,4096}\Z")]  # the longest is the path of a model
Count = Annotated[int, Meta(ge=0, le=1 << 48)]


class _Facts(msgspec.Struct, forbid_unknown_fields=True):
    """What `assemble` says of an agent, without what is for its owner only."""

    name: Word
    model: Word
    fingerprint: Word
    adapter: Word
    rank: Annotated[int, Meta(ge=1, le=1 << 16)]
    scale: float
    family: Word
    layers: Annotated[int, Meta(ge=0, le=1 << 16)]
    vocabulary: Word
    parameters: Count
    trainable: Count
    train: Count
    validation: Count
    test: Count
    truncated: Count
    chats: Count
    data: Word
    histogram: Annotated[list[float], Meta(max_length=64)]
    isolation: Word


class _Transfer(msgspec.Struct, forbid_unknown_fields=True):
    source: Text
    destination: Text
    payload: Text
    bytes: Annotated[int, Meta(ge=0)]


class _Metric(msgspec.Struct, forbid_unknown_fields=True):
    agent: Text
    name: Text
    value: float


class _Failure(msgspec.Struct, forbid_unknown_fields=True):
    agent: Text
    verb: Text
    cause: Text


_BODIES = {"transfer": _Transfer, "metric": _Metric, "failure": _Failure}


def describes(name: str, found: list[dict[str, Any]]) -> bool:
    """Are these facts of the agent `name` and nobody else, as an agent has them?"""
    try:
        (facts,) = msgspec.convert(found, list[_Facts])
    except ValueError:  # of another type, or not one
        return False
    return facts.name == name and all(map(math.isfinite, (facts.scale, *facts.histogram)))


def checked(ref: Ref, done: Done) -> Done:
    """The account of one call without the rows that no agent in its place could have written; how many those were is a
    failure of it.
    """
    rows = [row for row in done.rows[:ROWS] if _is_sound(ref, row)]
    if left := len(done.rows) - len(rows):
        cause = f"its site said {left} things of the call that no site can say; they are left out"
        rows.append(failure_row(AgentError(ref.owner, ref.verb, cause)))
    seconds = done.seconds if all(map(math.isfinite, done.seconds)) else (0.0, 0.0)
    return msgspec.structs.replace(done, rows=rows, seconds=seconds)


def reason(withheld: Withheld) -> AgentError:
    """Why there is no answer, as its owner's site says."""
    return AgentError(*(text[:MOST] for text in withheld.failure))


def _is_sound(ref: Ref, row: Entry) -> bool:
    if row.kind not in _BODIES:
        return False
    try:
        body = msgspec.convert(row.body, _BODIES[row.kind])
    except msgspec.ValidationError:
        return False
    if isinstance(body, _Transfer):
        return body.destination == ref.owner
    if isinstance(body, _Metric):
        return body.agent == ref.owner and body.name in METRICS and math.isfinite(body.value)
    return True
