"""What hidden states leak, on text whose tokens are known: attackers that must succeed, must fail, and rates alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small import make_models, run, small_config
from split_parts import SPLIT, config_of
from tiny import VOCABULARY, make_tiny_model

from peertune import measuring
from peertune.audit import COLUMNS, Audit, audit_config, audit_run
from peertune.codecs import Codec
from peertune.config.schema import Config
from peertune.errors import ConfigError
from peertune.lm.encode import Row
from peertune.lm.inversion import Seen, look, nearest, trained
from peertune.lm.model import LanguageModel
from peertune.lm.settings import AdapterSettings

NOBODY = lambda done, of: None  # noqa: E731


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return make_models(tmp_path_factory.mktemp("models"))


def loaded(source: str) -> LanguageModel:
    lm = LanguageModel.load(source)
    lm.add_adapter("a", AdapterSettings(), seed=0)
    return lm


def texts(rows: int, seed: int = 0) -> list[Row]:
    draw = np.random.default_rng(seed)
    return [Row((0, *draw.integers(4, VOCABULARY, length).tolist()), 3, False) for length in draw.integers(4, 20, rows)]


def seen(tokens: torch.Tensor, hidden: torch.Tensor) -> Seen:
    return Seen(hidden, tokens, torch.ones_like(tokens), torch.zeros_like(tokens, dtype=torch.bool))


def test_what_is_seen_belongs_to_the_tokens_that_were_sent(models: dict[str, str]) -> None:
    lm, rows = loaded(models["llama"]), texts(5)
    found = look(lm, "a", 1, rows, Codec(), batch=2)
    ordered = sorted(rows, key=lambda row: len(row.ids))
    assert found.tokens.tolist() == [token for row in ordered for token in row.ids]
    assert found.places.tolist() == [place for row in ordered for place in range(len(row.ids))]
    assert found.answers.tolist() == [place >= 3 for row in ordered for place in range(len(row.ids))]
    with lm.using("a") as model, torch.no_grad():
        states = model(input_ids=torch.tensor([ordered[0].ids]), output_hidden_states=True).hidden_states[1][0]
    torch.testing.assert_close(found.hidden[: len(states)], states)
    coded = look(lm, "a", 1, rows, Codec("int8"), batch=2)
    assert 0 < (coded.hidden - found.hidden).abs().max() < 0.05


def test_random_states_tell_nothing_and_the_tokens_themselves_everything(models: dict[str, str]) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, 40, (2000,), generator=generator)
    noise = torch.randn(2000, 32, generator=generator)
    codes = torch.randn(VOCABULARY, 32, generator=generator)[tokens] + 0.1 * noise
    public, target = slice(0, 1000), slice(1000, 2000)

    def recovered(hidden: torch.Tensor) -> float:
        found = trained(seen(tokens[public], hidden[public]), seen(tokens[target], hidden[target]), seed=0)
        return float((found == tokens[target]).float().mean())

    assert recovered(noise) < 0.1
    assert recovered(codes) > 0.99


def test_an_attacker_is_the_same_twice(models: dict[str, str]) -> None:
    lm = loaded(models["gpt2"])
    public, target = (look(lm, "a", 1, texts(20, seed), Codec()) for seed in (0, 1))
    assert torch.equal(trained(public, target, seed=0), trained(public, target, seed=0))
    assert torch.equal(nearest(lm, "a", 1, public, target), nearest(lm, "a", 1, public, target))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_token_that_stands_alone_is_its_own_nearest(models: dict[str, str], family: str) -> None:
    lm = loaded(models[family])
    rows = [Row((0, token), 1, False) for token in range(4, 60)]
    alone = look(lm, "a", 1, rows, Codec())
    everything = look(lm, "a", 1, [Row((0, token), 1, False) for token in range(VOCABULARY)], Codec())
    found = nearest(lm, "a", 1, everything, alone)
    assert torch.equal(found[alone.places == 1], alone.tokens[alone.places == 1])


def config(models: dict[str, str], **changes: object) -> Config:
    agents = [{"model": models["llama"], "release": {"weights": "coordinator"}}]
    return small_config({}, "", **{"agents": agents, "method": {"type": "local"}, "task": {"transfer": 96}} | changes)


def test_a_configuration_is_audited_before_any_training(models: dict[str, str], tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = audit_config(config(models), lambda done, of: steps.append((done, of)))
    assert [(leak.cut, leak.codec, leak.bytes) for leak in found.leaks] == [
        (1, "fp32", 128.0),
        (1, "int8", 36.0),
        (1, "topk (4)", pytest.approx(16.0, abs=0.1)),
    ]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    fp32, int8, _ = found.leaks
    assert fp32.trained > 0.7 > 3 * found.commonest and abs(fp32.trained - int8.trained) < 0.05
    assert fp32.answers is not None and fp32.prompts > 0.5 and fp32.score is None
    assert all(len(row) == len(COLUMNS) for row in found.rows()) and found.rows()[0][-1] == "–"
    found.write(tmp_path / "audit.json")
    assert Audit(**json.loads((tmp_path / "audit.json").read_text()) | {"leaks": found.leaks}) == found


def test_a_run_is_audited_with_its_score_beside(tmp_path: Path, models: dict[str, str]) -> None:
    folder = tmp_path / "run"
    rows = [{"prompt": f"say {n}", "completion": f" it is {n}", "category": "x"} for n in range(60)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = SPLIT | {"codec": "int8", "cuts": {"a0": 2}}
    made = config_of({"questions": str(path)}, "bundled/gpt2 bundled/gpt2", method=method, rounds=1)
    run(folder, made)
    found = audit_run(folder, None, None, NOBODY)
    scores = {(leak.cut, leak.codec): leak.score for leak in found.leaks}
    assert scores[2, "int8"] is not None and scores[1, "int8"] is scores[2, "fp32"] is None  # where a0 is cut
    assert found.what == "a0 after split"
    assert "say" not in json.dumps(found.rows()) + found.title  # rates, no text
    with pytest.raises(ConfigError, match="has no agent 'zoe'"):
        audit_run(folder, "zoe", None, NOBODY)
    with pytest.raises(ConfigError, match="has no arm 'kd'"):
        audit_run(folder, None, "kd", NOBODY)


def test_the_command_prints_rates_and_writes_them(
    tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump(config(models).model_dump(mode="json")))
    measuring.audit("mine.yaml", set=["task.test=8"])
    printed = capsys.readouterr().out
    assert "Trained" in printed and "a0 before training" in printed and "audit-mine.json written" in printed
    assert "def " not in printed and "Return" not in printed
    assert len(json.loads(Path("audit-mine.json").read_text())["leaks"]) == 3
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "ledger.sqlite").touch()
    with pytest.raises(ConfigError, match="--set is for files and recipes"):
        measuring.audit("mine", set=["seed=1"])


def test_a_model_that_cannot_be_cut_has_nothing_to_show(models: dict[str, str], tmp_path: Path) -> None:
    opt = str(make_tiny_model(tmp_path / "opt", "opt"))
    with pytest.raises(ConfigError, match=r"\(opt\) cannot be split, so there is nothing to be seen of it"):
        audit_config(config(models, agents=[{"model": opt}]), NOBODY)
