"""Kits, what their owners have agreed to, and the supervisor: without a network."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from keyed import make_keys
from small import make_models, small_config
from typer.testing import CliRunner

from peertune.cli import app
from peertune.config.schema import Config
from peertune.deploy import kit as kits
from peertune.deploy.build import build
from peertune.deploy.home import (
    BUILDER,
    Plan,
    Settings,
    agreed,
    digest,
    home,
    localised,
    read_settings,
    settle,
    write_settings,
)
from peertune.deploy.job import ALLOWED, OUTCOME, Outcome, installed, site_of, write_job
from peertune.deploy.sealing import KEYS, pinned, seal_of
from peertune.deploy.start import descendants, end_tree, keep_running
from peertune.errors import ConfigError, PeertuneError
from peertune.guard import Identity
from peertune.guard.keys import grouped


def owned(**changes: Any) -> Config:
    """Two agents with data of their own."""
    agents = [{"name": name, "model": name, "data": {"path": f"{name}.jsonl"}} for name in ("clinic", "lab")]
    task = {"type": "records", "test": "test.jsonl"}
    sections = {"task": task, "agents": agents, "method": {"type": "local"}, "rounds": 2} | changes
    return Config.model_validate_json(json.dumps(sections))


def fake_kit(folder: Path, role: str = "client", script: str = "exit 7") -> Path:
    """A kit as FLARE makes it, as far as this package reads it."""
    (folder / "startup").mkdir(parents=True)
    (folder / "local").mkdir()
    (folder / "startup" / f"fed_{role}.json").write_text("{}")
    (folder / "startup" / "sub_start.sh").write_text(script)
    streamer = {"id": kits.STREAMED, "path": "x"}
    store = {"id": "job_manager", "args": {"uri_root": "/tmp/nvflare/jobs-storage"}}
    resources = {"class_allow_list": ["everything"], "components": [streamer, store], "allow_log_streaming": True}
    (folder / "local" / "resources.json.default").write_text(json.dumps(resources))
    (folder / "local" / "log_config.json.default").write_text(json.dumps({"loggers": {"root": {"level": "INFO"}}}))
    return folder


# What all have agreed on


def test_a_hash_says_what_is_run_and_not_where() -> None:
    config = owned()
    assert digest(config) == digest(owned(engine={"workers": 3, "device": "cpu"}))
    elsewhere = json.loads(config.model_dump_json())
    elsewhere["agents"][0]["data"]["path"] = "/elsewhere.jsonl"
    assert digest(Config.model_validate_json(json.dumps(elsewhere))) == digest(config)
    others = [owned(seed=1), owned(rounds=3), owned(sandbox="unsafe"), owned(training={"batch_size": 2})]
    assert len({digest(config), *map(digest, others)}) == 5


def test_another_configuration_than_the_kits_is_refused() -> None:
    settings = Settings(owned().model_dump_json(), "runs", "lab")
    assert agreed(settings, digest(owned())) == owned()
    with pytest.raises(ConfigError, match=f"has configuration {grouped(digest(owned(seed=1)))}, the kit was made for"):
        agreed(settings, digest(owned(seed=1)))


def test_a_site_builds_its_agent_from_its_own_places(tmp_path: Path) -> None:
    settings = Settings(owned().model_dump_json(), "runs", "lab", model="/models/lab", data="/data/lab.jsonl")
    config = localised(owned(), settings)
    assert [(agent.model, agent.data and agent.data.path) for agent in config.agents] == [
        ("clinic", "clinic.jsonl"),
        ("/models/lab", "/data/lab.jsonl"),
    ]
    found = home(settings, tmp_path, digest(owned()))
    assert (found.name, found.builder) == ("lab", BUILDER)
    plan = msgspec.json.decode(found.spec, type=Plan)
    assert plan.model == "lab" and Config.model_validate_json(plan.config) == config


def test_a_kit_for_nobody_in_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the kit is for school, which is no party of this run"):
        home(Settings(owned().model_dump_json(), "runs", "school"), tmp_path, digest(owned()))


def test_neither_an_example_nor_a_path_leaves_with_the_description(tmp_path: Path) -> None:
    models = make_models(tmp_path / "models")
    config = small_config(models, "llama gpt2")
    settings = Settings(config.model_dump_json(), "runs", "a1", model=models["gpt2"])
    told = home(settings, tmp_path / "run", digest(config)).spec
    plan = msgspec.structs.replace(msgspec.json.decode(told, type=Plan), model="everybody's name for it")
    agents, (facts,) = build(msgspec.json.encode(plan), ["a1"])
    assert list(agents) == ["a1"] and "preview" not in facts
    assert facts["model"] == "everybody's name for it" and str(tmp_path) not in str(facts)


def test_settings_are_kept_and_only_what_is_given_changes(tmp_path: Path) -> None:
    kit = fake_kit(tmp_path / "kit")
    write_settings(kit, Settings("{}", "runs", "lab"))
    (tmp_path / "lab.jsonl").write_text("")
    settle(kit, model="some/hub-id", data=tmp_path / "lab.jsonl", runs=None)
    settle(kit, model=None, data=None, runs=tmp_path / "elsewhere")
    found = read_settings(kit)
    assert found == Settings("{}", str(tmp_path / "elsewhere"), "lab", "some/hub-id", str(tmp_path / "lab.jsonl"))
    with pytest.raises(ConfigError, match="there is no .*nowhere; name the file"):
        settle(kit, model=None, data=tmp_path / "nowhere", runs=None)


@pytest.mark.parametrize("raw", [None, b"", b"{}", b'{"config": "", "runs": "", "builder": "os:system"}'])
def test_damaged_settings_are_one_line(tmp_path: Path, raw: bytes | None) -> None:
    kit = fake_kit(tmp_path / "kit")
    if raw is not None:
        (kit / "local" / "peertune.json").write_bytes(raw)
    with pytest.raises(ConfigError, match=r"peertune\.json cannot be read .* ask for it again") as caught:
        read_settings(kit)
    assert "\n" not in str(caught.value)


# Kits and jobs


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_start_leaves_a_kit_that_allows_nothing_more(tmp_path: Path, role: str) -> None:
    kit = fake_kit(tmp_path / "kit", role)
    kits.harden(kit)
    local = {path.name: json.loads(path.read_text()) for path in (kit / "local").glob("*.json")}
    resources = local["resources.json"]
    assert resources["class_allow_list"] == list(ALLOWED) and resources["class_list_enforcement_mode"] == "enforce"
    assert not resources["allow_log_streaming"] and [part["id"] for part in resources["components"]] == ["job_manager"]
    place = resources["components"][0]["args"]["uri_root"]
    assert place == (f"{kit}/stores/jobs-storage" if role == "server" else "/tmp/nvflare/jobs-storage")
    rights = local["authorization.json"]["permissions"]["project_admin"]
    assert [rights[name] for name in ("byoc", "shell_commands", "operate")] == ["none"] * 3
    assert ("app_command" in rights) == (role == "server")


def test_what_is_no_kit_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no start-up kit"):
        kits.is_server(tmp_path)
    with pytest.raises(ConfigError, match="is a kit to submit runs with"):
        kits.is_server(fake_kit(tmp_path / "admin", "admin"))
    broken = fake_kit(tmp_path / "broken")
    (broken / "local" / "resources.json.default").write_text("{")
    with pytest.raises(ConfigError, match="the kit is not whole"):
        kits.harden(broken)


def test_a_job_is_a_name_a_hash_versions_and_a_list_of_sites(tmp_path: Path) -> None:
    pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")
    arguments = {"run": "first", "wanted": "ff", "sites": {"lab": "lab", "server": site_of("server")}}
    job = write_job(tmp_path, arguments)
    files = {str(path.relative_to(job)) for path in job.rglob("*") if path.is_file()}
    assert files == {"meta.json", "app/config/config_fed_server.json", "app/config/config_fed_client.json"}
    named = [word for name in files for word in (job / name).read_text().split('"') if word.count(".") > 1]
    assert sorted(named) == sorted([*ALLOWED, *2 * list(installed().values())])
    meta = json.loads((job / "meta.json").read_text())
    assert (meta["min_clients"], meta["mandatory_clients"]) == (2, ["0server", "lab"])


# Processes


def test_a_process_that_dies_at_once_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peertune.deploy.start.PAUSE", 0.0)
    before = signal.getsignal(signal.SIGTERM)
    told: list[str] = []
    try:
        with pytest.raises(PeertuneError, match="ended 5 times at once, the last time with 7; read .*log.txt"):
            keep_running(fake_kit(tmp_path / "lab"), told.append)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == ["the process of lab ended with 7; it is started again"] * 4


def test_one_kit_is_for_one_process_and_ends_with_all_that_came_of_it(tmp_path: Path) -> None:
    kit = fake_kit(tmp_path / "lab", script="(setsid sleep 600 & echo $! > sleeper; wait) & wait")
    code = (
        f"from pathlib import Path; from peertune.deploy.start import keep_running as k; k(Path({str(kit)!r}), print)"
    )
    first = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_for(lambda: (tmp_path / "sleeper").exists() and (tmp_path / "sleeper").read_text().strip() != "")
    second = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "is running already; stop that first" in second.stderr
    sleeper = int((tmp_path / "sleeper").read_text())
    assert sleeper in descendants(first.pid)
    first.terminate()
    assert first.wait(30) == 0
    wait_for(lambda: not Path(f"/proc/{sleeper}").exists() or "Z" in Path(f"/proc/{sleeper}/stat").read_text())


def test_ending_a_tree_of_a_process_that_is_gone(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    end_tree(gone.pid)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# The supervisor


class FakeHub:
    """Each job: how it ends, how its coordinator ended, and how far it was."""

    def __init__(self, *jobs: tuple[str, Outcome | None, int], running: bool = False) -> None:
        self._jobs, self.submitted, self.aborted = list(jobs), 0, []
        self._running, self._looks = running, 0
        self.joined: list[set[str]] = []  # who is connected, look by look, before the first job runs

    def running(self, name: str) -> list[dict[str, str]]:
        return [{"id": "0"}] if self._running else []

    def submit(self, job: Path, run: str) -> str:
        self.submitted += 1
        self._looks = 0
        return str(self.submitted)

    def connected(self) -> set[str]:
        return self.joined.pop(0)

    def status(self, job: str) -> str:
        if self.joined:
            return "SUBMITTED"
        self._looks += 1
        ended, _, _ = self._jobs[0]
        return "RUNNING" if self._looks < 3 or ended == "RUNNING" else ended

    def progress(self, job: str) -> dict[str, Any] | None:
        ended, _, round = self._jobs[0]
        return None if ended == "RUNNING" else {"arm": "knexa", "round": round}

    def outcome(self, job: str) -> Outcome | None:
        return self._jobs.pop(0)[1]

    def abort(self, job: str) -> None:
        self.aborted.append(job)
        self._jobs.pop(0)


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    hub = pytest.importorskip("peertune.deploy.hub", reason="needs the extra peertune[flare]")
    monkeypatch.setattr(hub, "POLL", 0.0)
    monkeypatch.setattr(hub, "SILENT", 0.05)
    return lambda fake, tell=lambda line: None, sites=None: hub.follow(fake, "first", Path, tell, sites or {}, tries=3)


DONE, DIED, REFUSED = Outcome(0, ""), Outcome(1, "lab is out of reach"), Outcome(2, "lab: no model")
BROKEN = "FINISHED:EXECUTION_EXCEPTION"


def test_what_breaks_is_submitted_again_until_it_is_done(follow: Callable[..., Outcome]) -> None:
    hub = FakeHub((BROKEN, None, 1), (BROKEN, DIED, 1), ("FINISHED:COMPLETED", DONE, 4))
    assert follow(hub) == DONE and hub.submitted == 3


def test_a_run_that_gets_no_further_is_given_up_with_the_reason(follow: Callable[..., Outcome]) -> None:
    hub = FakeHub((BROKEN, None, 2), *[(BROKEN, DIED, 2)] * 5)
    with pytest.raises(PeertuneError, match="first was given up after 3 tries .* the last: lab is out of reach"):
        follow(hub)
    assert hub.submitted == 4  # the first of them got somewhere


def test_rounds_between_failures_are_worth_another_try(follow: Callable[..., Outcome]) -> None:
    hub = FakeHub(*[(BROKEN, None, round) for round in range(8)], ("FINISHED:COMPLETED", DONE, 8))
    assert follow(hub) == DONE and hub.submitted == 9


def test_what_is_refused_is_not_tried_again(follow: Callable[..., Outcome]) -> None:
    hub = FakeHub((BROKEN, REFUSED, 0))
    assert follow(hub) == REFUSED and hub.submitted == 1


def test_a_run_that_is_under_way_is_found(follow: Callable[..., Outcome]) -> None:
    hub = FakeHub(("FINISHED:COMPLETED", DONE, 1), running=True)
    assert follow(hub) == DONE and hub.submitted == 0


def test_who_has_not_joined_is_named_until_all_are_there(follow: Callable[..., Outcome]) -> None:
    hub, told = FakeHub(("FINISHED:COMPLETED", DONE, 1)), []
    hub.joined = [set(), {"clinic"}, {"clinic"}, {"clinic", "lab"}]
    assert follow(hub, told.append, {"clinic": "clinic", "lab": "lab"}) == DONE
    cure = "not connected; is `peertune join` running there?"
    assert told[1:4] == [f"waiting for clinic, lab: {cure}", f"waiting for lab: {cure}", "all are there"]


def test_a_job_whose_acknowledgement_was_lost_is_not_submitted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("peertune.deploy.hub", reason="needs the extra peertune[flare]")
    jobs: list[dict[str, str]] = []

    class Forgetful:
        """A session whose first answer to a submission never comes."""

        def submit_job(self, job: str) -> str:
            jobs.append({"job_id": f"j{len(jobs)}", "job_name": "first", "status": "SUBMITTED"})
            raise hub.api_spec.NoReply("no reply")

        def list_jobs(self) -> list[dict[str, str]]:
            return jobs

        def close(self) -> None:
            pass

    monkeypatch.setattr(hub, "POLL", 0.0)
    monkeypatch.setattr(hub, "new_secure_session", lambda *_, **__: Forgetful())
    assert hub.Hub(Path("kit")).submit(Path("job"), "first") == "j0" and len(jobs) == 1


def test_a_job_that_a_killed_server_calls_running_is_not_taken_for_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("peertune.deploy.hub", reason="needs the extra peertune[flare]")
    jobs = [{"job_id": "j0", "job_name": "first", "status": "RUNNING"}]

    class Restarted:
        cause = "Job j0 is not running."

        def abort_job(self, job: str) -> None:
            raise hub.api_spec.InternalError(self.cause)

        def list_jobs(self) -> list[dict[str, str]]:
            return jobs

        def submit_job(self, job: str) -> str:
            return "j1"

    monkeypatch.setattr(hub, "new_secure_session", lambda *_, **__: Restarted())
    one = hub.Hub(Path("kit"))
    monkeypatch.setattr(Restarted, "cause", "the disk is full")
    with pytest.raises(PeertuneError, match="the disk is full"):
        one.abort("j0")
    assert one.running("first")
    monkeypatch.setattr(Restarted, "cause", "Job j0 is not running.")
    one.abort("j0")
    assert not one.running("first") and one.submit(Path("job"), "first") == "j1"


def test_a_job_without_a_coordinator_is_ended(follow: Callable[..., Outcome]) -> None:
    """As after the loss of the server, when jobs stay RUNNING for ever."""
    hub = FakeHub(("RUNNING", None, 0), ("FINISHED:COMPLETED", DONE, 1))
    assert follow(hub) == DONE and hub.aborted == ["1"] and hub.submitted == 2


def test_an_outcome_that_was_not_written_whole_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a coordinator whose disk is full: the job is tried again."""
    hub = pytest.importorskip("peertune.deploy.hub", reason="needs the extra peertune[flare]")
    (tmp_path / OUTCOME).write_bytes(b"")
    session = SimpleNamespace(download_job_result=lambda job, place: str(tmp_path))
    monkeypatch.setattr(hub, "new_secure_session", lambda *_, **__: session)
    assert hub.Hub(tmp_path).outcome("1") is None
    (tmp_path / OUTCOME).write_bytes(msgspec.json.encode(DIED))
    assert hub.Hub(tmp_path).outcome("1") == DIED


