"""A party's keys, made in its kit, and its request for a certificate. No private key leaves the kit."""

import tempfile
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from peertune.deploy import certificates
from peertune.deploy.documents import SUBMITTER, Invitation, Request, config_of, is_site
from peertune.deploy.home import Settings, write_settings
from peertune.deploy.sealing import KEYS
from peertune.deploy.skeleton import identity, make_skeleton
from peertune.deploy.trust import INVITATION, decoded, invitation_of, members_of
from peertune.errors import ConfigError
from peertune.guard import Identity
from peertune.guard.keys import SuiteName
from peertune.ledger import COORDINATOR

PENDING = "pending"  # the folder of a kit with keys that wait for their certificate
TLS = "tls.key"  # in it
ROOT = "rootCA.pem"


def begin(invitation: Invitation, kit: Path, hybrid: bool = False) -> Request:
    """Make the kit of who is invited, with new keys, and its request. `hybrid`: seal to them with ML-KEM too. Raises
    `ConfigError`.
    """
    if kit.exists():
        raise ConfigError(f"{kit} exists; a kit is not overwritten (a new certificate for it: `peertune renew {kit}`)")
    party, config = invitation.party, config_of(invitation.config)
    what = "the authority's certificate in the invitation"
    certificates.check_dates(certificates.read_certificate(invitation.authority, what), what, "ask for a new one")
    if is_site(party) and party not in config.parties():
        raise ConfigError(f"the invitation is for {party}, no party of its configuration; ask for another one")
    place = kit.absolute().parent
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".kit-", dir=place) as scratch:
        fresh = make_skeleton(invitation.project, party, Path(scratch))
        fresh.chmod(0o700)
        (fresh / "startup" / ROOT).write_text(invitation.authority, encoding="ascii")
        (fresh / "local" / INVITATION).write_bytes(msgspec.json.encode(invitation))
        if party != SUBMITTER:
            write_settings(fresh, Settings(invitation.config, "runs", party if is_site(party) else None))
        _make_keys(fresh, party, "hybrid" if hybrid else "x25519")
        fresh.rename(kit)
    return ask(kit)


def ask(kit: Path, new_keys: bool = False, hybrid: bool = False) -> Request:
    """A request for a certificate of the keys that the kit has, or of new ones, `hybrid` also where the old ones are.
    Raises `ConfigError`.
    """
    invitation = invitation_of(kit)
    project, party = invitation.project, invitation.party
    if hybrid and not (new_keys and is_site(party)):
        raise ConfigError(f"only new keys of a site can be hybrid: `peertune renew {kit} --keys --hybrid` at a site")
    if new_keys:
        _make_keys(kit, party, "hybrid" if hybrid else _suite_of(kit, party))
    tls, sealing = newest_keys(kit, party)
    request = Request(
        project.name,
        certificates.fingerprint(invitation.authority, "the authority's certificate"),
        party,
        certificates.signing_request(certificates.read_key(tls), identity(project, party).name),
    )
    if not is_site(party):
        return request
    own = Identity.read(sealing)
    request = msgspec.structs.replace(request, card=own.card.encode())
    return msgspec.structs.replace(request, signature=own.sign(request.unsigned()))


def newest_keys(kit: Path, party: str) -> tuple[Path, Path]:
    """Its key for TLS and those to seal with: those that wait for a certificate, if there are any."""
    waiting, present = (kit / PENDING / TLS, kit / PENDING / KEYS), present_keys(kit, party)
    tls, sealing = (new if new.exists() else old for new, old in zip(waiting, present, strict=True))
    return tls, sealing


def newest_public(kit: Path, party: str) -> RSAPublicKey:
    """What others see of its newest key for TLS. Raises `ConfigError`."""
    return certificates.read_key(newest_keys(kit, party)[0]).public_key()


def present_keys(kit: Path, party: str) -> tuple[Path, Path]:
    return kit / "startup" / f"{role(party)}.key", kit / "local" / KEYS


def role(party: str) -> str:
    """What FLARE calls the files of a certificate and its key."""
    return "server" if party == COORDINATOR else "client"


def _suite_of(kit: Path, party: str) -> SuiteName:
    """Of the keys that the others have of this party; the kit's own may be lost."""
    members = members_of(kit)
    card = members.members[party].card if members else b""
    return decoded(party, card).suite if card else "x25519"


def _make_keys(kit: Path, party: str, suite: SuiteName) -> None:
    waiting = kit / PENDING
    waiting.mkdir(mode=0o700, exist_ok=True)
    if any(waiting.iterdir()):
        raise ConfigError(
            f"{waiting} has keys that wait for a certificate, and no key is overwritten; "
            f"`peertune renew {kit}` asks for it again"
        )
    certificates.new_key(waiting / TLS)
    if is_site(party):
        Identity.create(waiting / KEYS, party, suite)
