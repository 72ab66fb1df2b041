"""The engine across organisations on FLARE's simulator: the contract, and whole runs."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from keyed import make_keys
from small import ROUTED, make_models, run, small_config
from toy import NAMES, fault

from peertune.config.release import Release
from peertune.config.schema import Config
from peertune.deploy.home import Settings, digest, write_settings
from peertune.deploy.job import OUTCOME, Outcome, site_of, write_job
from peertune.deploy.sealing import SEALED
from peertune.engines.flare import FlareEngine
from peertune.federation import Federation
from peertune.guard import Outbox
from peertune.ledger import COORDINATOR, Ledger
from peertune.realtime import Asynchrony, RealClock

pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")
pytest.register_assert_rewrite("contract")

import flare_parts  # noqa: E402
from contract import *  # noqa: E402, F403
from contract import Bench, failures  # noqa: E402
from simulator import Simulator  # noqa: E402

pytestmark = pytest.mark.flare


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    folder = tmp_path_factory.mktemp("toys")
    arguments = {"run": "toys", "wanted": "", "sites": {name: name for name in NAMES}}
    job = write_job(folder / "jobs", arguments, site="flare_parts.ToySite", coordinator="flare_parts.Bridge")
    simulator = Simulator(folder, job, NAMES, {flare_parts.FOLDER: str(folder)})
    try:
        simulator.until(folder / "session")
        crossing = flare_parts.Crossing(folder)
        lines = {name: crossing.line(name) for name in NAMES}
        engine = FlareEngine(lines, (folder / "session").read_text())
        yield engine, folder, [[name] for name in NAMES]
        engine.close()
        crossing.close()
        assert simulator.wait(60) == 0
    finally:
        simulator.stop()


def test_a_round_goes_on_without_a_hung_agent(bench: Bench) -> None:
    fed = Federation(bench.engine, NAMES, RealClock(NAMES, bench.engine, Asynchrony(timeout=1.0), rounds=9))
    fed.begin_round(1)
    others = {name: fed[name].profile() for name in ("a1", "a2", "a3")}
    assert set(fed.gather({"a0": fed["a0"].share(fault("hang")), **others})) == set(others)
    fed.end_round()
    assert list(fed.busy) == ["a0"]
    while not fed.rejoin(2):
        time.sleep(0.05)
    log = fed.end_round()
    assert failures(log) == [("a0", "share", f"no answer within {flare_parts.DEADLINE:g} s; its process was stopped")]
    assert log.lost == ["a0"]


# Whole runs


class Organisations:
    """Kits of all parties of a small run, and the simulator to run it in."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        self.sites = {party: site_of(party) for party in config.parties()}
        kits = {None: "hub", **self.sites}
        for party, place in kits.items():
            kit = folder / "kits" / place
            (kit / "local").mkdir(parents=True)
            write_settings(kit, Settings(config.model_dump_json(), str(kit / "runs"), party))
        make_keys({party: folder / "kits" / place for party, place in self.sites.items()})

    def run(self, name: str, wanted: str | None = None) -> tuple[int, Path]:
        """Run it to its end; what the simulator returns, and the coordinator's folder of the run."""
        arguments = {"run": name, "wanted": wanted or digest(self.config), "sites": self.sites}
        parts = {"site": "flare_small.SmallSite", "coordinator": "flare_small.SmallCoordinator"}
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            job = write_job(Path(place) / "jobs", arguments, **parts)
            environment = {flare_parts.FOLDER: str(self.folder)}
            simulator = Simulator(Path(place), job, list(self.sites.values()), environment)
            try:
                code = simulator.wait()
                found = list(Path(place).rglob(OUTCOME))
                self.outcome = msgspec.json.decode(found[0].read_bytes(), type=Outcome) if found else None
            finally:
                simulator.stop()
        return code, self.folder / "kits" / "hub" / "runs" / name


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("models"))


RELEASED = dict.fromkeys(Release.model_fields, "everyone")  # every method pulls something else
ARMS: dict[str, Any] = {
    "routed": ROUTED,
    **{name: {"type": name} for name in ("local", "fedavg", "kd", "fedmkt", "split", "central_text", "centralised")},
    "plain_split": {"type": "split", "shape": "plain"},
}


def every_method(models: dict[str, str]) -> Config:
    agents = [{"model": models["llama"], "release": RELEASED}] * 2
    changes = {"rounds": 1, "evaluation": {"every": 1}, "server": {"model": models["llama"]}, "baselines": ARMS}
    return small_config(models, agents=agents, **changes)


def check_outboxes(organisations: Organisations) -> None:
    """What went between agents was sealed, lies with its sender as it was before, and its receiver signed for it."""
    for party, place in organisations.sites.items():
        box = Outbox(organisations.folder / "kits" / place / SEALED / "outbox")
        left = box.departures()
        box.close()
        assert left and {each.source for each in left} == {party}
        assert all(each.receipt for each in left)
        assert {"texts", "assessed", "activations"} & {each.kind for each in left}
        assert COORDINATOR not in {each.destination for each in left}


def test_every_method_does_across_organisations_what_it_does_on_one_machine(
    models: dict[str, str], tmp_path: Path
) -> None:
    config = every_method(models)
    organisations = Organisations(tmp_path / "apart", config)
    code, folder = organisations.run("small")
    assert code == 0
    check_outboxes(organisations)
    apart, together = Ledger.read(folder / "ledger.sqlite"), run(tmp_path / "together", config)
    apart.verify()
    assert {event.arm for event in apart.events()} == {"start", "knexa", *ARMS}
    assert list(apart.events()) == list(together.events()) and apart.head == together.head


@pytest.mark.slow
def test_a_run_with_another_configuration_than_was_agreed_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    config = small_config(models, "llama gpt2")
    organisations = Organisations(tmp_path, config)
    code, folder = organisations.run("small", "f" * 64)
    assert code != 0 and not folder.exists()
    assert f"this run has configuration {'ffff ' * 15}ffff, the kit was made for" in organisations.outcome.message
