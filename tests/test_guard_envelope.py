"""Sealed messages: what opens, and the thousands that must not."""

import hashlib
import hmac
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from canaries import CANARIES, disguises, hits
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parties import RUN, identities, seal_of, seals

from peertune.errors import ConfigError, SealError
from peertune.guard import Identity, Outbox, Peers, Seal, envelope
from peertune.guard.header import MAX_HEADER, Header, read_header
from peertune.guard.keys import ENCAPSULATION, SIGNATURE, Card
from peertune.guard.padding import bucket, pad, unpad
from peertune.payloads import Texts, encode

NAMES = ("clinic", "lab", "mallory")
SUITES = ("x25519", "hybrid")
CALL = 17
TEXT = encode(Texts(["print('hello')", "ü"]))


@pytest.fixture(params=SUITES)
def party(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Seal]:
    return seals(tmp_path, NAMES, request.param)


@pytest.fixture(scope="module", params=SUITES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seal]:
    return seals(tmp_path_factory.mktemp(request.param), NAMES, request.param)


def refused(seal: Seal, sealed: bytes, source: str = "clinic", round: int = 1, call: int = CALL) -> str:
    """The one error that whatever cannot be trusted ends in."""
    with pytest.raises(SealError) as error:
        seal.open(source, round, sealed, call)
    return str(error.value)


# What opens


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.one_of(st.binary(max_size=200), st.integers(0, 300_000).map(bytes)),
    round=st.integers(0, 2**63 - 1),
    call=st.integers(0, 2**63 - 1),
)
def test_what_was_closed_opens(shared: dict[str, Seal], raw: bytes, round: int, call: int) -> None:
    sealed = shared["clinic"].close("lab", round, raw, call)
    assert shared["lab"].open("clinic", round, sealed, call) == raw


def test_the_hub_sees_the_header_and_the_bucket_of_the_size(party: dict[str, Seal]) -> None:
    sealed = {raw: party["clinic"].close("lab", 3, raw, CALL) for raw in (b"", b"a", bytes(4000), bytes(4057))}
    assert len({len(message) for message in sealed.values()}) == 2  # 4 KiB holds 8 + 32 + 4056 bytes
    for message in sealed.values():
        header, _ = read_header(message)
        assert header == Header(1, RUN, 3, "clinic", "lab", header.sequence, CALL)
    assert len({read_header(message)[0].sequence for message in sealed.values()}) == 4


def test_the_same_content_never_looks_the_same(party: dict[str, Seal]) -> None:
    one, two = (party["clinic"].close("lab", 1, TEXT, CALL) for _ in range(2))
    start = len(read_header(one)[1])
    assert (
        len({one[k : k + 16] for k in range(start, len(one))} & {two[k : k + 16] for k in range(start, len(two))}) == 0
    )


def test_it_is_hpke_of_rfc_9180(tmp_path: Path) -> None:
    """Opened by the RFC's own equations: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305, base mode."""

    def extract(salt: bytes, suite: bytes, label: bytes, ikm: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + ikm, "sha256")

    def expand(prk: bytes, suite: bytes, label: bytes, info: bytes, length: int) -> bytes:
        full = length.to_bytes(2) + b"HPKE-v1" + suite + label + info
        return hmac.digest(prk, full + b"\1", "sha256")[:length]

    everyone = identities(tmp_path, ("clinic", "lab"))
    sealed = seal_of(tmp_path, everyone["clinic"], [everyone["lab"]]).close("lab", 1, TEXT, CALL)
    _, head = read_header(sealed)
    ciphertext = sealed[len(head) + SIGNATURE :]
    share, box = ciphertext[:32], ciphertext[32:]
    secret = everyone["lab"]._recipient
    assert isinstance(secret, X25519PrivateKey)
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x03"
    dh = secret.exchange(X25519PublicKey.from_public_bytes(share))
    context = share + secret.public_key().public_bytes_raw()
    shared = expand(extract(b"", kem, b"eae_prk", dh), kem, b"shared_secret", context, 32)
    info = b"peertune envelope 1\0" + head
    schedule = b"\0" + extract(b"", suite, b"psk_id_hash", b"") + extract(b"", suite, b"info_hash", info)
    prk = extract(shared, suite, b"secret", b"")
    key, nonce = (expand(prk, suite, label, schedule, size) for label, size in ((b"key", 32), (b"base_nonce", 12)))
    padded = ChaCha20Poly1305(key).decrypt(nonce, box, b"")
    assert len(padded) == 4096 and bytes(unpad(padded)[32:]) == TEXT
    signed = b"peertune envelope 1\0" + hashlib.sha256(head + ciphertext).digest()
    assert everyone["clinic"].card.verifies(sealed[len(head) : len(head) + SIGNATURE], signed)


