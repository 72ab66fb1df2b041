"""Distributed provisioning: who has which key, what is taken in and what is refused. Without a network."""

import base64
import json
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from apart import Apart, all_asked, all_joined, copy, ok, peertune, refused, study
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from nvflare.lighter.utils import load_crt

from peertune.deploy import certificates, documents
from peertune.deploy.documents import Invitation, Request, Signed, read_document
from peertune.deploy.sealing import KEYS, pinned, seal_of
from peertune.deploy.trust import facts_of
from peertune.errors import ConfigError, PeertuneError


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return all_asked(tmp_path_factory.mktemp("asked") / "all")


@pytest.fixture(scope="module")
def joined(asked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return all_joined(asked, tmp_path_factory.mktemp("joined"))


@pytest.fixture
def before(asked: Path, tmp_path: Path) -> Apart:
    return copy(asked, tmp_path)


@pytest.fixture
def after(joined: Path, tmp_path: Path) -> Apart:
    return copy(joined, tmp_path)


def secrets_of(kit: Path) -> list[bytes]:
    """What must never be anywhere else: lines of the private TLS key, and the keys that open and sign."""
    lines = (kit / "startup" / "client.key").read_bytes().splitlines()[8:-1]  # the first seven have the public modulus
    sealing = json.loads((kit / "local" / KEYS).read_bytes())
    texts = [sealing[name].encode() for name in ("signing", "x25519")]
    return [*lines, *texts, *map(base64.b64decode, texts)]


# Who has which key


def test_the_organiser_never_has_a_private_key_of_a_site(tmp_path: Path) -> None:
    parties = Apart(tmp_path / "all")
    parties.found(study())
    requests = [parties.request(name) for name in ("clinic", "lab")]
    parties.approve(*requests)
    parties.accept("clinic", "lab")
    for site in ("clinic", "lab"):
        ok("renew", parties.kit(site), "--keys")
        parties.approve(parties.send(site), changed=site)
    found = secrets_of(parties.kit("clinic")) + secrets_of(parties.kit("lab"))
    parties.accept("clinic", changed="lab")
    parties.accept("lab", changed="clinic")
    found += secrets_of(parties.kit("clinic")) + secrets_of(parties.kit("lab"))
    assert len(found) > 60 and len(parties.organiser_saw) > 30
    assert not [secret for secret in found for file in parties.organiser_saw if secret in file]
    own = [parties.kits / place for place in ("coordinator/startup/server.key", "submitter/startup/client.key")]
    holders = {file for file in parties.organiser_saw if b"PRIVATE KEY" in file}
    assert holders == {path.read_bytes() for path in (parties.kits / "authority" / "authority.key", *own)}


def test_all_seal_for_each_other_and_flare_finds_what_it_needs(after: Apart) -> None:
    clinic, lab = (seal_of(after.kit(name), "run/1") for name in ("clinic", "lab"))
    assert lab.open("clinic", 1, clinic.close("lab", 1, b"text", call=7), call=7) == b"text"
    for name, subject in (("coordinator", "localhost"), ("lab", "lab"), ("submitter", "admin@peertune.org")):
        startup = after.kit(name) / "startup"
        role = "server" if name == "coordinator" else "client"
        certificate = load_crt(startup / f"{role}.crt")
        certificates.check_issued(certificate, load_crt(startup / "rootCA.pem"), subject)
        assert certificates.fits(certificate, certificates.read_key(startup / f"{role}.key"))
        assert (startup / f"{role}.key").stat().st_mode & 0o777 == 0o600
    assert not (after.kit("lab") / "pending").exists()
    assert json.loads((after.kit("lab") / "startup" / "fed_client.json").read_text())["servers"][0]["identity"] == (
        "localhost"
    )


def test_fingerprints_are_confirmed_once(after: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Path] = []
    monkeypatch.setattr("peertune.deploy.start.keep_running", lambda kit, tell: started.append(kit))
    kit = after.kit("lab")
    said = peertune("join", kit, answer="n\n")
    assert said.exit_code == 1 and "keys of clinic" in said.output and "Do these agree" in said.output
    assert isinstance(said.exception, PeertuneError) and not started
    ok("join", kit, "--yes")
    assert "Do these agree" in ok("join", kit, answer="y\n")  # `--yes` was nobody's word
    assert "Do these agree" not in ok("join", kit)
    after.reconfigure(study(rounds=3))
    assert "changes: rounds: 8 -> 3" in ok("accept", kit, after.list, answer="y\n")
    assert "Do these agree" not in ok("join", kit)
    assert started == [kit] * 4


def test_central_provisioning_makes_finished_kits(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(json.dumps(study()))
    kits = tmp_path / "kits"
    said = ok("provision", tmp_path / "study.yaml", "--host", "localhost", "--to", kits, "--central")
    assert [line.split()[0] for line in said.splitlines()] == ["coordinator", "submitter", "clinic", "lab"]
    assert pinned(kits / "lab").names == ("clinic",) and pinned(kits / "clinic").names == ("lab",)
    shown = {name: facts_of(kits / name) for name in ("coordinator", "clinic", "lab")}
    assert shown["clinic"] == shown["lab"] and shown["coordinator"].items() < shown["lab"].items()
    assert not list(kits.glob("*/pending")) and (kits / "submitter" / "startup" / "client.crt").is_file()


# What is refused


def test_a_site_that_was_not_approved_takes_no_part(before: Apart) -> None:
    assert "waits for its certificate" in refused("join", before.kit("lab"))
    assert "has no certificate of lab: the organiser has not approved it yet" in refused(
        "accept", before.kit("lab"), before.list
    )


def test_requests_of_others_are_refused(before: Apart, tmp_path: Path) -> None:
    other = Apart(tmp_path / "other")
    other.found(study("clinic", "stranger"))
    assert "is for the project peertune with the authority" in refused(
        "approve", other.request("clinic"), "--kits", before.kits
    )
    path = before.kits.parent / "lab.request"
    request = json.loads(path.read_text())
    for change, expected in (
        ({"project": "another"}, "is for the project another"),
        ({"party": "stranger"}, "nobody invited stranger; the parties of the configuration are: clinic, lab"),
        ({"party": "clinic"}, "asks for the name 'lab'"),
        ({"csr": "-----BEGIN"}, "holds no certificate request"),
        ({"csr": of_unknown_kind(request["csr"])}, "holds no certificate request"),
        ({"card": ""}, "the card of lab cannot be used"),
        ({"signature": ""}, "was changed on its way"),
        ({"card": json.loads((path.with_name("clinic.request")).read_text())["card"]}, "in the name of clinic"),
        ({"party": "coordinator"}, "asks for the name 'lab'"),
    ):
        path.write_text(json.dumps(request | change))
        assert expected in refused("approve", path, "--kits", before.kits, "--yes"), change


def of_unknown_kind(csr: str) -> str:
    """A certificate request whose key is of a kind that nobody has heard of."""
    der = x509.load_pem_x509_csr(csr.encode()).public_bytes(serialization.Encoding.DER)
    rsa = bytes.fromhex("2a864886f70d010101")
    body = base64.encodebytes(der.replace(rsa, rsa[:-1] + b"\x7f")).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


def test_a_card_that_was_exchanged_on_the_way_is_refused(before: Apart, tmp_path: Path) -> None:
    """Somebody puts keys of his own into a request, and keeps the certificate request."""
    other = Apart(tmp_path / "other")
    other.found(study())
    path = before.kits.parent / "lab.request"
    false = json.loads(other.request("lab").read_text())
    request = json.loads(path.read_text())
    path.write_text(json.dumps(request | {"card": false["card"], "signature": false["signature"]}))
    assert "was changed on its way" in refused("approve", path, "--kits", before.kits, "--yes")


def test_two_requests_of_one_party_and_a_request_that_nobody_confirms(before: Apart) -> None:
    path = before.kits.parent / "lab.request"
    assert "two requests are of the same party" in refused("approve", path, path, "--kits", before.kits, "--yes")
    listed = before.list.read_bytes()
    result = peertune("approve", path, "--kits", before.kits, answer="n\n")
    assert result.exit_code == 1 and before.list.read_bytes() == listed


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        (Invitation, ("request", "{file}", "--to", "{new}")),
        (Request, ("approve", "{file}", "--kits", "{kits}")),
        (Signed, ("accept", "{kit}", "{file}")),
    ],
)
def test_files_that_are_none_of_ours_are_refused(
    kind: Any, command: tuple[str, ...], after: Apart, tmp_path: Path
) -> None:
    file, name = tmp_path / "file", kind.__struct_config__.tag
    places = {"file": file, "kits": after.kits, "kit": after.kit("lab"), "new": tmp_path / "new"}
    words = [word.format(**places) for word in command]
    assert "cannot be read (No such file" in refused(*words)
    others = [after.list, after.kit("lab").with_name("lab.request"), after.kit("lab") / "local" / "invitation.json"]
    wrong = [path.read_bytes() for path in others if json.loads(path.read_text())["kind"] != name]
    for raw in (b"", b"{}", b"\xff", b"[" * 100_000, *wrong):
        file.write_bytes(raw)
        assert f"holds no {name}" in refused(*words)
    file.write_bytes(b" " * (documents.MAX + 1))
    assert "is larger than" in refused(*words)
    assert not (tmp_path / "new").exists()


