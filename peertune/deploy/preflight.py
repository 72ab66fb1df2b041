"""What a kit needs of this machine, of the network and of what its owner has accepted: before anything is started."""

import errno
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from peertune.config.schema import Config
from peertune.deploy import certificates
from peertune.deploy.documents import SUBMITTER, Invitation, Members, config_of, is_site
from peertune.deploy.home import digest, read_settings
from peertune.deploy.job import installed
from peertune.deploy.request import PENDING, present_keys, role
from peertune.deploy.sealing import KEYS, pinned
from peertune.deploy.skeleton import identity
from peertune.deploy.start import is_running
from peertune.deploy.trust import invitation_of, members_of
from peertune.doctor import Check, device, disk
from peertune.errors import ConfigError
from peertune.guard import Identity
from peertune.guard.keys import grouped
from peertune.ledger import COORDINATOR

WARNING = 30  # days before a certificate expires
MOST_SKEW = 60.0  # seconds
PATIENCE = 10.0  # seconds for a connection
ACCEPT = "`peertune accept KIT FILE` with the newest list of members"


@dataclass(frozen=True, slots=True)
class Kit:
    folder: Path
    invitation: Invitation

    @property
    def party(self) -> str:
        return self.invitation.party

    @property
    def certificate(self) -> Path:
        return self.folder / "startup" / f"{role(self.party)}.crt"

    @property
    def own_certificate(self) -> x509.Certificate:
        """Raises `ConfigError`."""
        try:
            return certificates.read_certificate(self.certificate.read_text(encoding="ascii"), str(self.certificate))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.certificate} cannot be read ({error}); {ACCEPT} writes it") from None

    @property
    def place(self) -> str:
        """Of the coordinator."""
        return f"{self.invitation.project.host}:{self.invitation.project.port}"

    @property
    def authority(self) -> x509.Certificate:
        return certificates.read_certificate(self.invitation.authority, "the authority's certificate")


def examine(folder: Path) -> list[Check]:
    """All checks of a kit, in order. Raises `ConfigError` if it is no kit."""
    kit, members = Kit(folder, invitation_of(folder)), members_of(folder)
    checks = [_port(kit) if kit.party == COORDINATOR else _way(kit), _authority(kit), _private(kit)]
    if members is None:
        checks.append(_waiting(kit))
    else:
        checks += [_certificate(kit), _clock(members), _versions(members)]
        checks += [_configuration(kit, members)] if kit.party != SUBMITTER else []
        checks += [_keys(kit, members), _peers(kit, members)] if is_site(kit.party) else []
    checks += [_disk(kit)] if kit.party != SUBMITTER else []
    checks += [device(_config(kit).engine.device)] if is_site(kit.party) else []
    return checks


def check_start(folder: Path) -> None:
    """Raise `ConfigError` for what no waiting would mend. A coordinator that is out of reach will be called again."""
    kit = Kit(folder, invitation_of(folder))
    if members_of(folder) is None:
        raise _wrong(folder, _waiting(kit))
    certificates.check_issued(kit.own_certificate, kit.authority, identity(kit.invitation.project, kit.party).name)
    if check := _unpaired(kit):
        raise _wrong(folder, check)
    if kit.party == COORDINATOR:
        check = _port(kit)
    else:
        try:
            _greet(kit)
        except ssl.SSLError as error:
            check = _strange(kit, error)
        except OSError:
            return
        else:
            return
    if check.fix:
        raise _wrong(folder, check)


def check_run(folder: Path, config: Config) -> None:
    """Raise `ConfigError` if runs cannot be started with this submitter's kit, or not this one."""
    check_start(folder)
    members = members_of(folder)
    known = config_of(members.config).parties() if members else {}
    unknown = sorted(config.parties().keys() - known.keys())
    if unknown:
        raise ConfigError(
            f"the configuration names {', '.join(unknown)}, no party of the federation that {folder} knows: let the "
            f"organiser run `peertune reconfigure FILE`, and {ACCEPT}; or take it out"
        )


def _wrong(folder: Path, check: Check) -> ConfigError:
    return ConfigError(f"{folder}: {check.name.lower()}: {check.found}; {check.fix}")


def _port(kit: Kit) -> Check:
    """The coordinator's: free, or its own."""
    port = kit.invitation.project.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and is_running(kit.folder):
                return Check("Port", f"{port} is this kit's, which is running")
            fix = "stop what uses it, or make a new federation with another --port"
            if error.errno == errno.EACCES:
                fix = "run as a user who may open ports below 1024, or forward it to a higher one"
            return Check("Port", f"{port} cannot be opened ({error.strerror})", fix)
    return Check("Port", f"{port} is free")


def _way(kit: Kit) -> Check:
    """To the coordinator: a whole handshake, so that nothing in between has opened it."""
    place, unpaired = kit.place, _unpaired(kit)
    if unpaired and kit.certificate.is_file():
        return Check("Coordinator", f"{place} cannot be asked: {unpaired.found}", unpaired.fix)
    try:
        answered = _greet(kit)
    except ssl.SSLError as error:
        return _strange(kit, error)
    except OSError as error:
        fix = "is `peertune coordinator` running there, does the name resolve here, is outgoing TCP to it allowed?"
        return Check("Coordinator", f"{place} is out of reach ({error})", fix)
    if not answered:
        return Check("Coordinator", f"{place} hangs up", "is it `peertune coordinator` that listens there?")
    return Check("Coordinator", f"{place} answers")


