"""Configurations: every mistake gets one line that says where, what was expected and what was found, and a cure."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from peertune.config import Config, combinations, read_config, resolve_recipe
from peertune.config.explain import _models_in
from peertune.config.reader import RECIPES
from peertune.config.schema import VERSION
from peertune.errors import ConfigError
from peertune.lm.source import MINILM, resolve
from peertune.methods import METHODS

PACKAGE = Path(combinations.__file__).parent.parent
BASE = """\
task: codelets
agents:
  - {model: bundled/qwen2}
  - {model: bundled/gpt2}
method: knexa
"""
ALL_KEYS = ", ".join(Config.model_fields)
ALL_METHODS = ", ".join(METHODS)
TEXT_METHODS = ", ".join(name for name in METHODS if name in ("knexa", "kd", "fedmkt", "central_text"))


def read(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(path, overrides)


def problem(tmp_path: Path, text: str, *overrides: str) -> str:
    """The error's text, with the file called c.yaml."""
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text, *overrides)
    message = str(error.value)
    assert "pydantic" not in message and "http" not in message and "Traceback" not in message
    return message.replace(str(tmp_path / "c.yaml"), "c.yaml")


# One mistake each


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ("budgett: {}", f"c.yaml:6: [top] unknown key 'budgett'; did you mean 'budget'? (valid: {ALL_KEYS})"),
        (
            "budget:\n  warm_start_steps: 1\n  local_step: 3",
            "c.yaml:8: [budget] unknown key 'local_step'; did you mean 'local_steps'? "
            "(valid: warm_start_steps, local_steps, exchange_steps)",
        ),
        ("budget: {local-steps: 3}", "c.yaml:6: [budget] unknown key 'local-steps'; did you mean 'local_steps'? "
         "(valid: warm_start_steps, local_steps, exchange_steps)"),
        ("yes: 3", f"c.yaml:6: [top] unknown key 'yes'; valid: {ALL_KEYS}"),
        ("rounds: many", 'c.yaml:6: [rounds] expected a whole number, found "many"'),
        ("rounds: 2.5", "c.yaml:6: [rounds] expected a whole number, found 2.5"),
        ("rounds: true", "c.yaml:6: [rounds] expected a whole number, found true"),
        ("rounds: 0", "c.yaml:6: [rounds] expected a number greater than 0, found 0"),
        ("rounds:", "c.yaml:6: [rounds] expected a whole number, found null"),
        ("rounds: 0x10", 'c.yaml:6: [rounds] expected a whole number, found "0x10"'),
        ("rounds: 1:30", 'c.yaml:6: [rounds] expected a whole number, found "1:30"'),
        ("rounds: 2020-01-01", 'c.yaml:6: [rounds] expected a whole number, found "2020-01-01"'),
        ("seed: -1", "c.yaml:6: [seed] expected a number greater than or equal to 0, found -1"),
        (f"seed: {1 << 63}", f"c.yaml:6: [seed] expected a number less than {1 << 63}, found {1 << 63}"),
        ("budget:", "c.yaml:6: [budget] expected a section of `key: value`, found null"),
        ("budget: [3]", "c.yaml:6: [budget] expected a section of `key: value`, found [3]"),
        ("baselines: [local]", 'c.yaml:6: [baselines] expected a section of `key: value`, found ["local"]'),
        ("training: {learning_rate: .nan}", "c.yaml:6: [training.learning_rate] expected a finite number, found NaN"),
        ("training: {learning_rate: '1'}", 'c.yaml:6: [training.learning_rate] expected a number, found "1"'),
        ("adapter: {dropout: 1}", "c.yaml:6: [adapter.dropout] expected a number less than 1, found 1"),
        ("adapter: {target_modules: q}", 'c.yaml:6: [adapter.target_modules] expected a list, found "q"'),
        ("evaluation: {k: []}", "c.yaml:6: [evaluation.k] expected a list of at least 1, found an empty list"),
        ("evaluation: {k: [1, 0]}", "c.yaml:6: [evaluation.k.1] expected a number greater than 0, found 0"),
        ("evaluation: {codebleu: 1}", "c.yaml:6: [evaluation.codebleu] expected true or false, found 1"),
        ("engine: {workers: many}", "c.yaml:6: [engine.workers] expected a whole number or 'auto', found \"many\""),
        ("engine: {device: tpu}", "c.yaml:6: [engine.device] expected 'auto', 'cpu' or 'cuda', found \"tpu\""),
        ("sandbox: none", "c.yaml:6: [sandbox] expected 'bubblewrap' or 'unsafe', found \"none\""),
        (
            "baselines: {Random: local}",
            "c.yaml:6: [baselines.Random] expected text that matches '^[a-z][a-z0-9_]{0,31}$', found \"Random\"",
        ),
        (
            "baselines: {random: {type: knexa, matchmakr: uniform}}",
            "c.yaml:6: [baselines.random] unknown key 'matchmakr'; did you mean 'matchmaker'? "
            "(valid: type, kd_weight, temperature, tested, confident, keep_best, rollback, reward, gain_weight, "
            "byte_weight, matchmaker, router, route, protocols, max_pairs, retries, audit, agreed)",
        ),
        (
            "baselines: {local: {type: local, kd_weight: [0, 1]}}",
            f"c.yaml:6: [baselines.local] 'kd_weight' is not used by type 'local', only by {TEXT_METHODS}; "
            "remove it or change the type",
        ),
        ("baselines: {other: swarm}", f"c.yaml:6: [baselines.other] unknown type 'swarm'; valid: {ALL_METHODS}"),
        ("version: 0", "c.yaml:6: [version] expected a number greater than or equal to 1, found 0"),
        ("version: '1'", 'c.yaml:6: [version] expected a whole number, found "1"'),
        (
            f"version: {VERSION + 1}",
            f"c.yaml has configuration version {VERSION + 1}, this peertune knows up to {VERSION}; upgrade peertune",
        ),
        ("rounds: 1\nrounds: 2", "c.yaml:7: this is not valid YAML (the key 'rounds' stands twice in one section)"),
        ("budget: {local_steps: 3", "c.yaml:7: this is not valid YAML (expected ',' or '}', but got '<stream end>')"),
        ("budget:\n\tx: 3", "c.yaml:7: this is not valid YAML (found character '\\t' that cannot start any token)"),
        ("? [a, b]\n: c", "c.yaml:6: this is not valid YAML (a key must be a name)"),
        ("budget: &a {x: *a}", "c.yaml:1: this is not valid YAML (sections nested too deeply, or in themselves)"),
        ("x: " + "[" * 3000, "c.yaml:1: this is not valid YAML (sections nested too deeply, or in themselves)"),
        ("seed: " + "9" * 5000, f"c.yaml:6: this is not valid YAML ('{'9' * 40}' is not a number)"),
        ("seed: !!int x", "c.yaml:6: this is not valid YAML ('x' is not a number)"),
        ("---\nseed: 1", "c.yaml:6: this is not valid YAML (but found another document)"),
        ("x: \x01", "c.yaml:1: this is not valid YAML (unreadable characters)"),
    ],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_a_mistake_is_one_line(tmp_path: Path, added: str, expected: str) -> None:
    assert problem(tmp_path, f"{BASE}{added}\n") == expected


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("task: codelets", "task: codeletz", "c.yaml:1: [task] unknown type 'codeletz'; did you mean 'codelets'? "
         "(valid: codelets, mbpp, humaneval, records, answers, intent)"),
        ("method: knexa", "method: {kd_weight: [0, 1]}", "c.yaml:5: [method] the key 'type' is missing; "
         f"valid: {ALL_METHODS}"),
        ("method: knexa", "method: 3", "c.yaml:5: [method] expected a section of `key: value`, found 3"),
        ("method: knexa", "method: {type: knexa, kd_weight: [0.2]}",
         "c.yaml:5: [method.kd_weight] expected a list of more than 1, found no more"),
        ("method: knexa", "method: {type: knexa, kd_weight: [0.2, 1.5]}",
         "c.yaml:5: [method.kd_weight.1] expected a number less than or equal to 1, found 1.5"),
        ("method: knexa", "method:\n  type: knexa\n  matchmaker:\n    type: uniform\n    beta: 2.0",
         "c.yaml:9: [method.matchmaker] 'beta' is not used by type 'uniform', only by linucb; "
         "remove it or change the type"),
        ("task: codelets", "task: {type: codelets, partition: {type: iid, alpha: 0.1}}",
         "c.yaml:1: [task.partition] 'alpha' is not used by type 'iid', only by dirichlet; "
         "remove it or change the type"),
        ("task: codelets", "task: {type: codelets, path: x}",
         "c.yaml:1: [task] 'path' is not used by type 'codelets', only by mbpp, humaneval, answers, intent; "
         "remove it or change the type"),
        ("model: bundled/gpt2", "name: a", "c.yaml:4: [agents.1] the key 'model' is missing; add it"),
        ("model: bundled/gpt2", "model: x, release: {texts: all}",
         "c.yaml:4: [agents.1.release.texts] expected 'coordinator', 'agents', 'everyone' or 'nobody', found \"all\""),
        ("{model: bundled/gpt2}", "bundled/gpt2",
         'c.yaml:4: [agents.1] expected a section of `key: value`, found "bundled/gpt2"'),
        ("method: knexa", "", "c.yaml:1: [top] the key 'method' is missing; add it"),
        ("model: bundled/gpt2", "model: x, name: a b",
         "c.yaml:4: [agents.1.name] expected text that matches '^[A-Za-z][A-Za-z0-9_-]{0,31}$', found \"a b\""),
    ],
)  # fmt: skip
def test_a_mistake_in_a_section(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert problem(tmp_path, BASE.replace(old, new)) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "an empty file"), ("# nothing\n", "an empty file"), ("- a\n- b\n", "a list"), ("hello\n", "a single value")],
)
def test_files_without_sections(tmp_path: Path, text: str, found: str) -> None:
    assert problem(tmp_path, text) == f"c.yaml:1: expected sections such as `task:` and `agents:`, found {found}"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing.yaml cannot be read .No such file"):
        read_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot be read .Is a directory"):
        read_config(tmp_path)
    (tmp_path / "c.yaml").write_bytes(BASE.encode("utf-16"))
    with pytest.raises(ConfigError, match="is not UTF-8 text; a configuration is a YAML file"):
        read_config(tmp_path / "c.yaml")


