"""Agents of different tokenizers in this process: who teaches whom, what is learnt, and what a drop-out costs."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fedmkt_parts import FACTS, HOW, agent, examples, facts, models_of_three_tokenizers
from sums import Direct

from peertune.agent import Agent
from peertune.agent.teachers import lesson
from peertune.errors import ConfigError, MethodError
from peertune.federation import Federation
from peertune.ledger import SERVER
from peertune.lm.teach import expectations, with_teacher
from peertune.methods import Budget, FedMKT, Run
from peertune.methods.base import Public
from peertune.payloads import Alignment, Lexicon, Picks, Teaching, decode, encode

Make = Callable[..., "Group"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return models_of_three_tokenizers(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def learned(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The adapter of a client that knows the public answers."""
    one = agent(models["llama"], tmp_path_factory.mktemp("learned"), "a0", FACTS)
    one.fit(60)
    return one._lm.adapter_state("a0")


@pytest.fixture
def make_group(models: dict[str, str], learned: dict[str, torch.Tensor], tmp_path: Path) -> Make:
    return partial(Group, models, learned, tmp_path)


class Group:
    """Two clients, of which the first has learnt the public answers at home, and a server, in one round."""

    def __init__(
        self, models: dict[str, str], learned: dict[str, torch.Tensor], folder: Path, steps: int = 1, **more: Any
    ) -> None:
        self.cast = {
            "a0": agent(models["llama"], folder, "a0", FACTS),
            "a1": agent(models["gpt2"], folder, "a1"),
            SERVER: agent(models["opt"], folder, SERVER, []),
        }
        self.cast["a0"]._lm.load_adapter("a0", learned)
        self.engine = Direct(self.cast)
        self.fed = Federation(self.engine, ["a0", "a1"], server=True)
        public = (Public("text", False),) * len(FACTS)
        server = {"name": SERVER, "vocabulary": "server"}
        made = Run(1, 0, Budget(1, steps), public, agents=facts("x", "y"), server=server)
        self.method = FedMKT(run=made, top_k=8, **more)
        self.method.round(self.method.init(self.fed), self.fed, 1)
        answers = self.engine.host._answers.values()
        # bytes of what was assessed
        self.sent = [len(each) for each in answers if isinstance(each, bytes) and each[4:12] == b"assessed"]
        self.rows = self.fed.end_round().rows

    def taught(self, learner: str) -> list[dict[str, Any]]:
        return [row.body for row in self.rows if row.kind == "teachers" and row.body["learner"] == learner]

    def failures(self) -> list[dict[str, Any]]:
        return [row.body for row in self.rows if row.kind == "failure"]


def loss_on_facts(one: Agent) -> float:
    return float(one._learner.losses(one._test)[:, 0].sum())


@pytest.mark.parametrize("loss", ["kl", "gjsd"])
def test_the_server_learns_what_one_client_knows(
    make_group: Make, models: dict[str, str], tmp_path: Path, loss: Any
) -> None:
    """From its view alone: the server never trains on the answers themselves."""
    fresh = loss_on_facts(agent(models["opt"], tmp_path / "fresh", SERVER, []))
    group = make_group(steps=30, kd_weight=1.0, loss=loss)
    assert group.taught(SERVER)[0]["taught"] == {"a0": 4, "a1": 0} and not group.failures()
    assert loss_on_facts(group.cast[SERVER]) < 0.75 * fresh


def test_the_server_hands_it_on(make_group: Make, models: dict[str, str], tmp_path: Path) -> None:
    alone = loss_on_facts(agent(models["gpt2"], tmp_path / "fresh", "a1"))
    group = make_group(steps=30, kd_weight=1.0)
    assert group.taught("a1")[0]["taught"][SERVER] >= 3
    assert loss_on_facts(group.cast["a1"]) < 0.9 * alone


def test_a_client_that_has_diverged_teaches_nothing(make_group: Make) -> None:
    group = make_group()
    client = group.cast["a0"]
    for parameter in client._lm.trainable("a0").values():
        torch.nn.init.constant_(parameter, math.nan)
    sent = client.assess(Picks((0, 1, 2, 3)), 8, 1.0, 16)
    assert not sent.assessment().known.lengths.any() and np.isinf(sent.assessment().loss).all()
    server = group.cast[SERVER]
    server.hear(1, Picks((0, 1, 2, 3)), sent, HOW)
    assert server.study(Picks((0, 1, 2, 3)), Teaching(0.1, 1)).taught == {1: 0}


