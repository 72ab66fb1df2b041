"""The organiser's side: the authority, who is invited, and the list of members. No private key of a site is ever here.

authority/     the authority's key, and what the organiser knows; nobody else needs it, nothing runs from it
coordinator/   the kit of the coordinator
submitter/     the kit to submit runs with
invitations/   a file for each site that is no member yet
NAME.members   the list of members, for everybody
"""

import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from peertune.config.schema import Config
from peertune.deploy import certificates
from peertune.deploy.documents import (
    SUBMITTER,
    Invitation,
    Member,
    Members,
    Project,
    Request,
    Signed,
    config_of,
    is_site,
    read_document,
    write_document,
)
from peertune.deploy.job import installed
from peertune.deploy.members import examine, take
from peertune.deploy.request import ROOT, begin
from peertune.deploy.skeleton import identity
from peertune.deploy.trust import SCOPE, decoded, read_out
from peertune.errors import ChangedKeyError, ConfigError
from peertune.guard.store import private_folder, write_private
from peertune.ledger import COORDINATOR

AUTHORITY, INVITATIONS = "authority", "invitations"
OWN = (COORDINATOR, SUBMITTER)  # whose kits are made here
KEY, STATE = "authority.key", "federation.json"  # in the folder of the authority


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    project: Project
    config: str
    serial: int = 0
    members: dict[str, Member] = {}
    removed: list[str] = []


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is in order. `news`: `new`, `known`, or `changed` if the party had other keys before."""

    party: str
    key: RSAPublicKey
    card: bytes
    news: str

    @property
    def fingerprint(self) -> str:
        """What the party reads out."""
        return read_out(self.party, self.key, self.card)


class Organiser:
    """Its folder, and what is known there."""

    def __init__(self, folder: Path, state: _State) -> None:
        self.folder, self._state = folder, state
        root = folder / AUTHORITY / ROOT
        try:
            self._root = root.read_text(encoding="ascii")
        except (OSError, ValueError) as error:
            raise ConfigError(f"{root} cannot be read ({error}); restore the folder from a backup") from None

    @classmethod
    def found(cls, folder: Path, config: Config, project: Project) -> "Organiser":
        """A new federation in a new folder. Raises `ConfigError`."""
        if folder.exists():
            raise ConfigError(
                f"{folder} exists and is not overwritten; name another folder with --to (to change this "
                "federation: `peertune reconfigure`)"
            )
        place = folder.absolute().parent
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".kits-", dir=place) as scratch:
            fresh = Path(scratch) / folder.name
            private_folder(fresh / AUTHORITY)
            key = certificates.new_key(fresh / AUTHORITY / KEY, certificates.AUTHORITY_BITS)
            root = certificates.new_authority(project.name, key)
            (fresh / AUTHORITY / ROOT).write_text(root, encoding="ascii")
            organiser = cls(fresh, _State(project, config.model_dump_json()))
            organiser.configure(config)
            requests = [begin(organiser.invitation(name), fresh / name) for name in OWN]
            organiser.approve([organiser.check(each) for each in requests])
            for name in OWN:
                take(examine(fresh / name, organiser.list))
            fresh.rename(folder)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "Organiser":
        """A federation that was founded before. Raises `ConfigError`."""
        path = folder / AUTHORITY / STATE
        try:
            return cls(folder, msgspec.json.decode(path.read_bytes(), type=_State))
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(
                f"{path} cannot be read ({error}); name the folder that `peertune provision` made with --kits"
            ) from None

    @property
    def list(self) -> Path:
        """The file with the list of members."""
        return self.folder / f"{self._state.project.name}.members"

    @property
    def waiting(self) -> dict[str, Path]:
        """The invitations of those who are no members yet."""
        found = sorted((self.folder / INVITATIONS).glob("*.invitation"))
        return {path.stem: path for path in found}

    @property
    def authority(self) -> str:
        return certificates.fingerprint(self._root, "the authority's certificate")

    def invitation(self, party: str) -> Invitation:
        return Invitation(self._state.project, party, self._root, self._state.config)

    def configure(self, config: Config) -> None:
        """Take another configuration: who is new in it is invited, who is not in it any more is removed."""
        parties, members = config.parties(), self._state.members
        _check_names(self._state.project, parties)
        gone = [name for name in members if is_site(name) and name not in parties]
        kept = {name: member for name, member in members.items() if name not in gone}
        removed = sorted({*self._state.removed, *gone} - parties.keys())
        self._publish(config=config.model_dump_json(), members=kept, removed=removed)
        invitations = self.folder / INVITATIONS
        invitations.mkdir(exist_ok=True)
        for path in self.waiting.values():
            path.unlink()
        for name in parties.keys() - kept.keys():
            write_document(invitations / f"{name}.invitation", self.invitation(name))

    def read(self, path: Path) -> Asked:
        """The request in a file. Raises `ConfigError`."""
        return self.check(read_document(path, Request))

    def check(self, request: Request) -> Asked:
        """Raises `ConfigError` if it is of another federation, of nobody who is invited, or not signed by its keys."""
        party, project = request.party, self._state.project
        if (request.project, request.authority) != (project.name, self.authority):
            raise ConfigError(
                f"the request of {party} is for the project {request.project} with the authority "
                f"{request.authority[:9]!r}, this is {project.name} with {self.authority[:9]!r}; "
                f"send {party} an invitation"
            )
        parties = config_of(self._state.config).parties()
        if is_site(party) and party not in parties:
            raise ConfigError(f"nobody invited {party}; the parties of the configuration are: {', '.join(parties)}")
        key = certificates.read_signing_request(request.csr, identity(project, party).name)
        if is_site(party):
            card = decoded(party, request.card)
            if not card.verifies(request.signature, request.unsigned()):
                raise ConfigError(f"the request of {party} was changed on its way; ask {party} for it again")
        elif request.card:
            raise ConfigError(f"the request of {party} has keys to seal with, but {party} seals nothing")
        return Asked(party, key, request.card, self._news(party, key, request.card))

    def approve(self, asked: Sequence[Asked], changed: Collection[str] = ()) -> Path:
        """Sign a certificate for each, and the list with all members. Raises `ChangedKeyError` if one of them who is
        not in `changed` has other keys than before, `ConfigError`.
        """
        for each in asked:
            if each.news == "changed" and each.party not in changed:
                raise ChangedKeyError(
                    f"{each.party} has other keys than those that were approved before; if {each.party} has made new "
                    f"ones and reads out {each.fingerprint}, add `--changed {each.party}`"
                )
        if len({each.party for each in asked}) < len(asked):
            raise ConfigError("two requests are of the same party; name the newer one only")
        self._publish(members=self._state.members | {each.party: self._issued(each) for each in asked})
        for each in asked:
            (self.folder / INVITATIONS / f"{each.party}.invitation").unlink(missing_ok=True)
        return self.list

    def _news(self, party: str, key: RSAPublicKey, card: bytes) -> str:
        if party not in self._state.members:
            return "new"
        before = self._state.members[party]
        certificate = certificates.read_certificate(before.certificate, f"the certificate of {party}")
        return "known" if (certificate.public_key(), before.card) == (key, card) else "changed"

    def _issued(self, asked: Asked) -> Member:
        project = self._state.project
        signer = (self._root, self._key())
        host = project.host if asked.party == COORDINATOR else None
        return Member(certificates.issue(signer, asked.key, identity(project, asked.party), host), asked.card)

    def _publish(self, **changes: object) -> None:
        """Note what is different, and sign the list anew."""
        now = time.time()
        serial = max(self._state.serial + 1, int(now))  # grows also after the folder came back from a backup
        self._state = state = msgspec.structs.replace(self._state, serial=serial, **changes)
        listed = Members(*(state.project.name, serial, now, state.config, installed(), state.members, state.removed))
        body = msgspec.json.encode(listed).decode()
        write_private(self.folder / AUTHORITY / STATE, msgspec.json.encode(state))
        write_document(self.list, Signed(body, certificates.sign(SCOPE + body, self._key())))

    def _key(self) -> certificates.Key:
        return certificates.read_key(self.folder / AUTHORITY / KEY)


def _check_names(project: Project, parties: Collection[str]) -> None:
    """Raises `ConfigError` if a party has the name of a folder or host here."""
    taken = {*OWN, AUTHORITY, INVITATIONS, project.host} & set(parties)
    if taken:
        raise ConfigError(
            f"across organisations an agent cannot be called {sorted(taken)[0]!r}, which is the name of a folder of "
            "kits or of the coordinator's host; call it something else"
        )