def test_every_mistake_is_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = BASE + "rounds: x\nseed: x\nevaluation: {every: x}\n" + "#\n" * 5 + "budgett: 3\n"
    lines = problem(tmp_path, text).splitlines()
    assert [line.split(" expected")[0].split(" unknown")[0] for line in lines] == [
        "c.yaml:6: [rounds]",
        "c.yaml:7: [seed]",
        "c.yaml:8: [evaluation.every]",
        "c.yaml:14: [top]",
    ]


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, len(BASE)), st.integers(0, 12), st.text(" \n\t:-[]{}?&*!|>'\"%@`#,abc01.~é\x00\ud7ff", max_size=8)
)
def test_any_damage_is_a_config_error(tmp_path: Path, place: int, cut: int, put: str) -> None:
    text = BASE[:place] + put + BASE[place + cut :]
    try:
        assert isinstance(read(tmp_path, text), Config)
    except ConfigError as error:
        assert str(error)


# Values


def test_numbers_text_and_names(tmp_path: Path) -> None:
    text = BASE.replace("model: bundled/gpt2", "model: x, name: no")
    config = read(tmp_path, f"{text}seed: 010\nrounds: 1_0\ntraining: {{learning_rate: 5e-3, clip_norm: 1}}\n")
    assert (config.seed, config.rounds, config.training.learning_rate) == (10, 10, 0.005)
    assert config.agent_names() == ["a0", "no"]
    assert list(config.arms()) == ["knexa"]


