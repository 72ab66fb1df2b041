"""Keys of a party: an Ed25519 key that signs and a key that messages are sealed to. Made at the party, they stay there.

Suites are HPKE (RFC 9180) with HKDF-SHA256 and ChaCha20-Poly1305. `x25519` is DHKEM(X25519, HKDF-SHA256); `hybrid` is
MLKEM768-X25519 (draft-ietf-hpke-pq), which stays closed as long as one of its two halves holds. The suite belongs to
the receiver's key, and is pinned with it: nobody on the way can choose a weaker one.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography.exceptions import InvalidSignature, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, MLKEM768X25519PrivateKey, MLKEM768X25519PublicKey, Suite
from msgspec import Meta

from peertune.errors import ConfigError, SealError
from peertune.guard.store import private_folder, translated, write_private

SIGNATURE = 64  # bytes
ENCAPSULATION = {"x25519": 32, "hybrid": 1120}  # bytes before the ciphertext
MAX_CARD = 4096  # bytes on the wire
_KEM = {"x25519": KEM.X25519, "hybrid": KEM.MLKEM768_X25519}
_RECIPIENT = {"x25519": 32, "hybrid": 1184 + 32}  # bytes of a public key; hybrid: ML-KEM's, then X25519's

_NO_MLKEM = (
    "the suite hybrid needs ML-KEM, which this build of the package cryptography lacks; install a wheel from PyPI"
)

SuiteName = Literal["x25519", "hybrid"]
PartyName = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What everybody may know of a party: its name and public keys. `decode` and `Peers` give checked ones."""

    name: PartyName
    suite: SuiteName
    signing: Key
    recipient: Annotated[bytes, Meta(min_length=32, max_length=1216)]

    @property
    def fingerprint(self) -> str:
        """160 bits of SHA-256 over name, suite and both keys, in groups of four hex digits, to be read out."""
        digits = hashlib.sha256(b"peertune card 1\0" + self.encode()).hexdigest()[:40]
        return grouped(digits)

    def encode(self) -> bytes:
        """The card as it travels."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, raw: bytes) -> "Card":
        """The card in foreign bytes. Raises `SealError` whatever they are."""
        if len(raw) > MAX_CARD:
            raise SealError(f"a card has at most {MAX_CARD} bytes, this one has {len(raw)}")
        try:
            card = msgspec.msgpack.decode(raw, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise SealError(f"these bytes are not the card of a party ({type(error).__name__})") from None
        card.check()
        return card

    def check(self) -> None:
        """Raise `SealError` if its keys are none."""
        if len(self.recipient) != _RECIPIENT[self.suite]:
            expected, found = _RECIPIENT[self.suite], len(self.recipient)
            raise SealError(f"{self.name}: a key of suite {self.suite} has {expected} bytes, this one has {found}")
        self.encrypt(b"", b"")  # some keys of the right length are refused only here
        try:
            Ed25519PublicKey.from_public_bytes(self.signing)
        except ValueError:
            raise SealError(f"{self.name}: its signing key is no Ed25519 key") from None

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Did the owner of this card sign `message`?"""
        try:
            Ed25519PublicKey.from_public_bytes(self.signing).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def encrypt(self, plaintext: bytes | bytearray, info: bytes) -> bytes:
        """`plaintext` sealed to this party, bound to `info`. Raises `SealError` if the key cannot be used."""
        try:
            return _suite(self.suite).encrypt(plaintext, self._recipient_key(), info)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise SealError(f"{self.name}: nothing can be sealed to its key of suite {self.suite} ({error})") from None

    def _recipient_key(self) -> X25519PublicKey | MLKEM768X25519PublicKey:
        x25519 = X25519PublicKey.from_public_bytes(self.recipient[-32:])
        if self.suite == "x25519":
            return x25519
        return MLKEM768X25519PublicKey(MLKEM768PublicKey.from_public_bytes(self.recipient[:-32]), x25519)