@given(st.binary(max_size=200), st.sampled_from([Invitation, Request, Signed]))
def test_any_bytes_are_a_document_or_one_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes, kind: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(raw)
    with pytest.raises(ConfigError):
        read_document(path, kind)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("party",), "lab; touch /tmp/x"),
        (("party",), "lab\n"),
        (("project", "name"), "$(id)"),
        (("project", "host"), "host`id`"),
        (("project", "port"), 0),
        (("authority",), "no certificate"),
        (("config",), "{}"),
        (("party",), "stranger"),
    ],
)
def test_an_invitation_that_is_not_in_order_makes_no_kit(
    place: tuple[str, ...], value: object, asked: Path, tmp_path: Path
) -> None:
    """What is in it goes into FLARE's start-up scripts."""
    invitation = json.loads((asked / "lab" / "lab.invitation").read_text())
    (invitation if len(place) == 1 else invitation[place[0]])[place[-1]] = value
    file = tmp_path / "false.invitation"
    file.write_text(json.dumps(invitation))
    refused("request", file, "--to", tmp_path / "kit")
    assert [path.name for path in tmp_path.iterdir()] == ["false.invitation"]


def test_an_invitation_brings_one_authority_whose_fingerprint_is_shown(asked: Path, tmp_path: Path) -> None:
    """Whoever carries it could put his own behind the true one: all that a file holds would be trusted."""
    invitation = json.loads((asked / "lab" / "lab.invitation").read_text())
    file, kit, true = tmp_path / "false.invitation", tmp_path / "kit", invitation["authority"]
    second = certificates.new_authority("peertune", certificates.new_key(tmp_path / "key"))
    for pem in (true + second, second + true, f"# \u00e9\n{true}", true + "-----BEGIN CERTIFICATE-----"):
        file.write_text(json.dumps(invitation | {"authority": pem}))
        assert "expected one certificate and nothing else" in refused("request", file, "--to", kit)
    assert not kit.exists()