# The command


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["join", "{kit}"], "is the coordinator's kit; start it with `peertune coordinator"),
        (["coordinator", "{site}"], "is a site's kit; start it with `peertune join"),
        (["coordinator", "nowhere"], "is no start-up kit"),
        (["provision", "demo", "--host", "localhost", "--to", "{kit}"], "exists and is not overwritten"),
    ],
)
def test_commands_refuse_in_one_line(tmp_path: Path, command: list[str], expected: str) -> None:
    pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")
    places = {"kit": str(fake_kit(tmp_path / "hub", "server")), "site": str(fake_kit(tmp_path / "lab"))}
    result = CliRunner().invoke(app, [word.format(**places) for word in command])
    assert isinstance(result.exception, ConfigError) and expected in str(result.exception)


def test_a_session_with_the_hub_is_closed_also_if_the_command_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("peertune.deploy.hub", reason="needs the extra peertune[flare]")
    closed: list[bool] = []
    hub = SimpleNamespace(running=lambda name: [], close=lambda: closed.append(True))
    monkeypatch.setattr(module, "Hub", lambda kit, patience: hub)
    result = CliRunner().invoke(app, ["stop", "first", "--on", "kit"])
    assert isinstance(result.exception, ConfigError) and "no run 'first' is under way" in str(result.exception)
    assert closed == [True]


