"""A federation that was set up the distributed way, on FLARE: it runs, and who was removed is turned away."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small import make_models, run, small_config

pytest.importorskip("nvflare", reason="needs the extra peertune[flare]")

from apart import Apart, apart, ok
from loopback import Loopback

from peertune.config.schema import Config
from peertune.deploy import preflight
from peertune.ledger import Ledger

pytestmark = [pytest.mark.flare, pytest.mark.slow]  # two minutes: processes of FLARE, and models in them


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    models = make_models(tmp_path_factory.mktemp("models"))
    return small_config(models, "llama gpt2", rounds=1)


@pytest.fixture(scope="module")
def federation(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    folder = tmp_path_factory.mktemp("apart")
    (folder / "study.yaml").write_text(config.model_dump_json())
    loopback = Loopback(folder, config, apart)
    yield loopback
    loopback.stop()


def waits_for(log: Path, text: str) -> None:
    end = time.monotonic() + 240
    while text not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < end, log.read_text()[-2000:]
        time.sleep(0.5)


def test_a_run_with_keys_that_were_made_at_their_sites(federation: Loopback, config: Config, tmp_path: Path) -> None:
    federation.start()
    waits_for(federation.folder / "coordinator.log", "Total clients: 2")
    (way, *_) = preflight.examine(federation.kits["a0"])
    assert (way.name, way.fix) == ("Coordinator", ""), way
    file = federation.folder / "study.yaml"
    assert "is done" in ok("run", file, "--on", federation.submitter, "--name", "first")
    ledger = Ledger.read(federation.kits["coordinator"] / "runs" / "first" / "ledger.sqlite")
    assert ledger.head == run(tmp_path / "run", config).head


def test_who_was_removed_is_turned_away(federation: Loopback) -> None:
    """Its certificate is valid for another year."""
    federation.stop()
    parties = Apart(federation.folder / "kits")
    config = json.loads((federation.folder / "study.yaml").read_text())
    config["agents"][1]["name"] = "school"
    parties.reconfigure(config)
    parties.accept("coordinator", "a0")
    federation.start("coordinator", "a1")
    waits_for(federation.folder / "coordinator.log", "Reject disabled client registration: a1")
