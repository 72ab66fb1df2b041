"""The keys with which parties seal what goes from agent to agent: in every kit, beside FLARE's certificates and apart
from them. Whoever signs certificates cannot read what was sealed to a key that was made at its party.
"""

from collections.abc import Mapping
from pathlib import Path

from peertune.errors import ConfigError, SealError
from peertune.guard import Card, Identity, Outbox, Peers, Replay, Seal

KEYS, PINS, CARD = "sealing.json", "peers.toml", "card"  # in the folder `local` of a kit
SEALED = "sealed"  # the folder of a kit with its outbox and what it has opened


def make_keys(kits: Mapping[str, Path]) -> None:
    """Keys for each party of `kits`, name -> folder, pinned in the kits of all others."""
    cards = {party: Identity.create(kit / "local" / KEYS, party).card for party, kit in kits.items()}
    for party, kit in kits.items():
        peers = pinned(kit)
        for other, card in cards.items():
            if other != party:
                peers.pin(card)


def own_keys(kit: Path) -> tuple[Path, str]:
    """Make the keys of a kit anew, which nobody else has ever had: the card for the others, and its fingerprint."""
    keys = kit / "local" / KEYS
    name, fresh = Identity.read(keys).name, keys.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    card = Identity.create(fresh, name).card
    fresh.replace(keys)
    place = kit / "local" / f"{name}.{CARD}"
    place.write_bytes(card.encode())
    return place, card.fingerprint


def pinned(kit: Path) -> Peers:
    """The keys of other parties that a kit trusts. Raises `ConfigError` if their file is damaged."""
    return Peers.read(kit / "local" / PINS)


def read_card(path: Path) -> Card:
    """Raises `ConfigError` if it is none."""
    try:
        return Card.decode(path.read_bytes())
    except (OSError, SealError) as error:
        raise ConfigError(f"{path} is no card ({error}); ask for the file that `peertune keys` wrote") from None


def fingerprints(kit: Path) -> dict[str, str]:
    """Of this party's keys, and of those that it has pinned."""
    peers = pinned(kit)
    own = Identity.read(kit / "local" / KEYS).card
    return {card.name: card.fingerprint for card in (own, *(peers[name] for name in peers.names))}


def seal_of(kit: Path, session: str) -> Seal:
    """What the party of a kit seals with. Raises `ConfigError` if the kit has no keys, or damaged ones."""
    identity = Identity.read(kit / "local" / KEYS)
    return Seal(identity, pinned(kit), session, Replay(kit / SEALED / "seen.sqlite"), Outbox(kit / SEALED / "outbox"))
