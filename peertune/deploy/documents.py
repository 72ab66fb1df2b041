"""What travels between the organiser and the others while a federation is set up. All of it is public: it holds no
private key, may go by e-mail, and what matters in it is signed.

invitation  organiser -> one site   where the coordinator is, the authority's certificate, the configuration
request     site -> organiser       the public keys that the site made for itself
members     organiser -> everybody  everybody's certificate and card, and the configuration, signed by the authority
"""

from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from pydantic import ValidationError

from peertune.config.schema import Config
from peertune.errors import ConfigError
from peertune.guard.store import write_private
from peertune.ledger import COORDINATOR

SUBMITTER = "submitter"
MAX = 4 * 2**20  # bytes of a file
PartyName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}\Z")]
ProjectName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}\Z")]
Host = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,62}\Z")]
Port = Annotated[int, Meta(ge=1, le=65535)]
Card = Annotated[bytes, Meta(max_length=4096)]


class Project(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A federation: its name, the coordinator's host as all know it, and its one port."""

    name: ProjectName
    host: Host
    port: Port


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="invitation"):
    """To `party` to take part. `authority`: its certificate (PEM). `config`: JSON."""

    project: Project
    party: PartyName
    authority: str
    config: str


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="request"):
    """For a certificate. `authority`: the fingerprint of whom it is addressed to. `csr`: PKCS #10 (PEM), which proves
    that `party` has the key. `card`: its sealing keys, and `signature` is by them over all the rest; both are empty for
    who seals nothing.
    """

    project: ProjectName
    authority: str
    party: PartyName
    csr: str
    card: Card = b""
    signature: Annotated[bytes, Meta(max_length=64)] = b""

    def unsigned(self) -> bytes:
        return b"peertune request 1\0" + msgspec.msgpack.encode(msgspec.structs.replace(self, signature=b""))


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`certificate`: PEM. `card`: empty for who seals nothing."""

    certificate: str
    card: Card = b""


class Members(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who takes part, as the organiser last said. `serial` grows; `made`: seconds since 1970, on the organiser's clock.
    `removed`: parties whose certificates are not to be let in any more. `versions`: of the packages, by name.
    """

    project: ProjectName
    serial: int
    made: float
    config: str
    versions: dict[str, str]
    members: dict[PartyName, Member]
    removed: list[PartyName] = []


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="members"):
    """A list of members as it travels: `body` is JSON, the signature base64."""

    body: str
    signature: str


def project_of(name: str, host: str, port: int) -> Project:
    """Raises `ConfigError` if a name is none."""
    try:
        return msgspec.convert({"name": name, "host": host, "port": port}, Project)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"the project {name!r:.80} at {host!r:.80}: expected a plain word for the name, and the coordinator's host "
            f"name or IPv4 address of at most 63 characters ({error})"
        ) from None


Document = TypeVar("Document", Invitation, Request, Signed)


def read_document(path: Path, kind: type[Document]) -> Document:
    """What is in `path`. Raises `ConfigError` whatever is not one whole document of that kind."""
    name = str(kind.__struct_config__.tag)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX + 1)
        if len(raw) > MAX:
            raise ConfigError(f"{path} is larger than {MAX} bytes, so it holds no {name}; ask for the file again")
        return msgspec.json.decode(raw, type=kind)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name the file with the {name}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} holds no {name} ({error}); ask for the file again") from None


def write_document(path: Path, document: Invitation | Request | Signed) -> None:
    """Readable, so that everybody can see that nothing private is in it. Raises `StorageError`."""
    write_private(path, msgspec.json.format(msgspec.json.encode(document), indent=1))


def config_of(text: str) -> Config:
    """The configuration in a document. Raises `ConfigError`."""
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(
            f"the configuration in it is not valid here (the first of {error.error_count()} errors is at "
            f"{'.'.join(map(str, error.errors()[0]['loc'])) or 'its beginning'}); use the organiser's peertune"
        ) from None


def is_site(party: str) -> bool:
    """Has it an agent or the server's model, and so keys to seal with?"""
    return party not in (COORDINATOR, SUBMITTER)
