"""What cannot be split: agents that do not fit, configurations that cannot work, calls before a round."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from split_parts import PLAIN, RELEASE, SPLIT, config_of, models_and_questions
from tiny import WIDTH, make_tiny_model

from peertune.assemble import build_agents
from peertune.errors import ConfigError, MethodError
from peertune.ledger import SERVER
from peertune.lm.cut import _FAMILIES, ENCODERS
from peertune.methods import Budget, Run, Split
from peertune.methods.split import FAMILIES
from peertune.payloads import Activations, Number
from peertune.places import check_places


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return models_and_questions(tmp_path_factory.mktemp("models"))


def facts(name: str, **changes: Any) -> dict[str, Any]:
    usual = {"name": name, "model": "x", "family": "llama", "adapter": "1", "scale": 2.0, "layers": 4}
    return usual | changes


@pytest.mark.parametrize(
    ("fields", "agent", "message"),
    [
        ({}, {"adapter": "2", "model": "y"}, r"a1 \(y\) differs from the server \(x\)"),
        ({}, {"scale": 1.0}, "one adapter shape for all"),
        ({"cut": 4}, {}, "the model has 4 blocks: `cut` is 1 to 3, found 4 for a"),
        ({"cuts": {"a1": 5}}, {}, "found 5 for a1"),
        ({"cut": 2, "last": 2}, {}, r"first cut after 2 \(a.\): `last` is 3 to 4, found 2"),
        ({"last": 5}, {}, "`last` is 2 to 4, found 5"),
    ],
)
def test_agents_that_do_not_fit(fields: dict[str, Any], agent: dict[str, Any], message: str) -> None:
    run = Run(1, 0, Budget(1, 1), (), server=facts(SERVER))
    Split(run=run).check([facts("a0"), facts("a1")])
    with pytest.raises(MethodError, match=message):
        Split(run=run, **fields).check([facts("a0"), facts("a1", **agent)])


def test_a_model_that_cannot_be_cut_and_a_codec_that_cannot_be() -> None:
    odd = facts(SERVER, layers=0, family="opt")
    with pytest.raises(MethodError, match="x is a opt model, which cannot be cut; expected one of bloom, gpt2"):
        Split(run=Run(1, 0, Budget(1, 1), (), server=odd)).check([facts("a0", layers=0, family="opt")])
    with pytest.raises(ConfigError, match="keep is 1 or more"):
        Split(run=Run(1, 0, Budget(1, 1), (), server=facts(SERVER)), codec="topk").check([facts("a0")])
    with pytest.raises(MethodError, match="split needs a server"):
        Split(run=Run(1, 0, Budget(1, 1), ())).check([facts("a0")])
    assert set(FAMILIES) == set(_FAMILIES) and FAMILIES[-len(ENCODERS) :] == ENCODERS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"server": None}, r"split needs a server, which trains the middle; add `server: \{model"),
        ({"server": {"model": "other"}}, "one base model for all; a0 .* differs from the server"),
        ({"server": {"model": "x", "adapter": {"rank": 2}}}, "give a0 the server's `adapter`"),
        ({"method": SPLIT | {"cuts": {"zoe": 1}}}, "`cuts` names 'zoe', which is no agent"),
        ({"method": PLAIN | {"last": 2}}, "`shape: plain` has one cut"),
        ({"method": SPLIT | {"cut": 3, "last": 3}}, "`last` is 3, but 3 blocks are below the first cut"),
        ({"method": SPLIT | {"codec": "int8", "keep": 3}}, "keep is 1 or more, of topk only"),
        ({"method": SPLIT | {"codec": "int4"}}, "codec"),
        ({"agents": [{"model": "x"}]}, "needs weights released to the coordinator"),
        ({"agents": [{"model": "x", "release": {"weights": "coordinator"}}]}, "activations released to other agents"),
        (
            {"method": PLAIN, "agents": [{"model": "x", "release": RELEASE | {"labelled": "nobody"}}]},
            "labelled released to other agents, but a0 does not; set its `release.labelled: agents`",
        ),
    ],
)
def test_a_configuration_that_cannot_work(models: dict[str, str], changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        config_of(models, "x", **changes)


def test_validate_knows_how_many_blocks_there_are(models: dict[str, str]) -> None:
    check_places(config_of(models, "llama"))
    with pytest.raises(ConfigError, match=r"\[split\] split: the model has 2 blocks: `cut` is 1 to 1, found 2 for a0"):
        check_places(config_of(models, "llama", method=SPLIT | {"cut": 2}))
    with pytest.raises(ConfigError, match="`last` is 2 to 2, found 3"):
        check_places(config_of(models, "gpt2", method=SPLIT | {"last": 3}))


@pytest.mark.parametrize(
    ("more", "found"),
    [({"codec": "topk", "keep": WIDTH + 1}, "0 and 33"), ({"codec": "int8", "outliers": WIDTH}, "32 and 0")],
)
def test_validate_knows_how_wide_hidden_states_are(models: dict[str, str], more: dict[str, Any], found: str) -> None:
    for name in ("llama", "gpt2"):
        with pytest.raises(ConfigError, match=rf"\[split\] codec: hidden states have 32 channels; .*; found {found}"):
            check_places(config_of(models, name, method=SPLIT | more))


def test_validate_knows_which_models_can_be_cut(models: dict[str, str], tmp_path: Path) -> None:
    place = str(make_tiny_model(tmp_path / "opt", "opt"))
    with pytest.raises(ConfigError, match=r"\[cut\] split: .*opt is a opt model, which cannot be cut; expected one of"):
        check_places(config_of({**models, "opt": place}, "opt", method={"type": "local"}, baselines={"cut": SPLIT}))


def test_a_server_that_nobody_needs_is_refused(models: dict[str, str]) -> None:
    for method in ("local", "fedavg"):
        with pytest.raises(
            ConfigError, match=r"\[server\] no arm has a use for it.*; remove it, or add an arm of `split`"
        ):
            check_places(config_of(models, "llama", method={"type": method}))
    check_places(config_of(models, "llama", method={"type": "local"}, baselines={"cut": SPLIT}))


@pytest.mark.parametrize("verb", ["split_lower", "split_labelled", "split_leave"])
def test_a_client_that_has_joined_nothing(models: dict[str, str], tmp_path: Path, verb: str) -> None:
    spec = json.dumps({"config": config_of(models, "llama").model_dump_json(), "folder": str(tmp_path)})
    agents, _ = build_agents(spec.encode(), ["a0", SERVER])
    with pytest.raises(MethodError, match="a0 has joined no round"):
        agents["a0"].call(verb, [])
    with pytest.raises(MethodError, match="server serves no round"):
        agents[SERVER].call("split_middle", [Number(0), Activations({}, 0)])
