"""The party with a model and no data: in the run's first event, in every checkpoint, in no table of agents."""

from pathlib import Path

import pytest
from small import bodies, last_checkpoint, make_models, resume, run, small_config
from toy import NAMES, start

from peertune.errors import MethodError
from peertune.federation import Federation
from peertune.ledger import SERVER, Ledger
from peertune.payloads import Weights

LOCAL = {"method": {"type": "local"}, "task": {"transfer": 96}}  # 96 is the default: other sizes are refused as unused


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def ledger(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    config = small_config(models, "llama llama", **LOCAL, server={"model": models["gpt2"]})
    return run(tmp_path_factory.mktemp("served") / "run", config)


def test_a_server_is_described_beside_the_agents(ledger: Ledger, models: dict[str, str]) -> None:
    (first,) = bodies(ledger, "run")
    assert [facts["name"] for facts in first["agents"]] == ["a0", "a1"]
    assert (first["server"]["name"], first["server"]["model"]) == (SERVER, models["gpt2"])
    assert first["server"]["train"] == first["server"]["validation"] == 0
    assert first["config"]["server"]["model"] == models["gpt2"]


def test_a_server_is_stored_with_the_agents_and_graded_apart(ledger: Ledger) -> None:
    assert sorted(last_checkpoint(ledger, "local").body["agents"]) == ["a0", "a1", SERVER]
    assert {body["agent"] for body in bodies(ledger, "scores")} == {"a0", "a1"}
    (graded,) = bodies(ledger, "server_scores")  # at the start; `local` teaches it nothing
    assert graded["agent"] == SERVER and "validation_loss" not in graded["metrics"] and "test_loss" in graded["metrics"]
    assert not [body for body in bodies(ledger, "metric") if body["agent"] == SERVER and body["name"] == "train_loss"]


def test_a_run_with_a_server_goes_on_as_if_never_stopped(models: dict[str, str], tmp_path: Path) -> None:
    config = small_config(models, "llama llama", **LOCAL, server={"model": models["gpt2"]})
    whole = run(tmp_path / "whole", config)

    class Stop(Exception):
        pass

    def stop(event: str, body: dict) -> None:
        if event == "round" and (body["arm"], body["round"]) == ("local", 1):
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "stopped", config, stop)
    assert resume(tmp_path / "stopped").head == whole.head


def test_a_method_that_needs_a_server_says_so(tmp_path: Path) -> None:
    local = start(tmp_path, 0)
    federation = Federation(local, NAMES)
    with pytest.raises(MethodError, match=r"needs a server, the run has none; give the configuration a `server: \{"):
        _ = federation.server
    local.close()


def test_a_server_gives_its_weights_and_agents_do_not(models: dict[str, str]) -> None:
    config = small_config(models, "llama", **LOCAL, server={"model": models["llama"]})
    assert config.server is not None
    assert config.server.release.weights == "everyone" and config.agents[0].release.weights == "nobody"
    assert Weights.kind in type(config.server.release).model_fields