def test_a_bare_name_is_a_type_with_its_defaults(tmp_path: Path) -> None:
    bare = read(tmp_path, BASE + "baselines: {local: local, random: {type: knexa, route: set, matchmaker: uniform}}\n")
    full = read(
        tmp_path,
        BASE.replace("task: codelets", "task: {type: codelets}").replace("method: knexa", "method: {type: knexa}")
        + "baselines: {local: {type: local}, random: {type: knexa, route: set, matchmaker: {type: uniform}}}\n",
    )
    assert bare == full
    assert list(bare.arms()) == ["local", "random", "knexa"]


def test_anchors_and_merges_work_and_stay_apart(tmp_path: Path) -> None:
    text = BASE + "baselines: {one: &one {type: knexa, retries: 2}, two: *one, three: {<<: *one, temperature: 1.0}}\n"
    config = read(tmp_path, text, "baselines.two.temperature=2.0")
    assert [getattr(method, "temperature", None) for method in config.baselines.values()] == [0.0, 2.0, 1.0]


def test_a_config_survives_its_json(tmp_path: Path) -> None:
    config = read(tmp_path, BASE + "evaluation: {samples: 2, k: [1, 2], temperature: 0.5}\n")
    assert Config.model_validate_json(config.model_dump_json()) == config


# --set


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("seed=5", "seed", 5),
        ("budget.local_steps=4", "budget.local_steps", 4),
        ("training.learning_rate=5e-3", "training.learning_rate", 0.005),
        ("agents.1.model=other", "agents.1.model", "other"),
        ("method.kd_weight=[0.1, 0.3]", "method.kd_weight", (0.1, 0.3)),
        ("method.router=beta", "method.router.type", "beta"),
        ("task.partition={type: dirichlet, alpha: 2.0}", "task.partition.alpha", 2.0),
        ("baselines.alone=local", "baselines.alone.type", "local"),
        ("engine.workers=0", "engine.workers", 0),
        ("agents.0.name=a=b", "", None),
    ],
)
def test_overrides(tmp_path: Path, override: str, place: str, value: object) -> None:
    if not place:
        assert "--set 'agents.0.name=a=b': [agents.0.name] expected text that" in problem(tmp_path, BASE, override)
        return
    found: object = read(tmp_path, BASE, override)
    for key in place.split("."):
        if isinstance(found, tuple):
            found = found[int(key)]
        else:
            found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == value


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert read(tmp_path, BASE, "seed=1", "seed=2").seed == 2
    assert problem(tmp_path, BASE, "seed=1", "seed=x").startswith("--set 'seed=x': [seed]")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("x", "--set 'x': expected key=value, such as budget.local_steps=4"),
        ("=3", "--set '=3': expected key=value, such as budget.local_steps=4"),
        ("rounds=[", "--set 'rounds=[': '[' is not a valid YAML value"),
        ("rounds={a: 1, a: 2}", "--set 'rounds={a: 1, a: 2}': '{a: 1, a: 2}' is not a valid YAML value"),
        ("seed=x", "--set 'seed=x': [seed] expected a whole number, found \"x\""),
        ("seed=", "--set 'seed=': [seed] expected a whole number, found null"),
        ("seed.x=1", "--set 'seed.x=1': [seed] expected a whole number, found {\"x\": 1}"),
        ("rounds.x.y=1", "--set 'rounds.x.y=1': 'rounds' is a value, not a section"),
        ("evaluation.k.0.x=1", "--set 'evaluation.k.0.x=1': '0' is a value, not a section"),
        ("budgett=4", f"--set 'budgett=4': [top] unknown key 'budgett'; did you mean 'budget'? (valid: {ALL_KEYS})"),
        ("agents.9.model=x", "--set 'agents.9.model=x': '9' is not a place in a list of 2 (counted from 0)"),
        ("agents.-1.model=x", "--set 'agents.-1.model=x': '-1' is not a place in a list of 2 (counted from 0)"),
        ("agents.²=x", "--set 'agents.²=x': '²' is not a place in a list of 2 (counted from 0)"),
        ("agents.0.modell=x", "--set 'agents.0.modell=x': [agents.0] unknown key 'modell'; did you mean 'model'? "
         "(valid: model, adapter, release, guard, name, data, fault)"),
        ("method.matchmaker.beta=3", "--set 'method.matchmaker.beta=3': [method.matchmaker] the key 'type' is missing; "
         "valid: linucb, pairwise, uniform, round_robin, hetero_greedy"),
        ("method={type: knexa, route: set, matchmaker: {type: pairwise, without: [history]}}",
         "--set 'method={type: knexa, route: set, matchmaker: {type: pairwise, without: [history]}}': "
         "[method.matchmaker.without.0] expected 'overlap', 'complementarity', 'skill', 'family', 'recency', 'gains', "
         "'sides', 'trust', 'lead' or 'protocol', found \"history\""),
        ("version=9", f"--set 'version=9': [version] expected a number less than or equal to {VERSION}, found 9"),
    ],
)  # fmt: skip
def test_bad_overrides(tmp_path: Path, override: str, expected: str) -> None:
    text = BASE + ("rounds: 4\nevaluation: {k: [1]}\n" if "." in override else "")
    assert problem(tmp_path, text, override) == expected


