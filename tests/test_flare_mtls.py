"""A provisioned federation with mutual TLS on loopback: the contract, what kits refuse, and what survives kill -9."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small import ROUTED, make_models, run, small_config
from toy import NAMES

pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")
pytest.register_assert_rewrite("contract")

import flare_parts  # noqa: E402
from contract import *  # noqa: E402, F403
from contract import PICKS  # noqa: E402
from loopback import Loopback  # noqa: E402

from peertune.deploy import kit as kits  # noqa: E402
from peertune.deploy.home import digest  # noqa: E402
from peertune.deploy.hub import Hub, follow  # noqa: E402
from peertune.deploy.job import site_of, write_job  # noqa: E402
from peertune.engines.flare import FlareEngine  # noqa: E402
from peertune.federation import Federation  # noqa: E402
from peertune.ledger import Ledger  # noqa: E402

pytestmark = [pytest.mark.flare, pytest.mark.slow]
ROUNDS, PULLS = 160, 5  # of 32 messages each, more than 5 000 together
THREADS = 500  # of one process; without `kits.RETRY` there is one for every message of the last minute
TOYS = {"site": "flare_parts.SealedToySite", "coordinator": "flare_parts.SealedBridge"}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A federation whose kits also allow the parts of tests."""
    folder = tmp_path_factory.mktemp("toys")
    agents = [{"name": name, "model": "bundled/gpt2"} for name in NAMES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kits, "ALLOWED", (*kits.ALLOWED, "flare_parts."))
        patch.setattr(kits, "OF_SERVER", kits.OF_SERVER | {"byoc": "any"})  # sites must not rely on the coordinator
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv(flare_parts.FOLDER, str(folder))
        loopback = Loopback(folder, small_config({}, "", agents=agents))
        loopback.start()  # writes the kits; those of other federations are as they should be
    yield loopback
    loopback.stop()


@pytest.fixture(scope="module")
def hub(toys: Loopback) -> Iterator[Hub]:
    hub = Hub(toys.submitter)
    yield hub
    hub.close()


def arguments(names: Any = NAMES) -> dict[str, Any]:
    return {"run": "toys", "wanted": "", "sites": {name: name for name in names}}


