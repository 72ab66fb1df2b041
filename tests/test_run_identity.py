"""What a run was made from stays what it was, and what fails in passing costs no round."""

import json
from pathlib import Path

import pytest
from experiment_parts import TWO, stopped_after
from small import bodies, make_models, resume, run, small_config
from tiny import make_tiny_model

from peertune.agent import Agent
from peertune.checkpoint import Blobs
from peertune.config.schema import Config
from peertune.errors import ConfigError, PeertuneError, StorageError
from peertune.export import export_adapter
from peertune.identity import check_same
from peertune.ledger import Ledger
from peertune.payloads import Scores


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_models(tmp_path_factory.mktemp("models"))


def test_a_disk_that_refuses_for_now_costs_no_round(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(tmp_path / "run", small_config(models, TWO), "knexa", 1)
    before = Ledger.read(tmp_path / "run" / "ledger.sqlite").head

    def refuse(blobs: Blobs, digest: str) -> bytes:
        raise StorageError(f"checkpoint {digest} cannot be read (Permission denied)")

    with monkeypatch.context() as patch:
        patch.setattr(Blobs, "get", refuse)
        with pytest.raises(PeertuneError, match="nothing is lost, try again"):
            resume(tmp_path / "run")
    assert Ledger.read(tmp_path / "run" / "ledger.sqlite").head == before
    ledger = resume(tmp_path / "run")
    assert [event.round for event in ledger.events("checkpoint", "knexa")] == [1, 2]


def test_another_version_is_refused() -> None:
    recorded = {"version": "0.1.0", "config": {}, "agents": [], "transfer": ""}
    check_same("run", recorded, recorded)
    with pytest.raises(ConfigError, match="the version of peertune of 'run' is not what it began with"):
        check_same("run", recorded, recorded | {"version": "0.2.0"})


def test_an_adapter_is_not_exported_for_another_model(tmp_path: Path) -> None:
    models = make_models(tmp_path / "models")
    run(tmp_path / "run", small_config(models, TWO, rounds=1)).close()
    assert export_adapter(tmp_path / "run", "a0", tmp_path / "before").startswith("OK")
    make_tiny_model(tmp_path / "models" / "llama", "llama", seed=9)
    with pytest.raises(ConfigError, match="is not the one that a0 was trained on"):
        export_adapter(tmp_path / "run", "a0", tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_grades_that_do_not_fit_the_test_are_a_failure(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Agent, "grade", lambda agent, samples, temperature: Scores((1.0,), 1, {}))
    ledger = run(tmp_path / "run", small_config(models, TWO, rounds=1))
    assert not bodies(ledger, "scores")
    causes = {body["cause"] for body in bodies(ledger, "failure")}
    assert causes == {"1 grades of 1 samples do not fit the test"}


def test_metrics_stay_with_an_agent_that_keeps_them(models: dict[str, str], tmp_path: Path) -> None:
    config = small_config(models, TWO, rounds=1)
    told = run(tmp_path / "told", config)
    data = config.model_dump(mode="json")
    data["agents"][0]["release"]["metrics"] = "nobody"
    kept = run(tmp_path / "kept", Config.model_validate_json(json.dumps(data)))
    assert {body["agent"] for body in bodies(told, "metric")} == {"a0", "a1"}
    assert {body["agent"] for body in bodies(kept, "metric")} == {"a1"}
