"""`peertune doctor --deploy KIT`: every line, and how it fails."""

import fcntl
import json
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from apart import Apart, ok, peertune, study, two_sites

pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")

from peertune import doctor
from peertune.deploy import preflight
from peertune.deploy.home import read_settings, write_settings
from peertune.deploy.organiser import Organiser
from peertune.deploy.sealing import KEYS, pinned
from peertune.deploy.start import LOCK
from peertune.deploy.trust import MEMBERS
from peertune.doctor import Check
from peertune.errors import ConfigError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_sites(tmp_path_factory.mktemp("made") / "all").folder


@pytest.fixture
def parties(made: Path, tmp_path: Path) -> Apart:
    return Apart(Path(shutil.copytree(made, tmp_path / "all")))


@pytest.fixture
def lab(parties: Apart) -> Path:
    return parties.kit("lab")


@contextmanager
def server(parties: Apart, kit: Path, says: bytes = b"\0") -> Iterator[None]:
    """What listens at the coordinator's port, with the certificate of `kit`, and greets once."""
    startup = kit / "startup"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=startup / "rootCA.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    role = "server" if (startup / "server.crt").exists() else "client"
    context.load_cert_chain(startup / f"{role}.crt", startup / f"{role}.key")
    port = json.loads((parties.kit("lab") / "local" / "invitation.json").read_text())["project"]["port"]
    with socket.create_server(("127.0.0.1", port)) as listener:

        def greet() -> None:
            plain, _ = listener.accept()
            try:
                with context.wrap_socket(plain, server_side=True) as secure:
                    secure.send(says) if says else None
                    secure.recv(1)
            except (ssl.SSLError, ConnectionError):  # what the other side must notice
                plain.close()

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield
        thread.join(10)


def table(kit: Path) -> dict[str, Check]:
    return {check.name: check for check in preflight.examine(kit)}


def wrong(kit: Path) -> dict[str, str]:
    """What must be mended, but that nobody listens at the port."""
    return {name: check.found for name, check in table(kit).items() if check.fix and name != "Coordinator"}


def test_a_kit_that_is_ready(parties: Apart, lab: Path) -> None:
    with server(parties, parties.kit("coordinator")):
        said = ok("doctor", "--deploy", lab)
    names = ("Coordinator", "Authority", "Private keys", "Certificate", "Clock", "Versions", "Configuration")
    for name in (*names, "Sealing keys", "Peers", "Disk", "Device"):
        assert name in said
    assert "answers" in said and "359 days left" in said and "clinic: pinned" in said
    assert "is free" in ok("doctor", "--deploy", parties.kit("coordinator"))
    assert list(table(parties.kit("submitter"))) == [*names[:-1]]


def test_what_is_wrong_is_a_line_and_exit_code_2(lab: Path) -> None:
    result = peertune("doctor", "--deploy", lab)
    assert result.exit_code == 2 and "is out of reach" in result.output and "Connection refused" in result.output
    (lab / "local" / "invitation.json").unlink()
    result = peertune("doctor", "--deploy", lab)
    assert isinstance(result.exception, ConfigError) and "is no start-up kit" in str(result.exception)


# The coordinator's port


def test_somebody_opens_the_connection(parties: Apart, lab: Path, tmp_path: Path) -> None:
    other = Apart(tmp_path / "other")
    other.found(study())
    with server(parties, other.kit("coordinator")):
        found = table(lab)["Coordinator"]
    assert "shows another certificate" in found.found and "let the proxy" in found.fix


def test_a_site_is_not_the_coordinator(parties: Apart, lab: Path) -> None:
    """Its certificate is of the same authority, and for another name."""
    with server(parties, parties.kit("clinic")):
        assert "shows another certificate" in table(lab)["Coordinator"].found


def test_the_coordinator_refuses_the_certificate(parties: Apart, lab: Path, tmp_path: Path) -> None:
    other = Apart(tmp_path / "other")
    other.found(study())
    other.approve(other.request("lab"))
    other.accept("lab")
    for name in ("client.crt", "client.key"):
        shutil.copy(other.kit("lab") / "startup" / name, lab / "startup")
    with server(parties, parties.kit("coordinator")):
        found = table(lab)
    assert "refuses this kit" in found["Coordinator"].found and "peertune renew" in found["Coordinator"].fix
    assert "is not signed by this federation's authority" in found["Certificate"].found


