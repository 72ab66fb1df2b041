"""Federations of classifiers, and of models that write the intent: small true runs through the usual machinery."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from small import bodies, run, small_config
from tiny import make_tiny_encoder, make_tiny_model
from transformers import AutoModelForSequenceClassification

from peertune.assemble import build_agents, make_task, public_examples
from peertune.config.schema import Config
from peertune.errors import ConfigError
from peertune.export import export_adapter
from peertune.lm.quiet import quiet
from peertune.payloads import Picks, Texts
from peertune.places import check_places

INTENTS = ("fox", "list", "sum")
ROUTED = {"type": "knexa", "router": {"type": "beta", "floor": 0.0}, "tested": False, "audit": 2}
UNWRITTEN = {"max_new_tokens": 48}  # the default: nothing is written


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {
        "bert": str(make_tiny_encoder(root / "bert", "bert")),
        "llama": str(make_tiny_model(root / "llama", "llama")),
    }


def messages(path: Path, count: int) -> str:
    with path.open("w", newline="") as file:
        rows = ((f"{path.stem} {number}: the {word}, please", word) for number in range(count) for word in INTENTS)
        csv.writer(file).writerows([("text", "category"), *rows])
    return str(path)


def config_of(folder: Path, models: dict[str, str], who: str = "bert llama bert llama", **changes: Any) -> Config:
    sizes = {"validation": 24, "transfer": 9, "probe": 6, "partition": "iid"}
    paths = {"path": messages(folder / "train.csv", 40), "test_path": messages(folder / "test.csv", 4)}
    task = {"type": "intent", **paths, **sizes, **changes.pop("task", {})}
    usual = {"method": ROUTED, "evaluation": UNWRITTEN, "training": {"learning_rate": 5e-3}}
    return small_config(models, who, **{"task": task, **usual, **changes})


def agents_of(config: Config, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    spec = json.dumps({"config": config.model_dump_json(), "folder": str(folder)})
    agents, facts = build_agents(spec.encode(), config.agent_names())
    return dict(agents), facts


def test_the_configuration_makes_the_task(tmp_path: Path, models: dict[str, str]) -> None:
    config = config_of(tmp_path, models)
    assert check_places(config) == []
    task = make_task(config.task, config.seed, None)
    assert task.labels == INTENTS and len(task.examples("train")) == 120 - 24 - 9 - 6
    assert public_examples(config) == (task.examples("transfer"), task.examples("probe"))


def test_agents_start_from_one_head_and_answer_with_labels(tmp_path: Path, models: dict[str, str]) -> None:
    config = config_of(tmp_path, models)
    agents, facts = agents_of(config, tmp_path / "run")
    assert all("learned (1 class of 3):\n[" in fact["preview"] for fact in facts)
    assert facts[0]["adapter"] == facts[2]["adapter"] != facts[1]["adapter"]
    heads = [agents[name].adapter().tensors for name in ("a0", "a2")]
    name = "base_model.model.classifier.weight"
    assert (heads[0][name] == heads[1][name]).all() and heads[0][name].shape == (3, 32)
    agent = agents["a1"]
    train_loss = []
    for _ in range(2):
        agent.fit(40)
        train_loss.append(dict(agent.take_metrics())["train_loss"])
    assert train_loss[1] < 0.5 * train_loss[0]
    assert set(agent.grade(1, 0.0).correct) <= {0.0, 1.0}
    agent.draft(Picks((0, 1, 2)), 0.0, 0, 0)
    assert set(agent.share(Picks((0, 1, 2))).items) <= set(INTENTS)
    assert agent.accept(Picks((0, 1, 2)), Texts(("fox", "no such intent", "")), 0).passed == (1, 0, 0)
    assert agent.learn(0.5, 2, 10.0, 1).kept


def test_a_federation_of_encoders_and_causal_models_exchanges_labels(tmp_path: Path, models: dict[str, str]) -> None:
    config = config_of(tmp_path, models, rounds=1)
    ledger = run(tmp_path / "run", config)
    assert not bodies(ledger, "failure")
    assert {body["payload"] for body in bodies(ledger, "transfer")} >= {"claims", "texts", "scores"}
    assert any("exchange_loss" in json.dumps(body) for body in bodies(ledger, "metric"))
    scores = bodies(ledger, "scores")
    assert scores and all(len(body["correct"]) == 12 for body in scores)
    ledger.close()


def test_every_method_takes_classifiers(tmp_path: Path, models: dict[str, str]) -> None:
    """Each with what it exchanges: texts, examples, logits of classes, adapters with their heads."""
    open_to_all = {"texts": "everyone", "records": "agents", "logits": "coordinator", "weights": "coordinator"}
    agents = [{"model": models["bert"], "release": open_to_all} for _ in range(2)]
    others = {"fedavg": {"type": "fedavg", "aggregator": "flexlora"}, "kd": {"type": "kd"}}
    others |= {name: {"type": name} for name in ("central_text", "centralised")}
    config = config_of(tmp_path, models, agents=agents, baselines=others, rounds=1)
    ledger = run(tmp_path / "run", config)
    assert not bodies(ledger, "failure")
    sent = {"central_text": "texts", "centralised": "records", "kd": "logits", "fedavg": "weights"}
    for arm, kind in sent.items():
        assert kind in {body["payload"] for body in bodies(ledger, "transfer", arm)}, arm
        assert bodies(ledger, "scores", arm)
    ledger.close()


def test_logits_of_classes_need_no_common_tokenizer(tmp_path: Path, models: dict[str, str]) -> None:
    """An encoder and a causal model, of two tokenizers, have one consensus and learn from it."""
    agents = [{"model": models[name], "release": {"logits": "coordinator"}} for name in ("bert", "llama")]
    config = config_of(tmp_path, models, agents=agents, method={"type": "kd"}, rounds=1)
    ledger = run(tmp_path / "run", config)
    (event,) = bodies(ledger, "knowledge", "kd")
    assert {name: use["used"] for name, use in event["agents"].items()} == {"a0": 9, "a1": 9}
    learnt = [body["agent"] for body in bodies(ledger, "metric", "kd") if body["name"] == "exchange_loss"]
    assert sorted(learnt) == ["a0", "a1"] and not bodies(ledger, "failure")
    ledger.close()


def test_models_may_write_the_intent(tmp_path: Path, models: dict[str, str]) -> None:
    config = config_of(
        tmp_path, models, "llama llama", task={"output": "text"}, evaluation={"max_new_tokens": 4, "every": 2}
    )
    _, facts = agents_of(config, tmp_path / "run")
    assert facts[0]["preview"].count("intent:\nlearned (") == 1
    ledger = run(tmp_path / "run", config)
    assert not bodies(ledger, "failure") and bodies(ledger, "scores")
    ledger.close()


def test_a_classifier_is_exported_and_is_the_one_that_was_graded(tmp_path: Path, models: dict[str, str]) -> None:
    config = config_of(tmp_path, models, "bert llama", method={"type": "local"}, rounds=1, task={"transfer": 0})
    run(tmp_path / "run", config).close()
    for agent, model in (("a0", models["bert"]), ("a1", models["llama"])):
        to = tmp_path / agent
        assert "OK" in export_adapter(tmp_path / "run", agent, to) and "its answer is the same" in export_adapter(
            tmp_path / "run", agent, tmp_path / f"{agent}-again"
        )
        assert json.loads((to / "labels.json").read_text()) == list(INTENTS)
        with quiet(), torch.no_grad():
            base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=3)
            logits = PeftModel.from_pretrained(base, str(to)).eval()(input_ids=torch.tensor([[5, 6, 7]])).logits
        assert logits.shape == (1, 3) and torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": {"train": 31}}, "task.train is 31, but 4 agents need at least 8 examples each; set it to 32 or more"),
        ({"task": {"validation": 15}}, "task.validation is 15, but 4 agents need at least 4 examples each"),
        ({"task": {"output": "logits"}}, "output"),
        ({"evaluation": {"max_new_tokens": 9}}, "max_new_tokens is not used, because models choose a class"),
        ({"evaluation": UNWRITTEN | {"codebleu": True}}, "CodeBLEU compares programs, task 'intent' holds any text"),
        ({"agents": [{"model": "m", "data": {"path": "x"}}]}, "task 'intent' deals its examples to all agents"),
    ],
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, models: dict[str, str], changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        config_of(tmp_path, models, **changes)


def test_missing_files_are_named(tmp_path: Path, models: dict[str, str]) -> None:
    config = config_of(tmp_path, models, task={"path": "none.csv", "test_path": "none.txt"})
    with pytest.raises(ConfigError, match=r"\[task.path\] none.csv: expected a file.*\n\[task.test_path\] none.txt: "):
        check_places(config)


def test_an_encoder_does_not_write(tmp_path: Path, models: dict[str, str]) -> None:
    config = config_of(tmp_path, models, task={"output": "text"}, evaluation={"max_new_tokens": 4})
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        agents_of(config, tmp_path / "run")
