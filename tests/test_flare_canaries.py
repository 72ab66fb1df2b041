"""Fifty canaries in what agents have and exchange, and a search for them in all that the hub of a federation has."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from canaries import contents, hits, marks, may_look, memory
from canary_agents import EXCHANGED, PRIVATE
from small import make_models, small_config

pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")

import canary_parts
from loopback import Loopback, command_of

from peertune.config.schema import Config
from peertune.deploy import kit as kits
from peertune.deploy.home import digest
from peertune.deploy.hub import Hub
from peertune.deploy.job import site_of, write_job
from peertune.deploy.sealing import SEALED
from peertune.deploy.start import descendants
from peertune.guard import Outbox

pytestmark = [pytest.mark.flare, pytest.mark.slow]
PRIVACY = {"clinic": PRIVATE[:13], "lab": PRIVATE[13:]}
PARTS = {
    "sealed": {"site": "canary_parts.CanarySite", "coordinator": "canary_parts.WaitingCoordinator"},
    "open": {"site": "canary_parts.OpenSite", "coordinator": "canary_parts.OpenCoordinator"},
}
# in every Python process of the hub: writes down what comes in, as it is once TLS is off
TAP = """
import os
from nvflare.fuel.f3.sfm import conn_manager
file = open(f"{os.environ['TAP']}/{os.getpid()}", "ab", buffering=0)
inner = conn_manager.SfmFrameReceiver.process_frame
def process_frame(self, frame):
    file.write(bytes(frame))
    inner(self, frame)
conn_manager.SfmFrameReceiver.process_frame = process_frame
"""


def rows(path: Path, count: int, canaries: list[str]) -> str:
    """A file of so many examples, each with all of these canaries."""
    texts = [(f"{path.stem} {index}: name a colour", f" blue {index}") for index in range(count)]
    lines = [{"prompt": prompt, "completion": " ".join([completion, *canaries])} for prompt, completion in texts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def make_config(folder: Path) -> Config:
    """Two agents and a round of KNEXA, in which each prompt is answered for the other agent."""
    model = make_models(folder / "models")["llama"]
    agents = [
        {"name": name, "model": model, "data": {"path": rows(folder / f"{name}.jsonl", 12, canaries)}}
        for name, canaries in PRIVACY.items()
    ]
    task = {"type": "records", **{name: rows(folder / f"{name}.jsonl", 4, []) for name in ("test", "transfer")}}
    return small_config({}, "", agents=agents, task=task, rounds=1)


class Searched:
    """A federation, and a hub whose memory is read as long as it runs, and whose every incoming byte is kept."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.config = folder, make_config(folder)
        self.loopback = Loopback(folder, self.config)
        (folder / "tap").mkdir()
        (folder / "python").mkdir()
        (folder / "python" / "sitecustomize.py").write_text(TAP)
        path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        patch.setattr(kits, "ALLOWED", (*kits.ALLOWED, "canary_parts."))
        patch.setenv(canary_parts.FOLDER, str(folder))
        patch.setenv("TAP", str(folder / "tap"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder / "python"), *path]))
        self.loopback.start("coordinator")
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        self.loopback.start(*PRIVACY)
        self.hub = Hub(self.loopback.submitter)
        self.files: list[tuple[str, int, int]] = []  # of the hub: name, canaries in it, names of a party in it

    def stop(self) -> None:
        self.hub.close()
        self.loopback.stop()

    def run(self, name: str) -> dict[str, Counter[str]]:
        """The most that was found at a time in the server's and the coordinator's memory, until the run was over."""
        sites = {party: site_of(party) for party in self.config.parties()}
        arguments = {"run": name, "wanted": digest(self.config), "sites": sites}
        job = self.hub.submit(write_job(self.folder / "jobs", arguments, **PARTS[name]), name)
        ran, end, last = self.folder / f"{name}.{canary_parts.RAN}", time.monotonic() + 400, False
        found: dict[str, Counter[str]] = {}
        while not last:
            last = ran.exists()
            assert time.monotonic() < end and not self.hub.status(job).startswith("FINISHED"), self.hub.status(job)
            for who, count in self._memory().items():
                found[who] = found.get(who, Counter()) | count
            time.sleep(1.0)
        self._search_files()  # with those that the end of the job deletes
        ran.with_name(f"{name}.{canary_parts.DONE}").touch()
        self._until(lambda: self.hub.status(job).startswith("FINISHED"), end)
        assert self.hub.status(job) == "FINISHED:COMPLETED"
        found["server"] |= self._memory()["server"]
        self._search_files()
        return found

    def _memory(self) -> dict[str, Counter[str]]:
        """Of the server and of the coordinator's job: canaries, and the name of a party, which both must know."""
        found: dict[str, Counter[str]] = {}
        for pid in descendants(self.loopback._running["coordinator"].pid):
            who = "job" if "runner_process" in command_of(pid) else "server"
            with suppress(FileNotFoundError, ProcessLookupError):
                for chunk in memory(pid):
                    found.setdefault(who, Counter()).update(canaries=marks(chunk), names=chunk.count(b"clinic"))
        return found

    def _until(self, done: Callable[[], bool], end: float) -> None:
        while not done():
            assert time.monotonic() < end
            time.sleep(0.5)

    def _search_files(self) -> None:
        """All files of the hub and of who submits, what is in archives, too."""
        places = [self.folder / "kits" / name for name in ("coordinator", "submitter")]
        found = [file for place in places for file in contents(place)]
        found.append(("coordinator.log", (self.folder / "coordinator.log").read_bytes()))
        self.files += [(name, marks(raw) + hits(raw), raw.count(b"clinic")) for name, raw in found]

    def came(self) -> tuple[int, int]:
        """The same two counts in all bytes that the hub received."""
        raw = b"".join(raw for _, raw in contents(self.folder / "tap"))
        return marks(raw) + hits(raw), raw.count(b"clinic")

    def exchanged(self) -> list[tuple[str, bytes, bool]]:
        """Whose texts left, which, and did the receiver sign for them?"""
        found = []
        for name in PRIVACY:
            box = Outbox(self.loopback.kits[name] / SEALED / "outbox")
            found += [(name, box.content(each), each.receipt is not None) for each in box.departures(kind="texts")]
            box.close()
        return found


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Searched]:
    if reason := may_look():
        pytest.skip(reason)
    searched = Searched(tmp_path, monkeypatch)
    yield searched
    searched.stop()


def test_no_canary_is_at_the_hub_and_without_seals_they_are_found(searched: Searched) -> None:
    """Files, incoming bytes, memory: nothing while agents seal; the same search finds what they do not seal."""
    found = searched.run("sealed")
    texts = searched.exchanged()
    assert texts and all(signed for _, _, signed in texts)
    assert all(canary.encode() in raw for _, raw, _ in texts for canary in EXCHANGED)
    assert {who: count["canaries"] for who, count in found.items()} == {"server": 0, "job": 0}
    assert all(count["names"] > 0 for count in found.values())  # it has read their memory
    assert [name for name, canaries, _ in searched.files if canaries] == []
    known = [name for name, _, names in searched.files if names]
    assert {"ledger.sqlite", "log.txt", "coordinator.log"} <= {Path(name).name for name in known}
    canaries, names = searched.came()
    assert canaries == 0 and names > 0

    found = searched.run("open")
    assert searched.came()[0] > 0
    assert found["server"]["canaries"] > 0 and found["job"]["canaries"] > 0
