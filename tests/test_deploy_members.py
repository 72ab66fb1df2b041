"""The list of members: who is new, removed, renewed or has other keys, and what the others take in of it."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
from apart import Apart, all_asked, all_joined, copy, ok, peertune, refused, study

pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")

from nvflare.lighter.utils import load_crt

from peertune.deploy import certificates
from peertune.deploy.home import read_settings
from peertune.deploy.sealing import KEYS, pinned, seal_of
from peertune.deploy.start import LOCK, alone
from peertune.deploy.trust import facts_of
from peertune.errors import ChangedKeyError


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return all_asked(tmp_path_factory.mktemp("asked") / "all")


@pytest.fixture(scope="module")
def joined(asked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return all_joined(asked, tmp_path_factory.mktemp("joined"))


@pytest.fixture
def after(joined: Path, tmp_path: Path) -> Apart:
    return copy(joined, tmp_path)


def test_a_list_that_is_older_changed_or_of_others_is_refused(after: Apart, tmp_path: Path) -> None:
    old = shutil.copy(after.list, tmp_path / "old.members")
    after.reconfigure(study(rounds=3))
    after.accept("lab")
    assert "is older than the list that" in refused("accept", after.kit("lab"), old)
    listed = json.loads(after.list.read_text())
    false = tmp_path / "false.members"
    for change in ({"body": listed["body"].replace("rounds", "seed")}, {"signature": ""}, {"signature": "é"}):
        false.write_text(json.dumps(listed | change))
        assert "is not signed by the authority of this kit" in refused("accept", after.kit("lab"), false)
    other = Apart(tmp_path / "other")
    other.found(study())
    assert "is not signed by the authority of this kit" in refused("accept", after.kit("lab"), other.list)


def test_who_is_new_is_invited_and_the_others_get_its_card(after: Apart) -> None:
    after.reconfigure(study("clinic", "lab", "school"))
    assert [path.name for path in (after.kits / "invitations").iterdir()] == ["school.invitation"]
    after.approve(after.request("school"))
    assert "changes: school is new" in ok("accept", after.kit("clinic"), after.list, "--yes")
    after.accept("lab", "school", "coordinator")
    assert {name: set(pinned(after.kit(name)).names) for name in ("clinic", "lab", "school")} == {
        "clinic": {"lab", "school"},
        "lab": {"clinic", "school"},
        "school": {"clinic", "lab"},
    }
    parties = [agent["name"] for agent in json.loads(read_settings(after.kit("coordinator")).config)["agents"]]
    assert parties == ["clinic", "lab", "school"]


def test_who_is_removed_is_trusted_and_let_in_no_more(after: Apart) -> None:
    after.reconfigure(study("clinic"))
    said = ok("accept", after.kit("clinic"), after.list, "--yes")
    assert "changes: lab is removed" in said and "changes: agents.1.name" in said
    assert pinned(after.kit("clinic")).names == ()
    assert "has no certificate of lab: the organiser has not approved it yet, or removed it" in refused(
        "accept", after.kit("lab"), after.list
    )
    after.accept("coordinator")
    disabled = after.kit("coordinator") / "disabled_clients.json"
    assert json.loads(disabled.read_text()) == {"disabled_clients": ["lab"]}
    assert "nobody invited lab" in refused("approve", after.kits.parent / "lab.request", "--kits", after.kits)
    after.reconfigure(study())
    after.accept("coordinator")
    assert json.loads(disabled.read_text()) == {"disabled_clients": []}
    assert (after.kits / "invitations" / "lab.invitation").exists()


def test_a_renewed_certificate_is_for_the_same_keys_and_needs_no_telephone(after: Apart) -> None:
    kit = after.kit("lab")
    certificate, key = ((kit / "startup" / f"client.{end}").read_bytes() for end in ("crt", "key"))
    ok("renew", kit)
    assert "known" in ok("approve", after.send("lab"), "--kits", after.kits)
    assert "Do these agree" in ok("accept", kit, after.list, answer="y\n")
    assert (kit / "startup" / "client.key").read_bytes() == key
    assert (kit / "startup" / "client.crt").read_bytes() != certificate
    assert "changes" not in ok("accept", after.kit("clinic"), after.list, "--yes")
    for name in ("coordinator", "submitter"):
        ok("renew", after.kit(name))
        assert "known" in ok("approve", after.kit(name).with_name(f"{name}.request"), "--kits", after.kits)
        after.accept(name)


def test_new_keys_are_taken_by_who_was_told_of_them(after: Apart) -> None:
    kit = after.kit("lab")
    old = (kit / "local" / KEYS).read_bytes(), (kit / "startup" / "client.key").read_bytes()
    ok("renew", kit, "--keys")
    request = after.send("lab")
    assert "lab has other keys than those that were approved before" in refused(
        "approve", request, "--kits", after.kits, "--yes", kind=ChangedKeyError
    )
    after.accept("lab")  # the last list is still for the old keys, which serve
    assert old == ((kit / "local" / KEYS).read_bytes(), (kit / "startup" / "client.key").read_bytes())
    after.approve(request, changed="lab")
    assert "lab shows other keys than those that are pinned" in refused(
        "accept", after.kit("clinic"), after.list, "--yes", kind=ChangedKeyError
    )
    before = pinned(after.kit("clinic"))["lab"]
    after.accept("clinic", changed="lab")
    after.accept("lab")
    assert pinned(after.kit("clinic"))["lab"] != before and not (kit / "pending").exists()
    new = (kit / "local" / KEYS).read_bytes(), (kit / "startup" / "client.key").read_bytes()
    assert not set(old) & set(new)
    clinic, lab = (seal_of(after.kit(name), "run/1") for name in ("clinic", "lab"))
    assert lab.open("clinic", 1, clinic.close("lab", 1, b"text", call=7), call=7) == b"text"


@pytest.mark.parametrize("name", ["coordinator", "submitter"])
def test_new_keys_of_who_seals_nothing_are_compared_too(name: str, after: Apart) -> None:
    said = ok("renew", after.kit(name), "--keys")
    request = after.kit(name).with_name(f"{name}.request")
    (own,) = re.findall(r"own keys +([0-9a-f ]{79}): read it out to the organiser", said)
    assert own in refused("approve", request, "--kits", after.kits, "--yes", kind=ChangedKeyError)
    words = ("approve", request, "--kits", after.kits, "--changed", name)
    listed = after.list.read_bytes()
    assert peertune(*words, answer="n\n").exit_code == 1 and after.list.read_bytes() == listed
    said = ok(*words, answer="y\n")
    assert re.search(rf"{name} +changed +{own}", said) and "Does every one" in said
    after.accept(name)
    assert not (after.kit(name) / "pending").exists()


def test_a_list_is_taken_in_while_nothing_runs_from_the_kit(after: Apart) -> None:
    kit = after.kit("lab")
    after.reconfigure(study(rounds=3))

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in kit.rglob("*") if path.is_file()}

    (kit / LOCK).touch()
    before = files()
    with alone(kit):
        for words in (("accept", kit, after.list), ("join", kit, "--data", after.list)):
            assert f"{kit} is running already; stop that first" in refused(*words, "--yes")
    assert files() == before
    after.accept("lab")
    assert files() != before


def test_a_site_may_have_hybrid_keys_and_keeps_the_suite(after: Apart) -> None:
    kit = after.kit("lab")
    assert "only new keys of a site" in refused("renew", kit, "--hybrid")
    assert "only new keys of a site" in refused("renew", after.kit("submitter"), "--keys", "--hybrid")
    shutil.rmtree(kit)
    ok("request", after.folder / "lab" / "lab.invitation", "--to", kit, "--hybrid")
    for _ in range(2):
        after.approve(after.send("lab"), changed="lab")
        after.accept("clinic", changed="lab")
        after.accept("lab")
        assert pinned(after.kit("clinic"))["lab"].suite == "hybrid"
        seals = {name: seal_of(after.kit(name), "run/1") for name in ("clinic", "lab")}
        for source, reader in (("clinic", "lab"), ("lab", "clinic")):
            sealed = seals[source].close(reader, 1, b"text", call=7)
            assert seals[reader].open(source, 1, sealed, call=7) == b"text"
        (kit / "local" / KEYS).unlink()
        ok("renew", kit, "--keys")


def test_a_site_that_lost_its_kit_makes_another(after: Apart) -> None:
    after.reconfigure(study(rounds=3))  # the old invitation knows nothing of it
    shutil.rmtree(after.kit("lab"))
    ok("request", after.folder / "lab" / "lab.invitation", "--to", after.kit("lab"))
    after.approve(after.send("lab"), changed="lab")
    after.accept("clinic", changed="lab")
    after.accept("lab")
    assert facts_of(after.kit("lab")) == facts_of(after.kit("clinic"))


def test_an_organiser_from_a_backup_signs_lists_that_are_taken(
    after: Apart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = shutil.copytree(after.kits / "authority", tmp_path / "authority")
    for rounds in (3, 4, 5):
        after.reconfigure(study(rounds=rounds))
    after.accept("lab")
    shutil.rmtree(after.kits / "authority")
    shutil.copytree(backup, after.kits / "authority")
    later = time.time() + 60
    monkeypatch.setattr("peertune.deploy.organiser.time.time", lambda: later)
    after.reconfigure(study(rounds=6))
    after.accept("lab")
    assert json.loads(read_settings(after.kit("lab")).config)["rounds"] == 6


@pytest.mark.parametrize("moved", ["sealing", "tls", "both"])
def test_a_kit_that_was_stopped_half_way_takes_the_list_again(moved: str, after: Apart) -> None:
    """As after a power cut between the two keys, or right after them."""
    kit = after.kit("lab")
    ok("renew", kit, "--keys")
    after.approve(after.send("lab"), changed="lab")
    new = (kit / "pending" / KEYS).read_bytes()
    if moved != "tls":
        (kit / "pending" / KEYS).replace(kit / "local" / KEYS)
    if moved != "sealing":
        (kit / "pending" / "tls.key").replace(kit / "startup" / "client.key")
    after.accept("lab")
    assert (kit / "local" / KEYS).read_bytes() == new
    certificate = load_crt(kit / "startup" / "client.crt")
    assert certificates.fits(certificate, certificates.read_key(kit / "startup" / "client.key"))
    ok("renew", kit, "--keys")