class _Secrets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key file: JSON, bytes in base64. `mlkem` is the seed of the ML-KEM key, empty without one."""

    version: Literal[1]
    name: PartyName
    suite: SuiteName
    signing: Key
    x25519: Key
    mlkem: Annotated[bytes, Meta(max_length=64)] = b""


class Identity:
    """A party with its private keys. Use `Identity.create` once and `Identity.read` from then on."""

    def __init__(self, secrets: _Secrets) -> None:
        self._signing = Ed25519PrivateKey.from_private_bytes(secrets.signing)
        x25519 = X25519PrivateKey.from_private_bytes(secrets.x25519)
        self._recipient: X25519PrivateKey | MLKEM768X25519PrivateKey = x25519
        public = x25519.public_key().public_bytes_raw()
        if secrets.suite == "hybrid":
            mlkem = MLKEM768PrivateKey.from_seed_bytes(secrets.mlkem)
            self._recipient = MLKEM768X25519PrivateKey(mlkem, x25519)
            public = mlkem.public_key().public_bytes_raw() + public
        self.card = Card(secrets.name, secrets.suite, self._signing.public_key().public_bytes_raw(), public)

    @classmethod
    def create(cls, path: Path, name: str, suite: SuiteName = "x25519") -> "Identity":
        """New keys of the party `name`, in a new file of mode 0600.

        Raises `ConfigError` if `path` is there already, `name` is no plain word, or ML-KEM is not to be had.
        """
        if path.exists():
            raise ConfigError(f"{path} exists and is not overwritten: peers have pinned these keys; name another file")
        try:
            mlkem = MLKEM768PrivateKey.generate().private_bytes_raw() if suite == "hybrid" else b""
        except UnsupportedAlgorithm:
            raise ConfigError(_NO_MLKEM) from None
        signing, x25519 = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
        secrets = _Secrets(1, name, suite, signing.private_bytes_raw(), x25519.private_bytes_raw(), mlkem)
        raw = msgspec.json.encode(secrets)
        try:
            msgspec.json.decode(raw, type=_Secrets)
        except msgspec.ValidationError:
            raise ConfigError(
                f"the name of a party: expected at most 64 letters, digits, '.', '_' or '-', a letter first, "
                f"found {name!r:.80}"
            ) from None
        private_folder(path.parent)
        write_private(path, raw)
        return cls(secrets)

    @classmethod
    def read(cls, path: Path) -> "Identity":
        """The keys in `path`. Raises `ConfigError` if it is missing, damaged, or others may read it."""
        if not path.is_file():
            raise ConfigError(f"no keys at {path}; make them at this party, once")
        with translated(path):
            mode, raw = path.stat().st_mode & 0o777, path.read_bytes()
        if mode & 0o077:
            raise ConfigError(f"{path} holds private keys, and others may use it (mode {mode:o}): chmod 600 {path}")
        try:
            return cls(msgspec.json.decode(raw, type=_Secrets))
        except UnsupportedAlgorithm:
            raise ConfigError(f"{path}: {_NO_MLKEM}") from None
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):  # their text would quote the file
            raise ConfigError(f"{path} is not a file of keys, or was damaged; restore it from a backup") from None

    @property
    def name(self) -> str:
        return self.card.name

    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature, 64 bytes."""
        return self._signing.sign(message)

    def decrypt(self, ciphertext: bytes | memoryview, info: bytes) -> bytes:
        """What was sealed to this party with `info`. Raises `SealError`."""
        try:
            return _suite(self.card.suite).decrypt(ciphertext, self._recipient, info)
        except (InvalidTag, ValueError):
            raise SealError(
                f"a message was not sealed to the key of {self.name} ({self.card.fingerprint}), or was changed; "
                f"compare this fingerprint with the one that the sender has pinned"
            ) from None


def grouped(digits: str) -> str:
    """A hash as people read it to each other: in groups of four digits."""
    return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))


def _suite(name: SuiteName) -> Suite:
    return Suite(_KEM[name], KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