def test_what_listens_hangs_up(parties: Apart, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_greet", lambda kit: False)
    assert "hangs up" in table(lab)["Coordinator"].found


def test_the_port_is_taken(parties: Apart) -> None:
    kit = parties.kit("coordinator")
    port = json.loads((kit / "local" / "invitation.json").read_text())["project"]["port"]
    with socket.create_server(("", port)):
        assert wrong(kit) == {"Port": f"{port} cannot be opened (Address already in use)"}
        with (kit / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert wrong(kit) == {}
        assert list(wrong(kit)) == ["Port"]


# Certificates and the clock


def test_a_certificate_that_expires_soon(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "WARNING", 400)
    assert wrong(lab) == {"Certificate": table(lab)["Certificate"].found}
    assert f"peertune renew {lab}" in table(lab)["Certificate"].fix
    monkeypatch.setattr(preflight, "WARNING", 2000)
    assert set(wrong(lab)) == {"Authority", "Certificate"}


@pytest.mark.parametrize("damage", ["gone", "another key", "nonsense"])
def test_a_certificate_that_is_not_in_order(damage: str, parties: Apart, lab: Path) -> None:
    startup = lab / "startup"
    if damage == "gone":
        (startup / "client.crt").unlink()
    elif damage == "another key":
        shutil.copy(parties.kit("clinic") / "startup" / "client.key", startup)
    else:
        (startup / "client.crt").write_text("nonsense")
    expected = {"gone": "No such file", "another key": "not for the private key", "nonsense": "is no certificate"}
    (found,) = [found for name, found in wrong(lab).items() if name == "Certificate"]
    assert expected[damage] in found


@pytest.mark.parametrize("name", ["lab", "coordinator", "submitter"])
def test_a_private_key_that_is_gone(name: str, parties: Apart) -> None:
    kit = parties.kit(name)
    key = kit / "startup" / ("server.key" if name == "coordinator" else "client.key")
    key.unlink()
    missing = f"the private key {key} cannot be read (No such file or directory)"
    found = table(kit)
    assert found["Certificate"].found == missing and f"peertune renew {kit} --keys" in found["Certificate"].fix
    if name != "coordinator":
        assert found["Coordinator"].found.endswith(f" cannot be asked: {missing}")
        assert found["Coordinator"].fix == found["Certificate"].fix
    with pytest.raises(ConfigError, match=re.escape(f"{kit}: certificate: {missing}; restore the kit from a backup")):
        preflight.check_start(kit)


def test_configurations_are_compared_whole(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the digits that nobody reads."""
    digests = iter(["a" * 64, "a" * 63 + "b"])
    monkeypatch.setattr(preflight, "digest", lambda config: next(digests))
    assert list(wrong(lab)) == ["Configuration"]


def test_a_clock_that_is_behind(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = preflight.members_of(lab)
    assert made
    monkeypatch.setattr("peertune.deploy.preflight.time.time", lambda: made.made - 90)
    assert wrong(lab) == {"Clock": "90 s behind the organiser's"}


# Agreement


def test_other_versions(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = preflight.installed()
    monkeypatch.setattr(preflight, "installed", lambda: here | {"peertune": "9.9"})
    assert wrong(lab) == {"Versions": f"peertune 9.9, the organiser has {here['peertune']}"}


def test_another_configuration(lab: Path) -> None:
    settings = read_settings(lab)
    config = json.loads(settings.config) | {"rounds": 99}
    write_settings(lab, type(settings)(json.dumps(config), settings.runs, settings.party))
    assert list(wrong(lab)) == ["Configuration"]


def test_sealing_keys_that_are_gone_or_others(parties: Apart, lab: Path) -> None:
    keys = lab / "local" / KEYS
    kept = keys.read_bytes()
    keys.unlink()
    assert "no keys at" in wrong(lab)["Sealing keys"]
    shutil.copy(parties.kit("clinic") / "local" / KEYS, keys)
    assert wrong(lab) == {"Sealing keys": "are not those that the others have"}
    keys.write_bytes(kept)
    assert wrong(lab) == {}


def test_peers_that_are_not_pinned(parties: Apart, lab: Path) -> None:
    peers = pinned(lab)
    card = peers["clinic"]
    peers.drop("clinic")
    assert wrong(lab) == {"Peers": "no keys of clinic"}
    peers.pin(card)
    parties.reconfigure(study("clinic", "lab", "school"))
    parties.accept("lab")
    assert wrong(lab) == {"Peers": "no keys of school"}


def test_a_list_that_was_taken_in_half(parties: Apart, lab: Path) -> None:
    """The process ended after keys and configuration, and before the list itself."""
    members = lab / "local" / MEMBERS
    before = members.read_bytes()
    parties.reconfigure(study("clinic", "lab", "school"))
    parties.approve(parties.request("school"))
    parties.accept("lab")
    members.write_bytes(before)
    assert wrong(lab)["Peers"] == "other keys of school than in the list of members"


def test_peers_whose_keys_changed(parties: Apart, lab: Path) -> None:
    peers = pinned(lab)
    before = peers["clinic"]
    ok("renew", parties.kit("clinic"), "--keys")
    parties.approve(parties.send("clinic"), changed="clinic")
    parties.accept("lab", changed="clinic")
    assert wrong(lab) == {}
    peers = pinned(lab)
    peers.drop("clinic")
    peers.pin(before)
    assert wrong(lab) == {"Peers": "other keys of clinic than in the list of members"}


def test_a_kit_that_waits(made: Path, tmp_path: Path) -> None:
    organiser = Organiser.open(made / "organiser" / "kits")
    assert organiser.waiting == {}
    ok("request", made / "lab" / "lab.invitation", "--to", tmp_path / "kit")
    assert wrong(tmp_path / "kit") == {"Members": "this kit has accepted no list yet"}
    parties = Apart(made)
    with server(parties, parties.kit("coordinator")):
        assert "answers" in table(tmp_path / "kit")["Coordinator"].found


# This machine


@pytest.mark.parametrize("name", ["startup/client.key", f"local/{KEYS}"])
def test_private_keys_that_others_may_read(name: str, lab: Path) -> None:
    (lab / name).chmod(0o640)
    found = table(lab)["Private keys"]
    assert found.found == "others may read them" and found.fix == f"chmod 600 {lab / name}"


def test_a_disk_that_is_full(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_DISK_GB", 10**6)
    assert list(wrong(lab)) == ["Disk"]


def test_a_gpu_that_the_configuration_wants(parties: Apart, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    wanted: dict[str, Any] = {"engine": {"device": "cuda"}}
    parties.reconfigure(study(**wanted))
    parties.accept("lab")
    assert list(wrong(lab)) == ["Device"]