def test_without_flare_every_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("peertune.deploying.find_spec", lambda name: None)
    for command in (["join", "x"], ["coordinator", "x"], ["status", "--on", "x"], ["stop", "r", "--on", "x"]):
        result = CliRunner().invoke(app, command)
        assert "pip install peertune[flare]" in str(result.exception), command


# Keys


@pytest.fixture
def keyed(tmp_path: Path) -> dict[str, Path]:
    """Kits of three parties with keys."""
    found = {name: fake_kit(tmp_path / name) for name in ("clinic", "lab", "school")}
    make_keys(found)
    return found


def test_every_kit_seals_for_the_others_and_shows_whose_keys_it_trusts(keyed: dict[str, Path]) -> None:
    clinic, lab = (seal_of(keyed[name], "run/1") for name in ("clinic", "lab"))
    assert lab.open("clinic", 1, clinic.close("lab", 1, b"text", call=7), call=7) == b"text"
    trusted = {name: pinned(kit).names for name, kit in keyed.items()}
    assert trusted == {"clinic": ("lab", "school"), "lab": ("clinic", "school"), "school": ("clinic", "lab")}
    cards = {name: Identity.read(kit / "local" / KEYS).card for name, kit in keyed.items()}
    assert all(pinned(kit)[name] == cards[name] for kit in keyed.values() for name in pinned(kit).names)


def test_a_kit_without_keys_takes_no_part(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no keys at"):
        seal_of(fake_kit(tmp_path / "lab"), "run/1")