# Combinations that parse and cannot work

OWN = "data: {path: x.jsonl}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["agents.0.name=a", "agents.1.name=a"], "the name 'a' stands more than once; give every agent its own"),
        (["agents.0.name=a1"], "the name 'a1' stands more than once; give every agent its own"),
        (["agents.0.name=coordinator"], "agents: the name 'coordinator' is reserved; choose another one"),
        (["agents.0.name=server"], "agents: the name 'server' is reserved; choose another one"),
        (["baselines.start=local"], "baselines: the name 'start' is reserved; choose another one"),
        (["baselines.knexa=local"], "'knexa' is the name of the method itself; name the baseline otherwise"),
        (["task=humaneval"], "task 'humaneval' has no training data of its own; give a0, a1 a `data: {path: ...}`"),
        (["task={type: records, test: x}"], "task 'records' has no training data of its own; give a0, a1"),
        ([f"agents.0={{model: x, {OWN}}}"], "deals its examples to all agents or to none; a1 have no `data`"),
        ([f"agents=[{{model: x, {OWN}}}]", "task.partition=iid", "method=local"],
         "task.partition is not used, because every agent has `data` of its own; remove it"),
        ([f"agents=[{{model: x, {OWN}}}]", "task.train=10", "method=local"], "task.train is not used, because"),
        (["task.train=15"], "task.train is 15, but 2 agents need at least 8 examples each; set it to 16 or more"),
        (["task.validation=7"], "task.validation is 7, but 2 agents need at least 4 examples each; set it to 8"),
        (["task=mbpp", "task.partition=by_category", "method=local"],
         "by_category gives each category to one agent, and 2 agents are more than the 1 categories of 'mbpp'"),
        (["task.partition={type: experts, experts: 2}"], "2 experts need more than 2 agents; lower `experts`"),
        ([f"agents=[{', '.join(['{model: x}'] * 14)}]", "task.partition={type: experts, experts: 13}"],
         "13 experts cannot share the 12 categories of 'codelets'; lower `experts` or use another partition"),
        (["agents=[{model: x}]"],
         "knexa needs at least 2 agents, which learn from each other; add agents or use `method: local`"),
        (["task.transfer=0"], "knexa needs public prompts that agents answer for each other; set `task.transfer`"),
        (["task=mbpp"], "knexa needs public prompts that agents answer for each other; set `task.transfer`"),
        (["method.max_pairs=2"], "max_pairs is 2, but 2 agents form 1 pairs"),
        (["agents.1.release.texts=nobody"], "knexa (knexa) needs texts released to other agents, but a1 does not; "
         "set its `release.texts: agents`"),
        (["agents.1.release.texts=coordinator"], "needs texts released to other agents, but a1 does not"),
        (["method=central_text"], "central_text (central_text) needs texts released to the coordinator and other "
         "agents, but a0 does not; set its `release.texts: everyone`"),
        (["method=centralised"], "centralised (centralised) needs records released to other agents, but a0 does not; "
         "set its `release.records: agents`"),
        (["method=central_text", "agents=[{model: x}]"], "central_text needs at least 2 agents, which learn from each"),
        (["baselines.vote=central_text", "method=local", "task.transfer=0"],
         "vote: central_text needs public prompts that agents answer for each other; set `task.transfer`"),
        (["agents.0.release.gain=agents"], "needs gain released to the coordinator, but a0 does not"),
        (["agents.0.release.profile=nobody"], "set its `release.profile: coordinator`"),
        (["method=local", "agents.0.release.receipt=nobody"], "every method needs receipt released to the coordinator"),
        (["method=local", "agents.0.release.scores=agents"], "set its `release.scores: coordinator`"),
        (["task={type: mbpp, transfer: x.jsonl}", "method={type: knexa, route: set, matchmaker: hetero_greedy}"],
         "knexa: hetero_greedy compares categories, task 'mbpp' has one; use another matchmaker"),
        (["method={type: knexa, matchmaker: uniform}"],
         "knexa: `matchmaker` is about pairs, and `route: prompt` makes none; set `route: set`"),
        (["method={type: knexa, matchmaker: {type: pairwise, width: 1.0}}"], "knexa: `matchmaker` is about pairs"),
        (["method={type: knexa, max_pairs: 1}"], "knexa: `max_pairs` is about pairs"),
        (["method={type: knexa, route: set, retries: 2}"], "knexa: `retries` is about single prompts"),
        (["method={type: knexa, route: set, router: {type: beta, floor: 0.5}}"],
         "knexa: `router` is about single prompts"),
        (["method=local", "task.transfer=24"],
         "task.transfer is not used, because here no agent answers prompts for another; remove it"),
        (["method=local", f"agents=[{{model: x, {OWN}}}]", "task={type: records, test: x, transfer: y}"],
         "task.transfer is not used"),
        (["engine={workers: 0, deadline: 5.0}"],
         "engine.deadline is not used, because `workers: 0` has no process to wait for; remove it"),
        (["task={type: mbpp, transfer: prompts.jsonl}"],
         "`route: prompt` learns from public tests or a probe whose texts are right, and task 'mbpp' has neither here"),
        (["evaluation.k=[1, 4]"], "Pass@4 needs at least 4 samples, there are 1"),
        (["evaluation.samples=4"], "greedy decoding makes all samples the same; set `temperature` above 0"),
        ([f"agents=[{{model: x, {OWN}}}]", "task={type: records, test: x}", "method=local", "evaluation.codebleu=true"],
         "CodeBLEU compares programs, task 'records' holds any text; remove `codebleu`"),
    ],
)  # fmt: skip
def test_impossible_combinations(tmp_path: Path, changes: list[str], expected: str) -> None:
    message = problem(tmp_path, BASE, *changes)
    assert expected in message
    assert message.startswith("c.yaml: ") and "\n" not in message