# What must not open


Attack = Callable[[bytes, random.Random], bytes]
ATTACKS: dict[str, Attack] = {
    "flipped": lambda raw, rng: _flipped(raw, rng.randrange(8 * len(raw))),
    "flipped in front": lambda raw, rng: _flipped(raw, rng.randrange(8 * 300)),
    "cut": lambda raw, rng: raw[: rng.randrange(len(raw))],
    "cut in front": lambda raw, rng: raw[rng.randrange(1, len(raw)) :],
    "longer": lambda raw, rng: raw + rng.randbytes(rng.randrange(1, 64)),
    "a hole": lambda raw, rng: raw[: (at := rng.randrange(len(raw) - 32))] + raw[at + rng.randrange(1, 32) :],
    "overwritten": lambda raw, rng: raw[: (at := rng.randrange(len(raw) - 32))] + rng.randbytes(32) + raw[at + 32 :],
}


def _flipped(raw: bytes, bit: int) -> bytes:
    return raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]


@pytest.mark.parametrize("suite", SUITES)
def test_three_thousand_forgeries_and_none_opens(tmp_path: Path, suite: str) -> None:
    party, rng = seals(tmp_path, NAMES, suite), random.Random(0)
    sealed = party["clinic"].close("lab", 1, TEXT, CALL)
    tried = 0
    for attack in ATTACKS.values():
        for _ in range(215):
            forged = attack(sealed, rng)
            assert forged != sealed
            refused(party["lab"], forged)
            tried += 1
    assert tried == 1505  # twice, once a suite
    assert party["lab"].open("clinic", 1, sealed, CALL) == TEXT  # nothing of that has used it up


def test_three_thousand_replays_and_none_opens(tmp_path: Path) -> None:
    party = seals(tmp_path, NAMES)
    sealed = [party["clinic"].close("lab", 1, TEXT, call) for call in range(100)]
    for call, message in enumerate(sealed):
        assert party["lab"].open("clinic", 1, message, call) == TEXT
    for _ in range(30):
        for call, message in enumerate(sealed):
            assert "opened before" in refused(party["lab"], message, call=call)


def test_another_run_round_call_source_or_destination_does_not_open(party: dict[str, Seal], tmp_path: Path) -> None:
    sealed = party["clinic"].close("lab", 1, TEXT, CALL)
    assert "expected round 2, found 1" in refused(party["lab"], sealed, round=2)
    assert "expected call 18, found 17" in refused(party["lab"], sealed, call=18)
    assert "expected source 'mallory', found 'clinic'" in refused(party["lab"], sealed, source="mallory")
    assert "expected destination 'mallory', found 'lab'" in refused(party["mallory"], sealed)
    assert "expected destination 'clinic'" in refused(party["clinic"], sealed)  # sent back
    later = Seal(*(getattr(party["lab"], f"_{part}") for part in ("identity", "peers")), "run-2", *_files(tmp_path))
    assert "expected run 'run-2', found 'run-1'" in refused(later, sealed)
    assert party["lab"].open("clinic", 1, sealed, CALL) == TEXT


def test_a_message_of_a_settled_round_or_of_an_earlier_start_does_not_open(tmp_path: Path) -> None:
    """What the hub kept back: it was not opened before, and never is."""
    everyone = identities(tmp_path, ("clinic", "lab"))

    def start(run: str) -> tuple[Seal, Seal]:
        clinic, lab = everyone["clinic"], everyone["lab"]
        return seal_of(tmp_path, clinic, [lab], run), seal_of(tmp_path, lab, [clinic], run)

    clinic, lab = start("run/1")
    kept = [clinic.close("lab", round, TEXT, CALL) for round in (0, 1, 1)]
    lab.settle(0)
    assert "opened before, or its round is over" in refused(lab, kept[0], round=0)
    assert lab.open("clinic", 1, kept[1], CALL) == TEXT
    start("run/2")
    assert "opened before, or its round is over" in refused(lab, kept[2])
    again = start("run/1")[1]  # the hub starts it once more under its old name
    for message, round in ((kept[0], 0), (kept[1], 1), (kept[2], 1)):
        assert "opened before, or its round is over" in refused(again, message, round=round)


