"""What a site's own folders and files are called is nobody else's business: what leaves says KIT, RUNS, DATA, MODEL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from peertune.deploy.home import Settings
from peertune.engines.worker import Started, Value

_SOUND = tuple(  # how answers begin that say nothing of an error
    b"".join(msgspec.msgpack.encode(each).partition(type(each).__name__.encode())[:2])
    for each in (Value(b""), Started([]))
)


def places_of(kit: Path, settings: Settings) -> dict[str, str]:
    """What a site calls its own places towards others; the inner ones first."""
    found = {str(kit): "KIT", str(kit / settings.runs): "RUNS"}
    found |= {str(Path(path)): word for path, word in ((settings.data, "DATA"), (settings.model, "MODEL")) if path}
    return dict(sorted(found.items(), key=lambda place: -len(place[0])))


def without_places(answer: bytes, places: Mapping[str, str]) -> bytes:
    """An answer of a site with its places renamed."""
    if answer.startswith(_SOUND) or not any(place.encode() in answer for place in places):
        return answer
    return msgspec.msgpack.encode(_renamed(msgspec.msgpack.decode(answer), places))


def _renamed(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(each, places) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each, places) for each in value]
    if isinstance(value, str):
        for place, word in places.items():
            value = value.replace(place, word)
    return value
