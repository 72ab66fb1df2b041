"""Parties that exchange sealed messages, each in its own folder, with all others pinned."""

from collections.abc import Sequence
from pathlib import Path

from peertune.guard import Identity, Outbox, Peers, Replay, Seal

RUN = "run-1"


def identities(folder: Path, names: Sequence[str], suite: str = "x25519") -> dict[str, Identity]:
    return {name: Identity.create(folder / name / "keys.json", name, suite) for name in names}  # pyright: ignore[reportArgumentType]


def seal_of(folder: Path, me: Identity, others: Sequence[Identity], run: str = RUN) -> Seal:
    peers = Peers.read(folder / me.name / "peers.toml")
    for other in others:
        peers.pin(other.card)
    home = folder / me.name
    return Seal(me, peers, run, Replay(home / "replay.sqlite"), Outbox(home / "outbox"))


def seals(folder: Path, names: Sequence[str], suite: str = "x25519") -> dict[str, Seal]:
    """A seal for each name."""
    everyone = identities(folder, names, suite)
    return {
        name: seal_of(folder, me, [other for other in everyone.values() if other is not me])
        for name, me in everyone.items()
    }