def test_who_opened_much_signs_several_receipts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "MAX_CONTENTS", 3)
    party = seals(tmp_path, NAMES)
    for call in range(7):
        party["lab"].open("clinic", 1, party["clinic"].close("lab", 1, TEXT, call), call)
    receipts = party["lab"].receipts()
    found = [len(party["clinic"].confirm("lab", raw).contents) for _, raw in receipts]
    assert found == [3, 3, 1] and {source for source, _ in receipts} == {"clinic"}


def _files(folder: Path) -> tuple[envelope.Replay, Outbox]:
    return envelope.Replay(folder / "other.sqlite"), Outbox(folder / "other")


def test_a_rewritten_header_does_not_open(party: dict[str, Seal]) -> None:
    """The coordinator asks for round 2 and rewrites the header of round 1 to fit: signature and HPKE's info hold it."""
    sealed = party["clinic"].close("lab", 1, TEXT, CALL)
    rewritten = sealed.replace(b"\xa5round\x01", b"\xa5round\x02", 1)
    assert "not signed" in refused(party["lab"], rewritten, round=2)


def test_parts_of_two_messages_do_not_make_a_third(party: dict[str, Seal]) -> None:
    one, two = (party["clinic"].close("lab", 1, raw, CALL) for raw in (b"one", b"two"))
    head, end = len(read_header(one)[1]), len(read_header(one)[1]) + SIGNATURE
    for mixed in (one[:head] + two[head:], one[:end] + two[end:], one[:head] + two[head:end] + one[end:]):
        refused(party["lab"], mixed)


def test_only_the_pinned_key_signs_for_a_party(tmp_path: Path) -> None:
    """Mallory under the name of the clinic, with keys of her own, and all that the hub could have told her."""
    everyone = identities(tmp_path, ("clinic", "lab"))
    lab = seal_of(tmp_path, everyone["lab"], [everyone["clinic"]])
    forger = Identity.create(tmp_path / "forger.json", "clinic")
    sealed = seal_of(tmp_path / "elsewhere", forger, [everyone["lab"]]).close("lab", 1, TEXT, CALL)
    message = refused(lab, sealed)
    assert "not signed by the key that is pinned" in message and everyone["clinic"].card.fingerprint in message


def test_a_message_sealed_to_a_swapped_key_does_not_open(tmp_path: Path) -> None:
    """The hub gave the clinic keys of its own as the lab's: the hub could read, the lab notices."""
    everyone = identities(tmp_path, ("clinic", "lab"))
    hub = Identity.create(tmp_path / "hub.json", "lab")
    lab = seal_of(tmp_path, everyone["lab"], [everyone["clinic"]])
    sealed = seal_of(tmp_path, everyone["clinic"], [hub]).close("lab", 1, TEXT, CALL)
    message = refused(lab, sealed)
    assert "was not sealed to the key of lab" in message and everyone["lab"].card.fingerprint in message


def test_the_hybrid_suite_cannot_be_talked_down(tmp_path: Path) -> None:
    everyone = identities(tmp_path, ("clinic", "lab"), "hybrid")
    lab = seal_of(tmp_path, everyone["lab"], [everyone["clinic"]])
    card = everyone["lab"].card
    weak = Card("lab", "x25519", card.signing, card.recipient[-32:])  # the X25519 half of the same key
    peers = Peers(tmp_path / "weak.toml", {})
    peers.pin(weak)
    clinic = Seal(everyone["clinic"], peers, RUN, *_files(tmp_path))
    refused(lab, clinic.close("lab", 1, TEXT, CALL))


