"""What networks, clocks and disks can do to a run across organisations: real processes, each in namespaces of its own,
mutual TLS. All runs share one federation, which starts in a minute; its kits were made four days ago.
"""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from small import bodies, make_models, run, small_config

pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")

import network
from network import COMMAND, DAY, HOST, PORT, Network, Party, contents, off

from peertune.config.schema import Config
from peertune.ledger import Ledger

if why := network.missing():
    pytest.skip(why, allow_module_level=True)
pytestmark = [pytest.mark.flare, pytest.mark.slow, pytest.mark.timeout(1200)]

CANARY = "zq-{}-private"  # in all of an agent's data
FIRST = "fedavg: round"  # the first line of a run that says so
Disturb = Callable[[], None]


def write_rows(path: Path, count: int, who: str) -> str:
    rows = [{"prompt": f"{who} {number} plus one", "completion": f" {who} {number + 1}"} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_config(folder: Path) -> Config:
    """Two agents with data of their own, first by FedAvg and then by KNEXA, which make 12 rounds."""
    model = make_models(folder / "models")["llama"]
    agents = [
        {
            "name": name,
            "model": model,
            "data": {"path": write_rows(folder / f"{name}.jsonl", 24, CANARY.format(name)), "validation": 0.25},
            "release": {"weights": "everyone", "texts": "agents"},
        }
        for name in ("clinic", "lab")
    ]
    public = {name: write_rows(folder / f"{name}.jsonl", 8, name) for name in ("test", "transfer")}
    changes = {"rounds": 6, "baselines": {"fedavg": {"type": "fedavg"}}, "evaluation": {"every": 6}}
    return small_config({}, "", agents=agents, task={"type": "records", **public}, **changes)


@dataclass
class Told:
    """How `peertune run --on` ended, and what it said."""

    code: int
    lines: list[str]

    @property
    def jobs(self) -> int:
        return sum(": job " in line and "ended" not in line for line in self.lines)


class Federation:
    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, make_config(folder)
        self.file = folder / "run.yaml"
        self.file.write_text(yaml.safe_dump(json.loads(self.config.model_dump_json())))
        where = ["--host", HOST, "--port", str(PORT), "--to", str(folder / "kits")]
        provision = [*off(-4 * DAY, folder), *COMMAND, "provision", "--central", str(self.file), *where]
        subprocess.run(provision, check=True)
        kits = {kit.parent.name: kit.parent for kit in (folder / "kits").glob("*/startup")}
        self.net = Network(folder, kits, ["runs", "sealed"])
        self.hub, self.clinic, self.lab = self.net.parties  # in this order
        self.net.start()

    def run(self, name: str, disturb: Disturb = lambda: None, at: str = FIRST) -> Told:
        """Start the run, or go on with it; `disturb` at its first line with `at` in it."""
        submit = ["run", str(self.file), "--on", str(self.net.submitter), "--name", name]
        told, began = Told(-1, []), time.monotonic()
        with self.hub.run(*submit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout
            try:
                for line in process.stdout:
                    told.lines.append(line.strip())
                    print(f"{time.monotonic() - began:6.1f} s  {line.strip()}", flush=True)  # noqa: T201
                    if at and at in line:
                        at = ""
                        disturb()
                told.code = process.wait()
            finally:
                process.kill()
        assert not at or told.code, "it ended undisturbed"
        return told

    def ledger(self, name: str) -> Ledger:
        """A copy, where SQLite can follow the path."""
        copy = self.folder / "copies" / name
        shutil.copytree(self.hub.path("runs") / name, copy, dirs_exist_ok=True)
        ledger = Ledger.read(copy / "ledger.sqlite")
        ledger.verify()
        return ledger

    def head(self, name: str) -> str:
        with closing(self.ledger(name)) as ledger:
            return ledger.head

    def kept(self, name: str, site: Party) -> set[str]:
        """Checkpoints that a site has of a run."""
        return {path.name for path in (site.path("runs") / name / "agents" / site.name / "checkpoints").iterdir()}

    def check_agreement(self, name: str) -> None:
        """Every state that the ledger counts on lies with its agent."""
        for event in list(self.ledger(name).events("checkpoint", "knexa"))[-2:]:
            for site in (self.clinic, self.lab):
                assert event.body["agents"][site.name] in self.kept(name, site)

    def check_silence(self, told: Told) -> None:
        """Nothing private is in what anybody but its owner has, nor a traceback in what is said."""
        seen = [(Path("command"), line.encode()) for line in told.lines]
        seen += [(self.hub.log, self.hub.log.read_bytes())]
        seen += [*contents(self.hub.kit), *contents(self.hub.path("runs")), *contents(self.net.submitter)]
        for canary in (CANARY.format(name).encode() for name in self.net.sites):
            assert [path for path, raw in seen if canary in raw] == []
        private = ["Traceback", *(str(site.kit) for site in self.net.sites.values())]
        assert not any(word in line for word in private for line in told.lines), told.lines


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    federation = Federation(tmp_path_factory.mktemp("federation"))
    yield federation
    federation.net.close()


@pytest.fixture(scope="module")
def undisturbed(federation: Federation) -> str:
    return run(federation.folder / "alone", federation.config).head


@pytest.fixture(autouse=True)
def healed(federation: Federation) -> Iterator[None]:
    yield
    federation.hub.heal()
    federation.hub.empty("runs")
    for site in federation.net.sites.values():
        federation.hub.heal(site.name)
        site.heal()
        site.plug()
        site.empty("runs")
        site.empty("sealed")


# The network


@pytest.mark.parametrize(("name", "seconds"), [("second", 1), ("half-minute", 30)])
def test_a_short_partition_is_waited_for(federation: Federation, undisturbed: str, name: str, seconds: int) -> None:
    """Two or three minutes."""

    def disturb() -> None:
        federation.lab.lose(100)
        time.sleep(seconds)
        federation.lab.heal()

    told = federation.run(name, disturb)
    assert (told.code, told.jobs, federation.head(name)) == (0, 1, undisturbed)


def test_after_a_cut_link_the_run_goes_on_from_the_last_common_round(federation: Federation, undisturbed: str) -> None:
    """Six minutes: the link is cut for longer than anybody waits, and the job is lost."""

    def disturb() -> None:
        federation.lab.unplug()
        threading.Timer(150, federation.lab.plug).start()

    told = federation.run("cut", disturb)
    assert told.code == 0 and told.jobs >= 2
    assert federation.head("cut") == undisturbed
    assert any("lab is still out of reach" in line or "lab is out of reach" in line for line in told.lines)
    federation.check_silence(told)


def test_a_line_of_64_kbit_is_slow_and_nothing_else(federation: Federation, undisturbed: str) -> None:
    """Six to twelve minutes."""

    def disturb() -> None:
        federation.lab.throttle("64kbit")
        federation.hub.throttle("64kbit", federation.lab.name)

    told = federation.run("slow", disturb, ": job")
    assert (told.code, told.jobs, federation.head("slow")) == (0, 1, undisturbed)


def test_a_line_that_loses_every_twentieth_packet_is_slow_and_nothing_else(
    federation: Federation, undisturbed: str
) -> None:
    """Three minutes."""

    def disturb() -> None:
        federation.lab.lose(5)
        federation.hub.lose(5)

    told = federation.run("lossy", disturb, ": job")
    assert (told.code, federation.head("lossy")) == (0, undisturbed)


# Clocks


def test_clocks_that_are_days_off_change_nothing_while_certificates_are_valid(
    federation: Federation, undisturbed: str
) -> None:
    """Three minutes. One site is three days ahead of the coordinator, the other three days behind it."""
    for site, clock in ((federation.clinic, 3 * DAY), (federation.lab, -3 * DAY)):
        site.kill()
        site.start(clock)
    told = federation.run("clocks")
    for site in (federation.clinic, federation.lab):
        site.kill()
        site.start()
    assert (told.code, federation.head("clocks")) == (0, undisturbed)


# Disks


def stopped_by_a_disk(told: Told, where: str) -> bool:
    """One line that says who met what, and what to do."""
    return told.code == 2 and told.lines[-1].startswith("peertune: ") and where in told.lines[-1]


def test_a_full_disk_under_checkpoints_ends_the_run_until_there_is_space(
    federation: Federation, undisturbed: str
) -> None:
    """Four minutes."""
    told = federation.run("checkpoints", lambda: federation.lab.fill("runs"))
    assert stopped_by_a_disk(told, "lab.checkpoint failed: RUNS/checkpoints/") and "free space" in told.lines[-1]
    federation.check_silence(told)
    federation.lab.empty("runs")
    told = federation.run("checkpoints", at="")
    assert (told.code, federation.head("checkpoints")) == (0, undisturbed)


def test_a_full_disk_under_an_outbox_costs_exchanges_and_nothing_else(federation: Federation, undisturbed: str) -> None:
    """Two minutes. What cannot be written down does not leave."""
    told = federation.run("outbox", lambda: federation.lab.fill("sealed"))
    causes = [body["cause"] for body in bodies(federation.ledger("outbox"), "failure")]
    assert told.code == 0
    assert causes and all("free space" in cause for cause in causes)
    federation.check_agreement("outbox")
    federation.check_silence(told)


def test_a_full_disk_under_the_ledger_ends_the_run_until_there_is_space(
    federation: Federation, undisturbed: str
) -> None:
    """Four minutes."""
    told = federation.run("ledger", lambda: federation.hub.fill("runs"))
    assert stopped_by_a_disk(told, "free space")
    federation.check_silence(told)
    federation.hub.empty("runs")
    told = federation.run("ledger", at="")
    assert (told.code, federation.head("ledger")) == (0, undisturbed)