@pytest.mark.parametrize(
    "changes",
    [
        ["agents=[{model: x}]", "method=local"],
        ["task.train=16", "task.validation=8"],
        ["agents.0.release.texts=everyone", "agents.0.release.gain=everyone"],
        ["method=local", "agents.0.release.texts=nobody", "agents.0.release.profile=nobody"],
        ["task={type: mbpp, transfer: prompts.jsonl}", "method={type: knexa, route: set}"],
        ["task={type: mbpp, transfer: 50}"],
        ["method=local", "task={type: mbpp, transfer: prompts.jsonl}", "baselines.random={type: knexa, route: set}"],
        ["method=local", "task.transfer=96"],
        ["method={type: knexa, matchmaker: pairwise}"],
        ["method=local", "task.transfer=0"],
        ["engine={workers: 0, deadline: 600.0}"],
        ["engine={workers: 1, deadline: 5.0}"],
        ["task.partition=iid", "method={type: knexa, route: set, matchmaker: hetero_greedy}"],
        ["method={type: knexa, route: set, matchmaker: {type: pairwise, without: [recency, sides]}}"],
        [
            f"agents=[{{model: x, {OWN}}}, {{model: y, {OWN}}}]",
            "task={type: humaneval, transfer: prompts.jsonl}",
            "method={type: knexa, route: set}",
        ],
        ["evaluation={samples: 4, k: [1, 4], temperature: 0.8}"],
        [f"agents=[{', '.join(['{model: x}'] * 12)}]", "task.partition=by_category"],
    ],
)
def test_combinations_at_the_limit_of_the_possible(tmp_path: Path, changes: list[str]) -> None:
    read(tmp_path, BASE, *changes)


