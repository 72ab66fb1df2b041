"""Keys stay private and whole; a pinned key that changes stops the run."""

import json
import tomllib
from pathlib import Path

import msgspec
import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from hypothesis import given
from hypothesis import strategies as st
from parties import identities, seal_of

from peertune.errors import ChangedKeyError, ConfigError, SealError
from peertune.guard import Card, Identity, Peers

SUITES = ("x25519", "hybrid")


@pytest.fixture(params=SUITES)
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "home" / "keys.json"
    Identity.create(path, "clinic", request.param)
    return path


# At the party


def test_keys_are_for_their_owner_alone(keys: Path) -> None:
    assert keys.stat().st_mode & 0o777 == 0o600
    assert keys.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in keys.parent.iterdir()] == ["keys.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_keys_that_others_may_use_are_refused(keys: Path, mode: int) -> None:
    keys.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:o}.*chmod 600"):
        Identity.read(keys)


def test_keys_are_the_same_when_they_are_read(keys: Path) -> None:
    one, two = Identity.read(keys), Identity.read(keys)
    assert one.card == two.card and one.name == "clinic"
    assert two.card.verifies(one.sign(b"message"), b"message")
    assert not two.card.verifies(one.sign(b"message"), b"massage")
    assert two.decrypt(one.card.encrypt(b"content", b"info"), b"info") == b"content"
    with pytest.raises(SealError, match="was not sealed to the key of clinic"):
        two.decrypt(one.card.encrypt(b"content", b"info"), b"other info")


def test_keys_are_never_overwritten(keys: Path) -> None:
    before = keys.read_bytes()
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        Identity.create(keys, "clinic")
    assert keys.read_bytes() == before


def test_every_party_has_keys_of_its_own(tmp_path: Path) -> None:
    cards = [Identity.create(tmp_path / str(number), "clinic").card for number in range(5)]
    assert len({card.signing for card in cards} | {card.recipient for card in cards}) == 10


def test_missing_keys_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no keys at .*make them"):
        Identity.read(tmp_path / "keys.json")


