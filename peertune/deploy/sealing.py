"""The keys with which parties seal what goes from agent to agent: in every kit, beside FLARE's certificates and apart
from them. Whoever signs certificates cannot read what was sealed to a key that was made at its party.
"""

from pathlib import Path

from peertune.guard import Identity, Outbox, Peers, Replay, Seal

KEYS, PINS = "sealing.json", "peers.toml"  # in the folder `local` of a kit
SEALED = "sealed"  # the folder of a kit with its outbox and what it has opened


def pinned(kit: Path) -> Peers:
    """The keys of other parties that a kit trusts. Raises `ConfigError` if their file is damaged."""
    return Peers.read(kit / "local" / PINS)


def seal_of(kit: Path, session: str) -> Seal:
    """What the party of a kit seals with. Raises `ConfigError` if the kit has no keys, or damaged ones."""
    identity = Identity.read(kit / "local" / KEYS)
    return Seal(identity, pinned(kit), session, Replay(kit / SEALED / "seen.sqlite"), Outbox(kit / SEALED / "outbox"))