# Recipes


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_recipes(recipe: Path) -> None:
    config = read_config(recipe)
    assert resolve_recipe(recipe.stem) == recipe
    for agent in config.agents:
        if agent.model.startswith("bundled/") and agent.model != MINILM:  # which a package of its own carries
            resolve(agent.model)
    assert recipe.read_text(encoding="utf-8").startswith("# "), "`peertune ls` shows the first comment"


def test_recipes_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_recipe("demo") == RECIPES / "demo.yaml"
    with pytest.raises(ConfigError, match="did you mean the recipe 'demo'"):
        resolve_recipe("dem")
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    for source in ("nothing-like-it", "missing/file.yaml", "", ".", "x" * 5000, "a\0b"):
        with pytest.raises(
            ConfigError, match=f"expected a YAML file or the name of a recipe; bundled recipes: {names}"
        ):
            resolve_recipe(source)
    (tmp_path / "mine.yaml").write_text(BASE)
    assert resolve_recipe("mine.yaml") == Path("mine.yaml")


# The schema is used, and reading it is light


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            yield from sections(inner)


def names_read_outside_config() -> set[str]:
    """Attributes read, and the fields of classes that take a whole section by keyword."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "config":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                found.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                found.add(str(node.slice.value))  # of the configuration in the ledger
    return found


def test_no_key_is_accepted_and_ignored() -> None:
    used = names_read_outside_config()
    keys = {key for section in sections(Config) for key in section.model_fields}
    kinds = {
        "texts",
        "profile",
        "claims",
        "verdicts",
        "gain",
        "scores",
        "receipt",
        "weights",
        "activations",
        "labelled",
        "gradient",
        "assessed",
        "lexicon",
        "tally",
    }  # of `release`, looked up by kind
    assert keys - used - kinds == set()


def test_reading_a_configuration_imports_no_torch() -> None:
    code = (
        "import sys; from peertune.config import read_config, resolve_recipe; read_config(resolve_recipe('demo'));"
        "print(sorted({'torch', 'transformers', 'peft', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