@pytest.fixture(scope="module")
def running(toys: Loopback, hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    folder = toys.folder
    job = hub.submit(write_job(tmp_path_factory.mktemp("jobs"), arguments(), **TOYS), "toys")
    end = time.monotonic() + 240
    while not (folder / "session").exists():
        assert time.monotonic() < end and not hub.status(job).startswith("FINISHED"), hub.status(job)
        time.sleep(0.5)
    crossing = flare_parts.Crossing(folder)
    engine = FlareEngine({name: crossing.line(name) for name in NAMES}, (folder / "session").read_text())
    yield engine, folder, [[name] for name in NAMES]
    engine.close()
    crossing.close()
    assert ends(hub, job) == "FINISHED:COMPLETED"


def ends(hub: Hub, job: str) -> str:
    end = time.monotonic() + 240
    while not (status := hub.status(job)).startswith("FINISHED"):
        assert time.monotonic() < end, status
        time.sleep(0.5)
    return status


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def test_thousands_of_calls_leave_no_threads_behind(running: tuple, toys: Loopback) -> None:
    """Texts go from agent to agent, and what came of them to the coordinator, without a pause."""
    engine, _, _ = running
    fed = Federation(engine, NAMES)
    watched = {name: toys.job_process(name) for name in ("coordinator", "a0", "a1")}
    most = dict.fromkeys(watched, 0)
    for _ in range(ROUNDS):
        for _ in range(PULLS):
            fed.fetch(fed["a1"].accept(PICKS, fed["a0"].share(PICKS)))
        fed.end_round()
        most = {name: max(most[name], threads(pid)) for name, pid in watched.items()}
    assert max(most.values()) < THREADS, most


# What kits refuse


def test_a_job_that_brings_code_is_refused(toys: Loopback, hub: Hub, tmp_path: Path) -> None:
    job = write_job(tmp_path, arguments(), **TOYS)
    (job / "app" / "custom").mkdir()
    (job / "app" / "custom" / "mine.py").write_text("print('mine')\n")
    submitted = hub.submit(job, "code")
    assert ends(hub, submitted) == "FINISHED:FAILED_TO_RUN"
    detail = str(hub._login().get_job_meta(submitted)["job_deploy_detail"])
    assert all(f"{name}: " in detail and "BYOC not permitted" in detail for name in NAMES), detail


def test_a_job_that_names_another_class_is_refused(toys: Loopback, hub: Hub, tmp_path: Path) -> None:
    parts = TOYS | {"site": "nvflare.app_common.np.np_trainer.NPTrainer"}
    assert ends(hub, hub.submit(write_job(tmp_path, arguments(), **parts), "class")) != "FINISHED:COMPLETED"
    assert "ComponentNotAuthorized" in (toys.folder / "a0.log").read_text()


def test_nobody_reads_a_sites_files_from_afar(toys: Loopback, hub: Hub) -> None:
    with pytest.raises(Exception, match="not authorized"):
        hub._login().cat_target("a0", file="local/peertune.json")


# kill -9


class Runs:
    """Real organisations; a run that is disturbed in its first rounds."""

    def __init__(self, folder: Path, models: dict[str, str]) -> None:
        self.config = small_config(models, "llama gpt2", method=ROUTED, rounds=6)
        self.loopback = Loopback(folder, self.config)
        self._folder, self._jobs = folder, itertools.count()

    def to_its_end(self, name: str, disturb: Callable[[], None]) -> tuple[str, list[str]]:
        """The head of the ledger, and what `follow` told."""
        sites = {party: site_of(party) for party in self.config.parties()}
        told: list[str] = []
        done = threading.Event()

        def tell(line: str) -> None:
            told.append(line)
            if line.startswith("knexa: round") and not done.is_set():
                done.set()
                disturb()

        hub = Hub(self.loopback.submitter)
        arguments = {"run": name, "wanted": digest(self.config), "sites": sites}
        outcome = follow(hub, name, lambda: write_job(self._folder / f"jobs{next(self._jobs)}", arguments), tell, sites)
        hub.close()
        assert (outcome.exit_code, done.is_set()) == (0, True), told
        return Ledger.read(self.loopback.kits["coordinator"] / "runs" / name / "ledger.sqlite").head, told


@pytest.fixture(scope="module")
def organisations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("organisations")
    runs = Runs(folder, make_models(folder / "models"))
    runs.loopback.start()
    yield runs
    runs.loopback.stop()


@pytest.fixture(scope="module")
def undisturbed(organisations: Runs, tmp_path_factory: pytest.TempPathFactory) -> str:
    return run(tmp_path_factory.mktemp("alone") / "run", organisations.config).head


@pytest.mark.parametrize("who", ["a1", "coordinator"])
def test_a_killed_job_process_changes_nothing(who: str, organisations: Runs, undisturbed: str) -> None:
    """Equal heads: equal scores, transfers and digests of all adapters, optimisers and random states."""
    loopback = organisations.loopback
    head, told = organisations.to_its_end(f"killed-{who}", lambda: os.kill(loopback.job_process(who), signal.SIGKILL))
    assert sum("job " in line and "ended" not in line for line in told) >= 2, told
    assert head == undisturbed


@pytest.mark.parametrize("who", ["a0", "coordinator"])
def test_a_killed_party_that_comes_back_changes_nothing(who: str, organisations: Runs, undisturbed: str) -> None:
    """All processes of its kit: FLARE's, which keeps the connection or is the server, and those of the job."""

    def disturb() -> None:
        organisations.loopback.kill(who)
        organisations.loopback.start(who)

    head, told = organisations.to_its_end(f"killed-party-{who}", disturb)
    assert head == undisturbed and sum("job " in line and "ended" not in line for line in told) >= 2, told


def test_kits_keep_their_promises(organisations: Runs) -> None:
    for name, kit in organisations.loopback.kits.items():
        if name == "submitter":
            continue
        local = {path.name: json.loads(path.read_text()) for path in (kit / "local").glob("*.json")}
        assert local["comm_config.json"].items() >= kits.RETRY.items()
        rights = local["authorization.json"]["permissions"]
        assert list(rights) == ["project_admin"] and rights["project_admin"]["byoc"] == "none"
        assert local["resources.json"]["class_allow_list"] == list(kits.ALLOWED)
        assert "/tmp/nvflare" not in json.dumps(local["resources.json"])
