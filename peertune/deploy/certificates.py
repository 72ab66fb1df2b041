"""The authority, and the certificates that it signs, as FLARE wants them (`nvflare.lighter`, X.509, RSA)."""

import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import VerificationError
from nvflare.lighter import utils as flare

from peertune.errors import ConfigError
from peertune.guard.keys import grouped

DAYS = 360  # a certificate is valid
AUTHORITY_DAYS = 5 * 365
AUTHORITY_BITS = 3072  # for five years; the others' keys have the 2048 bits that FLARE gives them
MIN_BITS, MAX_BITS = 2048, 8192
SLACK = timedelta(minutes=10)  # by which clocks may be behind
Key = rsa.RSAPrivateKey


def new_key(path: Path, bits: int = MIN_BITS) -> Key:
    """A private key in a new file of mode 0600. Raises `FileExistsError`."""
    key = rsa.generate_private_key(65537, bits)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(flare.serialize_pri_key(key))
    return key


def read_key(path: Path) -> Key:
    """Raises `ConfigError`, which quotes nothing of the file."""
    try:
        # written by `new_key`: testing its primes again takes half a second
        key = serialization.load_pem_private_key(path.read_bytes(), None, unsafe_skip_rsa_key_validation=True)
    except OSError as error:
        raise ConfigError(f"the private key {path} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Key):
        raise ConfigError(f"{path} holds no private key of the kind RSA; restore it from a backup")
    return key


def read_certificate(pem: str, what: str) -> x509.Certificate:
    """`what`: where it comes from, for the error. Raises `ConfigError` for what is more than one certificate, too: TLS
    would trust all that a file holds, and people compare the first.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
    except ValueError:
        raise ConfigError(f"{what} is no certificate; ask for the file again") from None
    if _pem(certificate) != pem:
        raise ConfigError(f"{what}: expected one certificate and nothing else; ask for the file again")
    return certificate


def new_authority(project: str, key: Key) -> str:
    """A certificate that signs others, and itself."""
    name, now = flare.Identity(project), datetime.now(UTC)
    return _pem(
        flare.generate_cert(
            *(name, name, key, key.public_key()),
            ca=True,
            not_valid_before=now - SLACK,
            not_valid_after=now + timedelta(days=AUTHORITY_DAYS),
        )
    )


def signing_request(key: Key, name: str) -> str:
    """PKCS #10: proof that who asks has the key."""
    subject = flare.x509_name(name)
    signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def read_signing_request(pem: str, name: str) -> rsa.RSAPublicKey:
    """The key that `name` asks a certificate for. Raises `ConfigError`."""
    try:
        asked = x509.load_pem_x509_csr(pem.encode())
        valid, key = asked.is_signature_valid, asked.public_key()
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        raise ConfigError(f"the request of {name} holds no certificate request; let it make a new one") from None
    if not valid or not isinstance(key, rsa.RSAPublicKey) or not MIN_BITS <= key.key_size <= MAX_BITS:
        raise ConfigError(f"the request of {name} is not signed by its own key; let it make a new one")
    found = common_name(asked.subject)
    if found != name:
        raise ConfigError(f"the request of {name} asks for the name {found!r:.80}; let {name} make a new one")
    return key


def issue(authority: tuple[str, Key], public: rsa.RSAPublicKey, subject: flare.Identity, host: str | None) -> str:
    """A certificate for `subject`, which a server has for its `host`. Raises `ConfigError` if the authority's is out of
    date.
    """
    signer, now = read_certificate(authority[0], "the authority"), datetime.now(UTC)
    check_dates(signer, "the authority's certificate", "make a new federation")
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if host else [])]
    return _pem(
        flare.generate_cert(
            *(subject, flare.Identity(common_name(signer.subject)), authority[1], public),
            server_default_host=host,
            not_valid_before=now - SLACK,
            not_valid_after=min(now + timedelta(days=DAYS), signer.not_valid_after_utc),
            extra_extensions=[
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (x509.ExtendedKeyUsage(usages), False),
            ],
        )
    )


def check_dates(certificate: x509.Certificate, what: str, cure: str) -> None:
    """Raises `ConfigError` if it is not valid yet, or no more."""
    now = datetime.now(UTC)
    if now < certificate.not_valid_before_utc:
        raise ConfigError(f"{what} is valid only from {certificate.not_valid_before_utc:%F %R} UTC on; set the clock")
    if now > certificate.not_valid_after_utc:
        raise ConfigError(f"{what} expired on {certificate.not_valid_after_utc:%F}; {cure}, or set the clock")


def check_issued(certificate: x509.Certificate, authority: x509.Certificate, name: str) -> None:
    """Is it `name`'s, and signed by the authority? Raises `ConfigError`."""
    found = common_name(certificate.subject)
    if found != name:
        raise ConfigError(
            f"the certificate is for {found!r:.80}, expected {name}; ask the organiser for the file again"
        )
    check_dates(certificate, f"the certificate of {name}", "run `peertune renew KIT`, and let the organiser approve it")
    try:
        flare.verify_cert_chain(certificate, [], authority)
    except (VerificationError, ValueError) as error:
        raise ConfigError(f"the certificate of {name} is not signed by this federation's authority ({error})") from None


def is_signed(text: str, signature: str, authority: x509.Certificate) -> bool:
    """Did the authority sign `text`? `signature`: in base64."""
    try:
        flare.verify_content(text, signature, authority.public_key())
    except (InvalidSignature, ValueError):
        return False
    return True


def sign(text: str, key: Key) -> str:
    return str(flare.sign_content(text, key))


def fits(certificate: x509.Certificate, key: Key) -> bool:
    return certificate.public_key() == key.public_key()


def common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def fingerprint(pem: str, what: str) -> str:
    """SHA-256 of a certificate, as two people read it to each other. Raises `ConfigError`."""
    return grouped(hashlib.sha256(read_certificate(pem, what).public_bytes(serialization.Encoding.DER)).hexdigest())


def key_fingerprint(key: rsa.RSAPublicKey) -> str:
    """SHA-256 of a public key, as two people read it to each other."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return grouped(hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest())


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
