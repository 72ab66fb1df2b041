"""What can be wrong before a run across organisations has begun: each is one line that says what to do."""

import fcntl
import json
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import msgspec
import pytest
from apart import Apart, free_port, peertune, study, two_sites

pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")

from peertune.config.schema import Config
from peertune.deploy import certificates
from peertune.deploy.home import BUILDER, Settings, digest, home
from peertune.deploy.job import check_versions, installed
from peertune.deploy.places import places_of, without_places
from peertune.deploy.start import LOCK
from peertune.deploy.trust import invitation_of
from peertune.engines.base import Entry, Ref
from peertune.engines.post import Answer, Drained
from peertune.engines.worker import Done, Refused, Server, Start, Started, Value, Withheld
from peertune.errors import ConfigError
from peertune.identity import identity

# Versions


def test_the_same_versions_everywhere() -> None:
    check_versions(installed())


@pytest.mark.parametrize(("package", "theirs"), [("peertune", "9.9.9"), ("nvflare", "2.8.0"), ("nvflare", None)])
def test_versions_that_differ(package: str, theirs: str | None) -> None:
    wanted = {name: version for name, version in (installed() | {package: theirs}).items() if version}
    expected = f"{package} {installed()[package]} is installed here, whoever started the run has {theirs or 'none'}"
    with pytest.raises(ConfigError, match=expected) as caught:
        check_versions(wanted)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


# What a site says of its errors


def test_no_answer_of_a_site_names_its_places(tmp_path: Path) -> None:
    settings = Settings("{}", "runs", "lab", model="/models/of dr smith", data=f"{tmp_path}/kit/data.jsonl")
    places = places_of(tmp_path / "kit", settings)
    causes = {
        f"{tmp_path}/kit/runs/first/checkpoints: not written": "RUNS/first/checkpoints: not written",
        f"{tmp_path}/kit/sealed/outbox: full": "KIT/sealed/outbox: full",
        f"{tmp_path}/kit/data.jsonl:3: expected text": "DATA:3: expected text",
        "model '/models/of dr smith': no weights": "model 'MODEL': no weights",
    }
    for cause, told in causes.items():
        for answer, expected in zip(answers(cause), answers(told), strict=True):
            raw = without_places(msgspec.msgpack.encode(answer), places)
            assert msgspec.msgpack.decode(raw, type=Answer) == expected


def answers(cause: str) -> list[Answer]:
    """All in which a site says why something went wrong."""
    row = Entry("failure", {"agent": "lab", "cause": cause})
    failed = Done([row], ("lab", "fit", cause, "storage"), (1.0, 2.0))
    withheld = Withheld(("lab", "fit", cause, "error"))
    return [Refused(cause, 2), withheld, Drained([(Ref("lab", 3, "fit"), failed)], True)]


def test_what_is_no_error_of_a_site_stays_byte_for_byte(tmp_path: Path) -> None:
    places = places_of(tmp_path, Settings("{}", "runs", "lab"))
    for answer in (
        Value(f"a text on {tmp_path}".encode()),
        Started([{"model": str(tmp_path)}]),
        Refused("another cause", 1),
    ):
        raw = msgspec.msgpack.encode(answer)
        assert without_places(raw, places) == raw


# Models


def test_a_site_without_the_model(tmp_path: Path) -> None:
    """What its agent's process says to the site, and the site to the coordinator, who ends the run with it."""
    config = Config.model_validate_json(json.dumps(study()))
    settings = Settings(config.model_dump_json(), "runs", "lab", model=str(tmp_path / "gone"))
    plan = home(settings, tmp_path, digest(config)).spec
    told = Server().handle(Start(BUILDER, plan, ["lab"]))
    assert isinstance(told, Refused) and told.exit_code == 2
    assert f"model '{tmp_path}/gone': expected a folder with config.json" in told.message and "\n" not in told.message


def test_one_name_for_two_models() -> None:
    facts = [
        {"name": name, "model": "org/base", "fingerprint": digit * 64} for name, digit in (("a0", "1"), ("a1", "2"))
    ]
    expected = (
        "a0 and a1 name the same model 'org/base', but their files differ (111111111111, 222222222222); give both"
    )
    config = Config.model_validate_json(json.dumps(study()))
    with pytest.raises(ConfigError, match=re.escape(expected)):
        identity(config, facts, None, [])
    with pytest.raises(ConfigError, match="a0 and server name the same model"):
        identity(config, facts[:1], facts[1] | {"name": "server"}, [])
    assert identity(config, [facts[0], facts[1] | {"model": "org/other"}], None, [])["agents"]