@given(raw=st.one_of(st.binary(max_size=400), st.binary(max_size=400).map(lambda tail: b"PTE\x01" + tail)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_end_in_a_seal_error(shared: dict[str, Seal], raw: bytes) -> None:
    refused(shared["lab"], raw)


def test_sizes_are_bounded_before_any_work(party: dict[str, Seal], monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = party["clinic"].close("lab", 1, TEXT, CALL)
    long = b"PTE\x01" + (MAX_HEADER + 1).to_bytes(2, "little") + bytes(MAX_HEADER + 500)
    assert f"at most {MAX_HEADER}" in refused(party["lab"], long)
    monkeypatch.setattr(envelope, "read_header", None)  # nothing is looked at
    monkeypatch.setattr(envelope, "MAX_SEALED", len(sealed) - 1)
    assert f"at most {len(sealed) - 1} bytes" in refused(party["lab"], sealed)
    monkeypatch.setattr(envelope, "MAX_BYTES", len(TEXT) - 1)
    with pytest.raises(SealError, match=f"this one has {len(TEXT)}"):
        party["clinic"].close("lab", 1, TEXT)


def test_the_largest_payload_fits() -> None:
    largest = 4 + 2 + MAX_HEADER + SIGNATURE + ENCAPSULATION["hybrid"] + bucket(8 + 32 + (1 << 30)) + 16
    assert largest == envelope.MAX_SEALED


@pytest.mark.parametrize("run", ["", "x" * 129])
def test_a_run_that_no_receiver_would_take_is_not_sealed(tmp_path: Path, run: str) -> None:
    everyone = identities(tmp_path, ("clinic", "lab"))
    with pytest.raises(SealError):
        seal_of(tmp_path, everyone["clinic"], [everyone["lab"]], run).close("lab", 1, TEXT)


def test_nothing_leaves_for_a_party_that_is_not_pinned(party: dict[str, Seal], tmp_path: Path) -> None:
    with pytest.raises(SealError, match="pins no key of 'nobody'"):
        party["clinic"].close("nobody", 1, TEXT)
    assert Outbox(tmp_path / "clinic" / "outbox").departures() == []


# Canaries


def test_canaries_are_found_where_they_are() -> None:
    for canary in CANARIES:
        assert [hits(disguise) >= 1 for disguise in disguises(canary)] == [True] * 8


def test_no_canary_in_what_the_hub_carries_and_the_receiver_notes(party: dict[str, Seal], tmp_path: Path) -> None:
    carried = []
    for call, canary in enumerate(CANARIES):
        sealed = party["clinic"].close("lab", 1, encode(Texts([canary])), call)
        assert party["lab"].open("clinic", 1, sealed, call) == encode(Texts([canary]))
        carried += [sealed, refused(party["lab"], sealed, call=call).encode()]
    ((_, receipt),) = party["lab"].receipts()
    carried.append(receipt)
    party["clinic"].confirm("lab", receipt)
    carried += [path.read_bytes() for path in (tmp_path / "lab").rglob("*") if path.is_file()]
    assert hits(b"".join(carried)) == 0
    outbox = b"".join(path.read_bytes() for path in (tmp_path / "clinic" / "outbox" / "contents").iterdir())
    assert hits(outbox) == 50  # at their owner they are kept


def test_no_file_of_a_party_is_open_to_others(party: dict[str, Seal], tmp_path: Path) -> None:
    party["lab"].open("clinic", 1, party["clinic"].close("lab", 1, TEXT), 0)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


# Padding


@given(st.integers(0, 1 << 34))
def test_a_bucket_holds_its_size_and_is_not_much_larger(size: int) -> None:
    assert size <= bucket(size) == bucket(bucket(size))
    assert bucket(size) <= max(size * 9 / 8, 4 * size, 4096) if size <= 1 << 18 else bucket(size) <= size * 9 / 8


def test_buckets_are_the_documented_ones() -> None:
    edges = {4096: 4096, 4097: 16384, 65536: 65536, 65537: 262144, 262145: 294912, 294913: 327680, 1 << 20: 1 << 20}
    assert {size: bucket(size) for size in edges} == edges
    sizes = {bucket(size) for size in range((1 << 19) + 1, (1 << 20) + 1, 997)}
    assert len(sizes) == 8


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_padding_comes_off(one: bytes, two: bytes) -> None:
    assert bytes(unpad(bytes(pad(one, two)))) == one + two


@pytest.mark.parametrize("padded", [b"", bytes(7), bytes(4095), bytes(4097), b"\xff" * 4096, bytes(16384)])
def test_what_was_not_padded_here_is_refused(padded: bytes) -> None:
    with pytest.raises(SealError):
        unpad(padded)


def test_errors_of_the_store_are_not_of_the_seal(party: dict[str, Seal], tmp_path: Path) -> None:
    """A seen-set that cannot be written: the message is not handed out, and opens when the disk is well again."""
    sealed = party["clinic"].close("lab", 1, TEXT, CALL)
    other = sqlite3.connect(tmp_path / "lab" / "replay.sqlite", isolation_level=None)
    other.execute("ALTER TABLE seen RENAME TO hidden")
    with pytest.raises(ConfigError, match=r"replay\.sqlite cannot be read or written"):
        party["lab"].open("clinic", 1, sealed, CALL)
    other.execute("ALTER TABLE hidden RENAME TO seen")
    other.close()
    assert party["lab"].open("clinic", 1, sealed, CALL) == TEXT
