"""A party's side of the list of members: it is checked against the kit, shown, and taken in."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

from peertune.deploy import certificates
from peertune.deploy.documents import (
    SUBMITTER,
    Invitation,
    Member,
    Members,
    Signed,
    config_of,
    is_site,
    read_document,
    write_document,
)
from peertune.deploy.home import read_settings, write_settings
from peertune.deploy.job import site_of
from peertune.deploy.request import PENDING, newest_keys, present_keys, role
from peertune.deploy.sealing import pinned
from peertune.deploy.skeleton import identity
from peertune.deploy.trust import MEMBERS, decoded, facts, invitation_of, members_of, verified
from peertune.errors import ChangedKeyError, ConfigError
from peertune.guard import Card, Identity
from peertune.ledger import COORDINATOR

DISABLED = "disabled_clients.json"  # in the coordinator's kit: whom FLARE's server turns away


@dataclass(frozen=True, slots=True)
class Offer:
    """A list that fits a kit. `cards`: of those who seal. `fresh`: it has the certificate of keys that wait for one.
    `seen`: what all must see alike, once it is taken in. `changes`: what will be different, in words.
    """

    kit: Path
    party: str
    signed: Signed
    members: Members
    cards: dict[str, Card]
    fresh: bool
    seen: dict[str, str]
    changes: list[str]


def examine(kit: Path, path: Path, changed: Collection[str] = ()) -> Offer:
    """Check the list in `path` against `kit`; nothing is written.

    `changed`: parties whose keys may be others than those that are pinned. Raises `ConfigError`, `ChangedKeyError`.
    """
    signed, invitation = read_document(path, Signed), invitation_of(kit)
    party, members, before = invitation.party, verified(signed, invitation, path), members_of(kit)
    if before and members.serial < before.serial:
        raise ConfigError(f"{path} is older than the list that {kit} has accepted; ask the organiser for the newest")
    if party not in members.members:
        raise ConfigError(f"{path} has no certificate of {party}: the organiser has not approved it yet, or removed it")
    cards = {name: decoded(name, member.card) for name, member in members.members.items() if member.card}
    fresh = _is_fresh(kit, invitation, members.members[party], cards.get(party))
    if not is_site(party):
        cards = {}
    changes = [*_changed_config(kit, party, members), *_changed_pins(kit, party, cards, changed)]
    return Offer(
        kit, party, signed, members, cards, fresh, facts(invitation, config_of(members.config), cards), changes
    )


def take(offer: Offer) -> None:
    """Take a list in: certificate, pins, configuration, and at the coordinator whom to turn away."""
    kit, party = offer.kit, offer.party
    if offer.fresh:
        for waiting, place in zip(newest_keys(kit, party), present_keys(kit, party), strict=True):
            if waiting != place and waiting.exists():
                waiting.replace(place)
        (kit / PENDING).rmdir()
    certificate = kit / "startup" / f"{role(party)}.crt"
    certificate.write_text(offer.members.members[party].certificate, encoding="ascii")
    if is_site(party):
        _pin(kit, {name: card for name, card in offer.cards.items() if name != party})
    if party != SUBMITTER:
        write_settings(kit, msgspec.structs.replace(read_settings(kit), config=offer.members.config))
    if party == COORDINATOR:
        refused = {"disabled_clients": [site_of(name) for name in offer.members.removed]}
        (kit / DISABLED).write_text(json.dumps(refused), encoding="utf-8")
    write_document(kit / "local" / MEMBERS, offer.signed)


def _is_fresh(kit: Path, invitation: Invitation, member: Member, card: Card | None) -> bool:
    """Is the certificate for keys that wait for one? Raises `ConfigError` if it is for none that this kit has, or not
    valid.
    """
    party = invitation.party
    certificate = certificates.read_certificate(member.certificate, f"the certificate of {party}")
    authority = certificates.read_certificate(invitation.authority, "the authority's certificate")
    certificates.check_issued(certificate, authority, identity(invitation.project, party).name)
    newest, present = newest_keys(kit, party), present_keys(kit, party)
    for tls, sealing in (newest, present):
        own = Identity.read(sealing).card if is_site(party) and sealing.exists() else None
        if own == card and tls.exists() and certificates.fits(certificate, certificates.read_key(tls)):
            return (tls, sealing) != present
    raise ConfigError(
        f"the certificate of {party} is for other keys than those in {kit}: the organiser approved another request; "
        f"run `peertune renew {kit}` and send what it writes"
    )


def _changed_config(kit: Path, party: str, members: Members) -> list[str]:
    """Every value that will be another one."""
    if party == SUBMITTER:
        return []
    old, new = (_flat(json.loads(text)) for text in (read_settings(kit).config, members.config))
    return [
        f"{place}: {old.get(place, 'nothing')} -> {new.get(place, 'nothing')}"
        for place in sorted({*old, *new})
        if old.get(place, "nothing") != new.get(place, "nothing")
    ]


def _flat(value: object, place: str = "") -> dict[str, str]:
    """The values of a configuration by their dotted places."""
    if isinstance(value, dict | list) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: each for name, part in parts for key, each in _flat(part, f"{place}.{name}".lstrip(".")).items()}
    return {place: json.dumps(value)}


def _changed_pins(kit: Path, party: str, cards: dict[str, Card], changed: Collection[str]) -> list[str]:
    """Who comes, who goes, and whose keys are others. Raises `ChangedKeyError` if that one is not among `changed`."""
    peers, lines = pinned(kit), []
    for name in sorted({*cards, *peers.names} - {party}):
        if name not in cards:
            lines.append(f"{name} is removed")
        elif name not in peers.names:
            lines.append(f"{name} is new")
        elif peers[name] != cards[name]:
            if name not in changed:
                raise ChangedKeyError(
                    f"{name} shows other keys than those that are pinned: pinned {peers[name].fingerprint}, shown "
                    f"{cards[name].fingerprint}. If {name} has made new ones and reads out the same, add "
                    f"`--changed {name}`; if not, somebody is in between"
                )
            lines.append(f"{name} has new keys")
    return lines


def _pin(kit: Path, cards: dict[str, Card]) -> None:
    peers = pinned(kit)
    for name in peers.names:
        if cards.get(name) != peers[name]:
            peers.drop(name)
    for card in cards.values():
        peers.pin(card)