def test_damaged_keys_are_refused_and_never_quoted(keys: Path) -> None:
    raw = keys.read_bytes()
    whole = json.loads(raw)
    shorter = [json.dumps(whole | {field: whole[field][:-8]}).encode() for field in ("signing", "x25519")]
    other = [json.dumps(whole | change).encode() for change in ({"version": 2}, {"suite": "none"}, {"more": 1})]
    for damaged in (b"", raw[:-1], raw[: len(raw) // 2], b"\xff" + raw, b"[]", *shorter, *other):
        keys.write_bytes(damaged)
        with pytest.raises(ConfigError) as error:
            Identity.read(keys)
        assert "restore it from a backup" in str(error.value)
        assert not [field for field in ("signing", "x25519") if whole[field][:12] in str(error.value)]


def test_a_hybrid_key_without_its_mlkem_half_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    Identity.create(path, "clinic", "hybrid")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mlkem": ""}))
    with pytest.raises(ConfigError, match="restore it from a backup"):
        Identity.read(path)


def test_without_ml_kem_the_hybrid_suite_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems build the package against an OpenSSL without it."""
    card = Identity.create(tmp_path / "keys.json", "clinic", "hybrid").card

    def missing(*args: object) -> None:
        raise UnsupportedAlgorithm("ML-KEM-768 is not supported by this backend.")

    for kind, names in (
        (MLKEM768PrivateKey, ("generate", "from_seed_bytes")),
        (MLKEM768PublicKey, ("from_public_bytes",)),
    ):
        for name in names:
            monkeypatch.setattr(kind, name, missing)
    for use in (
        lambda: Identity.create(tmp_path / "new.json", "lab", "hybrid"),
        lambda: Identity.read(tmp_path / "keys.json"),
    ):
        with pytest.raises(ConfigError, match="install a wheel from PyPI"):
            use()
    with pytest.raises(SealError, match="nothing can be sealed to its key of suite hybrid"):
        Card.decode(card.encode())
    assert Identity.create(tmp_path / "new.json", "lab").name == "lab"


@pytest.mark.parametrize("name", ["", "9lives", "a b", "a\n", "../a", "a" * 65, 'a"', "ü"])
def test_names_are_plain_words(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="the name of a party: expected"):
        Identity.create(tmp_path / "keys.json", name)
    assert list(tmp_path.iterdir()) == []


# What travels


def test_a_card_travels_whole(keys: Path) -> None:
    card = Identity.read(keys).card
    assert Card.decode(card.encode()) == card


def test_a_card_holds_nothing_private(keys: Path) -> None:
    private = msgspec.json.decode(keys.read_bytes(), type=dict[str, str | int])
    card = Identity.read(keys).card
    shown = card.encode() + repr(Identity.read(keys)).encode() + repr(vars(Identity.read(keys))).encode()
    for field in ("signing", "x25519", "mlkem"):
        secret = msgspec.convert(private[field], bytes, strict=False)
        assert not secret or (secret not in shown and str(private[field]).encode() not in shown)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_card_are_refused(raw: bytes) -> None:
    with pytest.raises(SealError):
        Card.decode(raw)


def test_cards_with_keys_that_are_none_are_refused(tmp_path: Path) -> None:
    card, hybrid = (Identity.create(tmp_path / suite, "clinic", suite).card for suite in ("x25519", "hybrid"))
    for wrong in (
        msgspec.structs.replace(card, recipient=bytes(32)),  # a point of small order: everybody would know the secret
        msgspec.structs.replace(card, suite="hybrid"),
        msgspec.structs.replace(hybrid, suite="x25519"),
        msgspec.structs.replace(hybrid, recipient=b"\xff" * 1216),
        msgspec.structs.replace(card, name="a b"),
        msgspec.structs.replace(card, signing=bytes(31)),
    ):
        with pytest.raises(SealError):
            Card.decode(wrong.encode())
    with pytest.raises(SealError, match="at most 4096 bytes"):
        Card.decode(card.encode() + bytes(4096))


def test_the_fingerprint_is_over_everything(tmp_path: Path) -> None:
    fixed = Card("clinic", "x25519", bytes(range(32)), bytes(range(32, 64)))
    assert fixed.fingerprint == "408c 21b8 0d87 c7ac 9f0d 296a 1661 a2c2 34d1 10ae"
    others = [
        msgspec.structs.replace(fixed, **change)
        for change in ({"name": "lab"}, {"suite": "hybrid"}, {"signing": bytes(32)}, {"recipient": bytes(32)})
    ]
    assert len({card.fingerprint for card in (fixed, *others)}) == 5


# Pins


def test_pins_are_there_when_they_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "home" / "peers.toml"
    cards = [
        Identity.create(tmp_path / name, name, suite).card
        for name, suite in (("clinic", "x25519"), ("site-1.lab", "hybrid"))
    ]
    for card in cards:
        Peers.read(path).pin(card)
    peers = Peers.read(path)
    assert peers.names == ("clinic", "site-1.lab") and [peers[name] for name in peers.names] == cards
    assert path.stat().st_mode & 0o777 == 0o600
    tables = tomllib.loads(path.read_text())
    assert {name: table["fingerprint"] for name, table in tables.items()} == {c.name: c.fingerprint for c in cards}
    before = path.read_bytes()
    for card in cards:
        peers.pin(card)
        peers.check(card)
    assert path.read_bytes() == before


@pytest.mark.parametrize("field", ["signing", "recipient", "suite", "all"])
def test_a_changed_key_stops_the_run_and_both_fingerprints_are_named(tmp_path: Path, field: str) -> None:
    path = tmp_path / "peers.toml"
    pinned, other = (Identity.create(tmp_path / name, "clinic").card for name in ("old", "new"))
    hybrid = Identity.create(tmp_path / "hybrid", "clinic", "hybrid").card
    shown = {
        "signing": msgspec.structs.replace(pinned, signing=other.signing),
        "recipient": msgspec.structs.replace(pinned, recipient=other.recipient),
        "suite": msgspec.structs.replace(hybrid, signing=pinned.signing),
        "all": other,
    }[field]
    Peers.read(path).pin(pinned)
    before = path.read_bytes()
    for use in (Peers.read(path).check, Peers.read(path).pin):
        with pytest.raises(ChangedKeyError) as error:
            use(shown)
        assert pinned.fingerprint in str(error.value) and shown.fingerprint in str(error.value)
        assert "The run stops" in str(error.value) and "delete [clinic]" in str(error.value)
        assert (error.value.exit_code, error.value.code) == (2, "changed_key")
    assert path.read_bytes() == before


def test_after_the_pin_is_deleted_the_new_key_can_be_pinned(tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    old, new = (Identity.create(tmp_path / name, "clinic").card for name in ("old", "new"))
    Peers.read(path).pin(old)
    path.write_text("")
    Peers.read(path).pin(new)
    assert Peers.read(path)["clinic"] == new


def test_a_message_of_a_party_whose_key_changed_does_not_open(tmp_path: Path) -> None:
    everyone = identities(tmp_path, ("clinic", "lab"))
    lab = seal_of(tmp_path, everyone["lab"], [everyone["clinic"]])
    (tmp_path / "clinic" / "keys.json").unlink()
    renewed = identities(tmp_path, ("clinic",))["clinic"]
    sealed = seal_of(tmp_path, renewed, [everyone["lab"]]).close("lab", 1, b"raw")
    with pytest.raises(SealError, match="not signed by the key that is pinned for it"):
        lab.open("clinic", 1, sealed)


def test_who_is_not_pinned_is_not_known(tmp_path: Path) -> None:
    peers = Peers.read(tmp_path / "peers.toml")
    card = Identity.create(tmp_path / "keys.json", "clinic").card
    assert peers.names == ()
    with pytest.raises(SealError, match="pins no key of 'clinic'"):
        peers.check(card)


def test_pins_that_somebody_edited_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "peers.toml"
    card, other = (Identity.create(tmp_path / name, "clinic").card for name in ("one", "two"))
    Peers.read(path).pin(card)
    text = path.read_text()
    Peers.read(tmp_path / "other.toml").pin(other)
    others = tomllib.loads((tmp_path / "other.toml").read_text())["clinic"]
    mine = tomllib.loads(text)["clinic"]
    edits = [text.replace(mine[field], others[field]) for field in ("signing", "recipient", "fingerprint")]
    edits += [
        text.replace('"clinic"', '"lab"'),
        text.replace("x25519", "hybrid"),
        text[:-20],
        text.replace("= ", "= 1"),
    ]
    edits += ["clinic = 3", "[clinic]\n", text.replace('signing = "', 'signing = "*')]
    for edited in edits:
        assert edited != text
        path.write_text(edited)
        with pytest.raises(ConfigError, match="is not a file of pinned keys"):
            Peers.read(path)