def test_the_choice_does_not_depend_on_the_length_of_prompts(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses on the same answers choose the same teachers, whatever comes before the answers."""
    one = agent(models["llama"], tmp_path, "a0")
    teachers, found = one._teachers, []
    for more in ("", "a longer beginning of the same text: "):
        problems = teachers.read(examples([(more + prompt, answer) for prompt, answer in FACTS]))
        known, _ = one._learner.assess(problems.rows, 8)
        nats = np.arange(1, 5, dtype=np.float32)
        monkeypatch.setattr(one._learner, "assess", lambda rows, k, same=(known, nats): same)
        found.append(teachers.assess(problems, 8).loss.tolist())
        monkeypatch.undo()
    assert found[0] == found[1] == pytest.approx([(at + 1) / len(answer) for at, (_, answer) in enumerate(FACTS)])


def test_what_is_claimed_is_what_the_model_loses_on_the_answers(models: dict[str, str], tmp_path: Path) -> None:
    """Summed over all tokens of an answer and its end, no prompt among them; as the loss of training has it."""
    one = agent(models["llama"], tmp_path, "a0")
    one.fit(3)
    found = one.assess(Picks((3, 0, 2, 1)), 8, 1.0, 16).assessment()
    rows = one._teachers.read(examples([FACTS[place] for place in (3, 0, 2, 1)])).rows
    np.testing.assert_allclose(found.nats, one._learner.losses(rows)[:, 0], rtol=1e-5)
    assert found.known.lengths.tolist() == [row.loss_tokens for row in rows]
    np.testing.assert_allclose(found.loss, found.nats / [len(FACTS[place][1]) for place in (3, 0, 2, 1)], rtol=1e-6)


def test_of_one_vocabulary_and_all_tokens_it_is_plain_distillation(models: dict[str, str], tmp_path: Path) -> None:
    one, other = (agent(models["llama"], tmp_path, name) for name in ("a0", "a1"))
    other.fit(5)
    which, width = Picks((0, 1, 2, 3)), one._lm.width
    one.hear(1, which, decode(encode(other.assess(which, width, 1.0, 16))), HOW)  # pyright: ignore
    problems = one._teachers.read(examples(FACTS))
    own = one._teachers.assess(problems, width)
    own = own.only(np.zeros(4, dtype=bool))  # which knows nothing, so everything is taught
    items, _ = lesson(own, one._teachers.take(), problems, Teaching(1.0, 1))
    plain = with_teacher(problems.rows, expectations(other._lm, "a1", problems.rows))
    for ours, theirs in zip(items, plain, strict=True):
        assert ours.teacher.ids is not None and ours.places is not None
        assert ours.places.tolist() == list(range(ours.row.loss_tokens))
        dense = torch.zeros_like(theirs.teacher.logp).scatter_(1, ours.teacher.ids.long(), ours.teacher.logp)
        torch.testing.assert_close(dense, theirs.teacher.logp, atol=5e-3, rtol=1e-3)  # fp16


def test_who_is_not_better_is_not_learnt_from(models: dict[str, str], tmp_path: Path) -> None:
    one = agent(models["llama"], tmp_path, "a0")
    which, problems = Picks((0, 1, 2, 3)), one._teachers.read(examples(FACTS))
    own = one._teachers.assess(problems, 8)
    one.hear(1, which, one.assess(which, 8, 1.0, 16), HOW)  # itself: no better
    heard = one._teachers.take()
    items, tally = lesson(own, heard, problems, Teaching(0.1, 1))
    assert tally.taught == {1: 0} and not any(len(item.teacher.logp) for item in items)
    selves, _ = lesson(own, heard, problems, Teaching(0.1, 1, on_no_teacher="self"))
    assert [len(item.teacher.logp) for item in selves] == [item.row.loss_tokens for item in items]


def test_several_teach_in_proportion(make_group: Make) -> None:
    group = make_group()
    server, which = group.cast[SERVER], Picks((0, 1, 2, 3))
    for number, name in enumerate(("a0", "a0", "a1"), start=1):
        server.hear(number, which, group.cast[name].assess(which, 8, 1.0, 16), HOW)
    heard, problems = server._teachers.take(), server._teachers.read(examples(FACTS))
    own = server._teachers.assess(problems, 8)
    items, tally = lesson(own, heard, problems, Teaching(0.1, 1, mode="weighted"))
    assert tally.taught[1] == tally.taught[2] == 4
    for item in items:
        assert item.teacher.weights is not None and item.places is not None
        sums = np.bincount(item.places.numpy(), weights=item.teacher.weights.numpy())
        assert sums.max() == pytest.approx(1) and sums[0] == pytest.approx(1)


def test_sorted_probabilities_are_taught_as_their_source_has_them(make_group: Make) -> None:
    """`loss: uld` needs positions alone: no entry is lost to a map of tokens, however few have a counterpart."""
    group = make_group(loss="uld", kd_weight=1.0, rule="exact")
    server, which = group.cast[SERVER], Picks((0, 1, 2, 3))
    losses = [row.body["value"] for row in group.rows if row.body.get("name") == "exchange_loss"]
    assert len(losses) == 2 and all(0 < loss <= 2 for loss in losses)  # sum |p - q|; a0 has nobody to learn from
    assert not group.failures()
    server.hear(1, which, group.cast["a0"].assess(which, 8, 1.0, 16), Alignment("exact"))
    heard, problems = server._teachers.take(), server._teachers.read(examples(FACTS))
    items, _ = lesson(server._teachers.assess(problems, 8), heard, problems, Teaching(1.0, 1, loss="uld"))
    sent = heard[1].known.logp[heard[1].rows]
    np.testing.assert_array_equal(np.concatenate([item.teacher.logp.numpy() for item in items]), sent)
    assert np.isfinite(sent).all() and (np.diff(sent, axis=1) <= 0).all()  # the most probable first, as ranks need it


def test_all_teach_alike_beside_own_data(make_group: Make) -> None:
    """KD across tokenizers: whoever knows a problem teaches it, well or not, and no answer is learnt as such."""
    group = make_group(mode="mean", beside="own")
    assert group.taught(SERVER)[0]["taught"] == {"a0": 4, "a1": 4} and group.taught("a0")[0]["taught"] == {SERVER: 4}
    assert group.cast[SERVER]._record.cursor == 0 and group.cast["a0"]._record.cursor == 8  # two batches of its own
    assert not group.failures()


def test_a_fresh_optimiser_forgets_and_a_kept_one_does_not(models: dict[str, str], tmp_path: Path) -> None:
    one = agent(models["llama"], tmp_path, "a0")
    one.fit(3)
    state = one._learner.trainer.state()
    assert state["steps"] == 3 and any(tensor.any() for name, tensor in state.items() if name.startswith("exp_avg"))
    one.renew()
    state = one._learner.trainer.state()
    assert state["steps"] == 0 and not any(t.any() for name, t in state.items() if name.startswith("exp_avg"))
    one.fit(1)
    assert one._learner.trainer.state()["steps"] == 1


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_is_counted_is_what_was_sent(make_group: Make, precision: str) -> None:
    """The bytes of every payload between agents, as they come out of its encoding."""
    group = make_group(precision=precision)
    rows = [row.body for row in group.rows if row.kind == "transfer" and row.body["payload"] == "assessed"]
    first, second, third = group.sent
    assert [row["bytes"] for row in rows] == [first, second, third, third]


def test_if_nobody_can_take_in_another_vocabulary_there_is_no_round(
    make_group: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Agent) -> Lexicon:
        raise ConfigError("no bytes")

    monkeypatch.setattr(Agent, "spell", refuse)
    with pytest.raises(MethodError, match="no model can take in the vocabulary of another"):
        make_group()


def test_a_client_that_drops_out_costs_itself_alone(make_group: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between what it sent and what it was to be sent."""

    def gone(self: Agent, *args: Any) -> None:
        if self.name == "a0":
            raise MemoryError
        hear(self, *args)

    hear = Agent.hear
    monkeypatch.setattr(Agent, "hear", gone)
    group = make_group()
    assert [(each["agent"], each["verb"]) for each in group.failures()] == [("a0", "hear")]
    assert group.taught(SERVER)[0]["taught"] == {"a0": 4, "a1": 0}
    assert group.taught("a0")[0]["taught"] == {} and SERVER in group.taught("a1")[0]["taught"]
