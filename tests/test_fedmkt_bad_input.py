"""What FedMKT refuses: settings that cannot work, and claims, vocabularies and public data that cannot be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedmkt_parts import FACTS, HOW, MKT, agent, config, examples, facts, models_of_three_tokenizers
from tokenizers import decoders

from peertune.errors import ConfigError, MethodError, PayloadError
from peertune.ledger import SERVER
from peertune.methods import METHODS, Budget, Run
from peertune.methods.base import Public
from peertune.payloads import Assessed, Lexicon, Picks, Teaching
from peertune.places import check_places


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return models_of_three_tokenizers(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"server_model": False}, "goes through a server's model; set `server_model: true`"),
        ({"rollback": 0.1}, "`rollback` is of a consensus in one vocabulary"),
        ({"precision": "fp32"}, "sends the `top_k` most probable tokens in fp16 or int8"),
    ],
)
def test_what_has_no_meaning_across_tokenizers_is_refused(
    models: dict[str, str], changes: dict[str, Any], expected: str
) -> None:
    method = {"type": "kd", "vocabularies": "aligned", "server_model": True}
    with pytest.raises(ValueError, match=expected):
        config(models, method=method | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"server": None}, "fedmkt needs a server; add a section"),
        ({"task": {"transfer": 0}}, "fedmkt needs public problems that all hold, with answers"),
        ({"method": MKT | {"setting": "one_to_one"}}, "`setting: one_to_one` has one client, not 2"),
        (
            {"method": MKT | {"setting": "homogeneous"}},
            "`setting: homogeneous` needs one base model for all agents; a1",
        ),
        ({"method": MKT | {"beta": 0.3}}, "`beta` is of the generalised JSD"),
        ({"method": MKT | {"top_k": 0}}, "greater than 0"),
        ({"agents": [{"model": "x"}, {"model": "y"}]}, "needs assessed released to other agents, but a0 does not"),
    ],
)
def test_what_cannot_work_is_refused(models: dict[str, str], changes: dict[str, Any], expected: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=expected):
        config(models, **changes)


def test_no_more_tokens_are_listed_than_any_model_has(models: dict[str, str]) -> None:
    """Also of the server, where the method has one; the tokenizers have 320, 290 and 300 tokens."""
    aligned = {"type": "kd", "vocabularies": "aligned", "server_model": True}
    for method in (MKT, aligned):
        check_places(config(models, "llama", method=method | {"top_k": 300}))
        with pytest.raises(ConfigError, match=r"`top_k` is 301, but .*opt has 300 tokens; lower it$"):
            check_places(config(models, "llama", method=method | {"top_k": 301}))
    with pytest.raises(ConfigError, match=r"\[fedmkt\] fedmkt: `top_k` is 291, but .*gpt2 has 290 tokens; lower it$"):
        check_places(config(models, method=MKT | {"top_k": 291}))


def test_what_only_models_tell_is_refused_before_a_round() -> None:
    public = (Public("x", False),)
    with pytest.raises(MethodError, match="needs a server"):
        METHODS["fedmkt"](run=Run(1, 0, Budget(1, 1), public)).check(facts("x"))
    server = {"name": SERVER, "vocabulary": "x"}
    with pytest.raises(MethodError, match="public problems"):
        METHODS["fedmkt"](run=Run(1, 0, Budget(1, 1), (), server=server)).check(facts("x"))
    with pytest.raises(MethodError, match="one_to_one has one client, found 2"):
        METHODS["fedmkt"](run=Run(1, 0, Budget(1, 1), public, server=server), setting="one_to_one").check(
            facts("x", "y")
        )


def test_a_tokenizer_without_bytes_is_named(models: dict[str, str], tmp_path: Path) -> None:
    one = agent(models["llama"], tmp_path, "a0")
    one._lm.tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ConfigError, match="llama.*expected a decoder that keeps every byte.*found WordPiece"):
        one.spell()


def test_public_data_that_a_client_does_not_share_teach_nobody(models: dict[str, str], tmp_path: Path) -> None:
    server = agent(models["opt"], tmp_path, SERVER, [])
    other = agent(models["opt"], tmp_path, "a0")
    which = Picks((0, 1))
    other._desk._public._all[0] = examples([("another", FACTS[0][1])])[0]
    server.hear(1, which, other.assess(which, 8, 1.0, 16), HOW)
    tally = server.study(which, Teaching(0.1, 1))
    assert tally.refused == {1: 1} and tally.problems == 2


def test_claims_in_an_unknown_or_too_large_vocabulary_are_their_senders_failure(
    models: dict[str, str], tmp_path: Path
) -> None:
    server, client = agent(models["opt"], tmp_path, SERVER, []), agent(models["gpt2"], tmp_path, "a0")
    which = Picks((0, 1))
    sent = client.assess(which, 8, 1.0, 16)
    with pytest.raises(PayloadError, match="a vocabulary that the agent has met"):
        server.hear(1, which, sent, HOW)
    server.meet(client.spell(), HOW)
    with pytest.raises(PayloadError, match="expected 3 problems, found 2"):
        server.hear(1, Picks((0, 1, 2)), sent, HOW)
    with pytest.raises(PayloadError, match="a vocabulary of 290 tokens, found 289"):
        server.hear(1, which, Assessed(sent.tensors, 289), HOW)
    server.hear(1, which, sent, HOW)
    again = agent(models["opt"], tmp_path, SERVER, [])  # a new process
    again.hear(1, which, sent, HOW)
    (kept,) = (tmp_path / SERVER / "vocabularies").glob("*.lexicon")
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(PayloadError):
        agent(models["opt"], tmp_path, SERVER, []).hear(1, which, sent, HOW)
    with pytest.raises(PayloadError, match="a token that ends a text"):
        server.meet(Lexicon(client.spell().tensors | {"roles": np.full(7, -1, np.int32)}, 290), HOW)


def test_a_lie_about_the_loss_is_not_believed(models: dict[str, str], tmp_path: Path) -> None:
    server, liar = agent(models["opt"], tmp_path, SERVER, []), agent(models["opt"], tmp_path, "a1")
    which = Picks((0, 1, 2, 3))
    sent = liar.assess(which, 8, 1.0, 16)
    server.hear(1, which, Assessed(sent.tensors | {"nats": np.full(4, 1e-3, np.float32)}, sent.width), HOW)
    tally = server.study(which, Teaching(0.1, 1))
    assert tally.refused == {1: 4} and tally.taught == {1: 0}


def test_answers_that_are_empty_or_cut_off_are_left_alone(models: dict[str, str], tmp_path: Path) -> None:
    one = agent(models["llama"], tmp_path, "a0")
    problems = one._teachers.read(examples([("a", ""), ("b", " c"), ("d", "long " * 40)]))
    assert problems.whole.tolist() == [False, True, False]
    assert np.isfinite(one._teachers.assess(problems, 4).loss).tolist() == [False, True, False]
    with pytest.raises(PayloadError, match="public problems with answers, found none"):
        one._teachers.read(examples([("a", "")]))
    with pytest.raises(PayloadError, match="k of 1 or more, found 16 and 0"):
        one.assess(Picks((0,)), 0, 1.0, 16)