def test_nothing_is_overwritten(after: Apart) -> None:
    before = {path: path.read_bytes() for path in after.folder.rglob("*") if path.is_file()}
    invitation = after.folder / "lab" / "lab.invitation"
    assert "exists; a kit is not overwritten" in refused("request", invitation, "--to", after.kit("lab"))
    found = ("provision", after.kits.parent / "study.yaml", "--host", "localhost", "--to", after.kits)
    assert "exists and is not overwritten" in refused(*found)
    assert {path: path.read_bytes() for path in after.folder.rglob("*") if path.is_file()} == before
    ok("renew", after.kit("lab"), "--keys")
    waiting = (after.kit("lab") / "pending" / "tls.key").read_bytes()
    assert "no key is overwritten" in refused("renew", after.kit("lab"), "--keys")
    ok("renew", after.kit("lab"))
    assert (after.kit("lab") / "pending" / "tls.key").read_bytes() == waiting


def test_names_that_cannot_be_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(json.dumps(study("submitter", "lab")))
    found = ("provision", file, "--host", "localhost", "--to", tmp_path / "kits")
    assert "an agent cannot be called 'submitter'" in refused(*found)
    file.write_text(json.dumps(study()))
    assert "an agent cannot be called 'lab'" in refused("provision", file, "--host", "lab", "--to", tmp_path / "kits")
    for option, value in (("--project", "a b"), ("--host", "x" * 64), ("--host", "::1")):
        assert "expected a plain word for the name" in refused(*found, option, value)
    assert not (tmp_path / "kits").exists()


def test_a_certificate_for_other_keys_than_the_kits_is_refused(before: Apart, tmp_path: Path) -> None:
    """The site has lost its kit, made another, and the organiser approved the first request."""
    request = before.kits.parent / "lab.request"
    second = tmp_path / "second"
    ok("request", before.folder / "lab" / "lab.invitation", "--to", second)
    before.approve(request)
    assert "is for other keys than those in" in refused("accept", second, before.list)


# Time


def at(days: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let certificates be looked at so many days from now."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(days=days)

    monkeypatch.setattr(certificates, "datetime", Shifted)


def test_certificates_out_of_date_are_refused(before: Apart, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    invitation = before.folder / "lab" / "lab.invitation"
    request = before.kits.parent / "lab.request"
    with monkeypatch.context() as patch:
        at(-1, patch)
        assert "in the invitation is valid only from" in refused("request", invitation, "--to", tmp_path / "kit")
        assert "is valid only from" in refused("approve", request, "--kits", before.kits, "--yes")
        at(certificates.AUTHORITY_DAYS + 1, patch)
        assert "in the invitation expired on" in refused("request", invitation, "--to", tmp_path / "kit")
        assert "expired on" in refused("approve", request, "--kits", before.kits, "--yes")
    before.approve(request)
    with monkeypatch.context() as patch:
        at(certificates.DAYS + 1, patch)
        assert "the certificate of lab expired on" in refused("accept", before.kit("lab"), before.list, "--yes")
        at(-1, patch)
        assert "the certificate of lab is valid only from" in refused("accept", before.kit("lab"), before.list)
    assert not (before.kit("lab") / "startup" / "client.crt").exists()