def _strange(kit: Kit, error: ssl.SSLError) -> Check:
    """Somebody answers who is not the coordinator of this kit, or does not take it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        fix = "is this kit of its federation? If so, let the proxy between pass its TLS unopened, and check the clock"
        return Check("Coordinator", f"{kit.place} shows another certificate ({error.verify_message})", fix)
    fix = f"check the clock; renew the certificate: `peertune renew {kit.folder}`"
    return Check("Coordinator", f"{kit.place} refuses this kit ({error.reason})", fix)


def _greet(kit: Kit) -> bool:
    """Did the server say something? With TLS 1.3 only that tells whether it takes this kit's certificate. Raises
    `OSError`.
    """
    project = kit.invitation.project
    context = ssl.create_default_context(cadata=kit.invitation.authority)
    context.set_alpn_protocols(["h2"])
    complete = kit.certificate.is_file()
    if complete:
        context.load_cert_chain(kit.certificate, present_keys(kit.folder, kit.party)[0])
    with (
        socket.create_connection((project.host, project.port), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=project.host) as secure,
    ):
        return not complete or bool(secure.recv(1))


def _authority(kit: Kit) -> Check:
    return _dated("Authority", kit.authority, "found a new federation: no certificate outlives its authority's")


def _unpaired(kit: Kit) -> Check | None:
    """Why the certificate and the private key beside it cannot be used."""
    fix = f"restore the kit from a backup, or `peertune renew {kit.folder} --keys` and let the organiser approve it"
    try:
        fits = certificates.fits(kit.own_certificate, certificates.read_key(present_keys(kit.folder, kit.party)[0]))
    except ConfigError as error:
        return Check("Certificate", str(error), fix)
    return None if fits else Check("Certificate", "is not for the private key beside it", fix)


def _certificate(kit: Kit) -> Check:
    if unpaired := _unpaired(kit):
        return unpaired
    fix = f"`peertune renew {kit.folder}`, let the organiser approve it, and `peertune accept` what comes back"
    try:
        own = kit.own_certificate
        certificates.check_issued(own, kit.authority, identity(kit.invitation.project, kit.party).name)
    except ConfigError as error:
        return Check("Certificate", str(error), fix)
    return _dated("Certificate", own, fix)


def _dated(name: str, certificate: x509.Certificate, fix: str) -> Check:
    left = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    found = f"{left} days left, until {certificate.not_valid_after_utc:%F}"
    return Check(name, found, fix if left < WARNING else "")


def _private(kit: Kit) -> Check:
    """Are private keys for their owner alone?"""
    found = [
        path
        for pattern in ("startup/*.key", f"local/{KEYS}", f"{PENDING}/*")
        for path in kit.folder.glob(pattern)
        if path.stat().st_mode & 0o077
    ]
    if found:
        return Check("Private keys", "others may read them", f"chmod 600 {' '.join(map(str, found))}")
    return Check("Private keys", "are for their owner alone")


def _waiting(kit: Kit) -> Check:
    return Check("Members", "this kit has accepted no list yet", f"send {kit.party}.request to the organiser; {ACCEPT}")


def _clock(members: Members) -> Check:
    """Against the organiser's, when it signed the list: a clock that is ahead is not noticed."""
    behind = members.made - time.time()
    if behind > MOST_SKEW:
        return Check("Clock", f"{behind:.0f} s behind the organiser's", "set the clock, by NTP for instance")
    return Check("Clock", f"not behind the organiser's of {datetime.fromtimestamp(members.made, UTC):%F %R} UTC")


def _versions(members: Members) -> Check:
    wanted, found = members.versions, installed()
    other = [name for name in found if found[name] != wanted.get(name)]
    if not other:
        return Check("Versions", ", ".join(f"{name} {found[name]}" for name in found))
    told = ", ".join(f"{name} {found[name]}, the organiser has {wanted.get(name, 'none')}" for name in other)
    return Check("Versions", told, "install the organiser's; who upgrades must upgrade everybody")


def _configuration(kit: Kit, members: Members) -> Check:
    agreed, own = (grouped(digest(config)) for config in (config_of(members.config), _config(kit)))
    if own != agreed:
        return Check("Configuration", f"{own}, the list of members has {agreed}", ACCEPT)
    return Check("Configuration", own)


def _config(kit: Kit) -> Config:
    return config_of(read_settings(kit.folder).config)


def _keys(kit: Kit, members: Members) -> Check:
    fix = f"`peertune renew {kit.folder} --keys`, and let the organiser approve it"
    try:
        own = Identity.read(kit.folder / "local" / KEYS).card
    except ConfigError as error:
        return Check("Sealing keys", str(error), fix)
    if own.encode() != members.members[kit.party].card:
        return Check("Sealing keys", "are not those that the others have", fix)
    return Check("Sealing keys", f"{own.fingerprint} ({own.suite})")


def _peers(kit: Kit, members: Members) -> Check:
    """Are the keys of everybody in the configuration pinned, and those that the list of members has?"""
    peers, listed = pinned(kit.folder), members.members
    others = _config(kit).parties().keys() - {kit.party}
    missing = sorted(others - set(peers.names))
    if missing:
        return Check("Peers", f"no keys of {', '.join(missing)}", f"let the organiser approve them, then {ACCEPT}")
    changed = sorted(name for name in others if name not in listed or listed[name].card != peers[name].encode())
    if changed:
        return Check("Peers", f"other keys of {', '.join(changed)} than in the list of members", ACCEPT)
    return Check("Peers", f"{', '.join(sorted(others)) or 'nobody else'}: pinned")


def _disk(kit: Kit) -> Check:
    runs = (kit.folder / read_settings(kit.folder).runs).absolute()
    place = next(folder for folder in (runs, *runs.parents) if folder.exists())
    return disk(place, "join with --runs elsewhere")