# What a start refuses, before FLARE would say it at length or not at all


def refusal(*words: object) -> str:
    """The one line with which a command ends, and exit code 2."""
    result = peertune(*words)
    assert isinstance(result.exception, ConfigError) and result.exception.exit_code == 2, result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_sites(tmp_path_factory.mktemp("made") / "all").folder


@pytest.fixture
def parties(made: Path, tmp_path: Path) -> Apart:
    return Apart(Path(shutil.copytree(made, tmp_path / "all")))


@pytest.fixture
def other(tmp_path: Path, parties: Apart) -> Apart:
    """Another federation, whose coordinator has the same place."""
    other = Apart(tmp_path / "other")
    other.found(study(), port=port_of(parties))
    other.approve(*[other.request(name) for name in ("clinic", "lab")])
    other.accept("clinic", "lab")
    return other


def port_of(parties: Apart) -> int:
    return invitation_of(parties.kit("coordinator")).project.port


def test_a_kit_of_another_project(parties: Apart, other: Apart) -> None:
    with coordinator(parties):
        said = refusal("join", other.kit("lab"), "--yes")
    assert f"coordinator: localhost:{port_of(parties)} shows another certificate (" in said
    assert "is this kit of its federation?" in said
    with coordinator(parties):
        assert "shows another certificate" in refusal("run", "demo", "--on", other.kit("submitter"), "--name", "first")


def test_a_coordinator_that_does_not_take_the_certificate(parties: Apart, other: Apart) -> None:
    for name in ("client.crt", "client.key"):
        shutil.copy(other.kit("lab") / "startup" / name, parties.kit("lab") / "startup")
    assert "is not signed by this federation's authority" in refusal("join", parties.kit("lab"), "--yes")


@pytest.mark.parametrize(
    ("days", "expected"),
    [(-3, "the certificate of lab is valid only from "), (400, "the certificate of lab expired on ")],
)
@pytest.mark.parametrize("command", ["join", "run"])
def test_a_certificate_that_is_not_valid_now(
    parties: Apart, monkeypatch: pytest.MonkeyPatch, command: str, days: int, expected: str
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(days=days)

    monkeypatch.setattr(certificates, "datetime", Clock)
    if command == "join":
        said = refusal("join", parties.kit("lab"), "--yes")
    else:
        said = refusal("run", "demo", "--on", parties.kit("submitter"), "--name", "first")
        expected = expected.replace("of lab", "of admin@peertune.org")
    assert said.startswith(expected) and "set the clock" in said


def test_a_port_that_is_in_use(parties: Apart) -> None:
    with socket.create_server(("", port_of(parties))):
        said = refusal("coordinator", parties.kit("coordinator"), "--yes")
    assert f"port: {port_of(parties)} cannot be opened (Address already in use); stop what uses it" in said


def test_a_kit_that_waits_for_its_certificate(made: Path, tmp_path: Path) -> None:
    parties = Apart(tmp_path / "new")
    parties.found(study(), port=free_port())
    parties.request("lab")
    assert "waits for its certificate: send its request" in refusal("join", parties.kit("lab"), "--yes")


def test_a_configuration_that_names_a_site_nobody_invited(parties: Apart, tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text(json.dumps(study("clinic", "lab", "school")))
    said = refusal("run", file, "--on", parties.kit("submitter"), "--name", "first")
    assert "the configuration names school, no party of the federation that" in said
    assert "`peertune reconfigure FILE`" in said


def test_two_processes_with_one_kit(parties: Apart) -> None:
    kit = parties.kit("lab")
    with (kit / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is running already; stop that first, one kit is for one process" in refusal("join", kit, "--yes")


@contextmanager
def coordinator(parties: Apart) -> Iterator[None]:
    """What listens at the port with the coordinator's certificate, and greets once."""
    startup = parties.kit("coordinator") / "startup"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=startup / "rootCA.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(startup / "server.crt", startup / "server.key")
    with socket.create_server(("127.0.0.1", port_of(parties))) as listener:

        def greet() -> None:
            plain, _ = listener.accept()
            with plain, suppress(ssl.SSLError, ConnectionError), context.wrap_socket(plain, server_side=True) as secure:
                secure.send(b"\0")

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield
        thread.join(10)
