"""What a kit was told, and what its owner has compared with the others."""

import hashlib
import json
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from peertune.config.schema import Config
from peertune.deploy import certificates
from peertune.deploy.documents import Invitation, Members, Signed, config_of, is_site, read_document
from peertune.deploy.home import digest, read_settings
from peertune.deploy.sealing import KEYS, pinned
from peertune.errors import ConfigError, SealError
from peertune.guard import Card, Identity
from peertune.guard.keys import grouped
from peertune.guard.store import write_private

INVITATION, MEMBERS = "invitation.json", "members.json"  # in the folder `local` of a kit
CONFIRMED = "confirmed"  # there, too: the hash of what its owner has compared
SCOPE = "peertune members 1\0"  # what the authority signs begins so


def invitation_of(kit: Path) -> Invitation:
    """What a kit was made from. Raises `ConfigError` if it is no kit."""
    path = kit / "local" / INVITATION
    if not path.is_file():
        raise ConfigError(f"{kit} is no start-up kit: expected {path}; `peertune request` makes one")
    return read_document(path, Invitation)


def members_of(kit: Path) -> Members | None:
    """The list that a kit has accepted last; None before the first. Raises `ConfigError`."""
    path = kit / "local" / MEMBERS
    return verified(read_document(path, Signed), invitation_of(kit), path) if path.is_file() else None


def verified(signed: Signed, invitation: Invitation, path: Path) -> Members:
    """The list in `path`, if the authority of that project has signed it. Raises `ConfigError`."""
    project = invitation.project.name
    authority = certificates.read_certificate(invitation.authority, "the authority's certificate")
    if not certificates.is_signed(SCOPE + signed.body, signed.signature, authority):
        raise ConfigError(f"{path} is not signed by the authority of this kit, or was changed; ask for the file again")
    try:
        members = msgspec.json.decode(signed.body, type=Members)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} was made by another version of peertune ({error}); use the organiser's") from None
    if members.project != project:
        raise ConfigError(f"{path} is of the project {members.project}, this kit is of {project}")
    return members


def decoded(name: str, raw: bytes) -> Card:
    """The card of `name`. Raises `ConfigError` if it is none, or somebody else's."""
    try:
        card = Card.decode(raw)
    except SealError as error:
        raise ConfigError(f"the card of {name} cannot be used ({error}); let {name} make a new request") from None
    if card.name != name:
        raise ConfigError(f"the card of {name} is in the name of {card.name}; let {name} make a new request")
    return card


def read_out(party: str, key: RSAPublicKey, card: bytes) -> str:
    """The fingerprint of a party's keys, which it reads out: its card's, or for who seals nothing that of its key for
    TLS. Raises `ConfigError`.
    """
    return decoded(party, card).fingerprint if card else certificates.key_fingerprint(key)


def facts(invitation: Invitation, config: Config, cards: dict[str, Card]) -> dict[str, str]:
    """What all must see alike, in words and digits."""
    return {
        "authority": certificates.fingerprint(invitation.authority, "the authority's certificate"),
        "configuration": grouped(digest(config)),
        **{f"keys of {name}": cards[name].fingerprint for name in sorted(cards)},
    }


def facts_of(kit: Path) -> dict[str, str]:
    """`facts` as a kit has them. Raises `ConfigError` if it waits for its certificate."""
    invitation = invitation_of(kit)
    if members_of(kit) is None:
        raise ConfigError(
            f"{kit} waits for its certificate: send its request to the organiser, then run "
            f"`peertune accept {kit} FILE` with the list of members that comes back"
        )
    cards = {}
    if is_site(invitation.party):
        peers, own = pinned(kit), Identity.read(kit / "local" / KEYS).card
        cards = {own.name: own, **{name: peers[name] for name in peers.names}}
    return facts(invitation, config_of(read_settings(kit).config), cards)


def is_confirmed(kit: Path, seen: dict[str, str]) -> bool:
    """Has the owner of the kit said that all others see this?"""
    path = kit / "local" / CONFIRMED
    return path.is_file() and path.read_text(encoding="ascii") == _hash(seen)


def confirm(kit: Path, seen: dict[str, str]) -> None:
    write_private(kit / "local" / CONFIRMED, _hash(seen).encode())


def _hash(seen: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()
