"""FedMKT on tiny true models of different tokenizers: what travels, who teaches whom, what is learnt, bad input."""

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import bodies, run, small_config
from sums import Direct, Sums
from tiny import make_tiny_model
from tokenizers import decoders

from peertune.agent import Agent, AgentSettings
from peertune.agent.desk import AgentData
from peertune.agent.teachers import lesson
from peertune.config.schema import Release
from peertune.engines.base import ANSWERS, Barrier, Engine, Entry, Ref
from peertune.errors import ConfigError, MethodError, PayloadError
from peertune.federation import Federation
from peertune.ledger import COORDINATOR, SERVER, Ledger
from peertune.lm.model import LanguageModel
from peertune.lm.settings import AdapterSettings, TrainingSettings
from peertune.lm.teach import expectations, with_teacher
from peertune.methods import METHODS, Budget, FedMKT, Run
from peertune.methods.base import Public
from peertune.payloads import Alignment, Assessed, Lexicon, Picks, Tally, Teaching, decode, encode
from peertune.places import check_places
from peertune.profiles import AgentRecord
from peertune.tasks.base import Example

MKT: dict[str, Any] = {"type": "fedmkt", "top_k": 8}
HOW = Alignment()
COSTS: dict[str, Any] = {}
Make = Callable[..., "Group"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of three tokenizers."""
    torch.set_num_threads(1)
    root, sizes = tmp_path_factory.mktemp("models"), {"llama": 320, "gpt2": 290, "opt": 300}
    return {name: str(make_tiny_model(root / name, name, vocabulary=size)) for name, size in sizes.items()}


def config(models: dict[str, str], who: str = "llama gpt2", **changes: Any) -> Any:
    release = {"assessed": "agents", "weights": "coordinator"}
    agents = [{"model": models[name], "release": release} for name in who.split()]
    sections = {"agents": agents, "server": {"model": models["opt"]}, "method": MKT}
    return small_config(models, "llama", **(sections | changes))


# What travels, on a whole run


@pytest.fixture(scope="module")
def ledger(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return run(tmp_path_factory.mktemp("fedmkt") / "run", config(models))


def links(ledger: Ledger) -> dict[tuple[str, str], list[str]]:
    """What came over each link in rounds, and was no question of the coordinator."""
    found: dict[tuple[str, str], list[str]] = {}
    for event in ledger.events("transfer", "fedmkt"):
        if event.phase == "round" and event.body["source"] != COORDINATOR:
            found.setdefault((event.body["source"], event.body["destination"]), []).append(event.body["payload"])
    return found


def test_views_go_to_the_server_and_back_and_counts_to_the_coordinator(ledger: Ledger) -> None:
    twice = {(one, COORDINATOR): ["tally", "tally"] for one in ("a0", "a1", SERVER)}
    between = [link for name in ("a0", "a1") for link in ((name, SERVER), (SERVER, name))]
    assert links(ledger) == twice | dict.fromkeys(between, ["lexicon", "assessed", "assessed"])
    assert not bodies(ledger, "failure")


def test_everybody_learns_and_it_is_known_from_whom(ledger: Ledger) -> None:
    found = bodies(ledger, "teachers", "fedmkt")
    assert [body["learner"] for body in found] == [SERVER, "a0", "a1"] * 2
    sources = {SERVER: {"a0", "a1"}, "a0": {SERVER}, "a1": {SERVER}}
    for body in found:
        assert body["problems"] == 6 and set(body["taught"]) == set(body["refused"]) == sources[body["learner"]]
        assert sum(body["taught"].values()) <= 6 and not any(body["refused"].values())
    assert sum(count for body in found for count in body["taught"].values()) > 6
    updates = [body["value"] for body in bodies(ledger, "metric", "fedmkt") if body["name"] == "exchange_updates"]
    assert updates == [2.0] * 6
    before, after = bodies(ledger, "server_scores")
    assert after["metrics"]["test_loss"] < before["metrics"]["test_loss"]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_is_counted_is_what_was_sent(make_group: Make, precision: str) -> None:
    """The bytes of every payload between agents, as they come out of its encoding."""
    group = make_group(precision=precision)
    rows = [row.body for row in group.rows if row.kind == "transfer" and row.body["payload"] == "assessed"]
    first, second, third = group.sent
    assert [row["bytes"] for row in rows] == [first, second, third, third]


def test_homogeneous_clients_end_with_one_adapter(models: dict[str, str], tmp_path: Path) -> None:
    ledger = run(tmp_path / "run", config(models, "llama llama", method=MKT | {"setting": "homogeneous"}))
    assert links(ledger)["a0", COORDINATOR] == ["weights", *["tally", "weights"] * 2]  # the first make the start
    first, second = (body["metrics"] for body in bodies(ledger, "scores", "fedmkt"))
    assert first["test_loss"] == second["test_loss"] and len(bodies(ledger, "aggregation")) == 3
    assert not bodies(ledger, "failure")


# The calls of a round, exactly


class Script(Engine):
    """Remembers calls; every one succeeds."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, list[str]]] = []

    def submit(self, ref: Ref, args: Sequence[bytes | Ref]) -> None:
        named = [f"{arg.owner}.{arg.verb}" if isinstance(arg, Ref) else decode(arg).kind for arg in args]
        self.calls.append((ref.owner, ref.verb, named))

    def fetch(self, ref: Ref) -> bytes:
        answer = {"study": Tally(2, {0: 1, 1: 1}, {0: 0})}.get(ref.verb)
        assert (answer is None) == (ANSWERS[ref.verb] is None)
        return b"" if answer is None else encode(answer)

    def end_round(self, busy: Collection[str] = ()) -> Barrier:
        return Barrier({}, [], [])

    def close(self) -> None:
        """Nothing was started."""


def facts(*vocabularies: str) -> tuple[dict[str, Any], ...]:
    return tuple({"name": f"a{index}", "vocabulary": each} for index, each in enumerate(vocabularies))


def scripted(*vocabularies: str, **more: Any) -> tuple[list[tuple[str, str, list[str]]], list[Entry]]:
    """Calls of `init` and of the first round, and rows of the ledger."""
    engine, agents = Script(), facts(*vocabularies)
    server = {"name": SERVER, "vocabulary": "x"}
    made = Run(1, 0, Budget(1, 1), (Public("x", False),) * 2, agents=agents, server=server)
    method = FedMKT(run=made, **more)
    fed = Federation(engine, [each["name"] for each in agents], server=True)
    method.round(method.init(fed), fed, 1)
    return engine.calls, fed.end_round().rows


def test_the_steps_of_the_paper_in_their_order() -> None:
    calls, rows = scripted("x", "y", optimizer="fresh")
    ask = ["picks", "number", "number", "number"]
    assert calls == [
        (SERVER, "spell", []),
        ("a1", "meet", [f"{SERVER}.spell", "alignment"]),  # a0 has the server's vocabulary
        ("a1", "spell", []),
        (SERVER, "meet", ["a1.spell", "alignment"]),
        *[
            call
            for name in ("a0", "a1")
            for call in (
                (name, "renew", []),
                (name, "fit", ["number"]),
                (name, "assess", ask),
                (SERVER, "hear", ["number", "picks", f"{name}.assess", "alignment"]),
            )
        ],
        (SERVER, "renew", []),
        (SERVER, "study", ["picks", "teaching"]),
        (SERVER, "assess", ask),
        *[
            call
            for name in ("a0", "a1")
            for call in (
                (name, "hear", ["number", "picks", f"{SERVER}.assess", "alignment"]),
                (name, "renew", []),
                (name, "study", ["picks", "teaching"]),
            )
        ],
    ]
    found = [row.body for row in rows if row.kind == "teachers"]
    assert [body["learner"] for body in found] == [SERVER, "a0", "a1"]
    assert found[0] == {"learner": SERVER, "problems": 2, "taught": {SERVER: 1, "a0": 1}, "refused": {SERVER: 0}}


def test_without_a_lesson_for_the_server_nothing_goes_to_it() -> None:
    calls, _ = scripted("y", setting="llm2slm")
    assert [(owner, verb) for owner, verb, _ in calls if verb not in ("fit", "spell")] == [
        ("a0", "meet"),
        (SERVER, "assess"),
        ("a0", "hear"),
        ("a0", "study"),
    ]


# Agents in this process

FACTS = [("def f(x): return", " x + 1"), ("The quick brown", " fox jumps"), ("first", " = xs[0]"), ("a lazy", " dog.")]
OTHER = [("def add(a, b):\n", "    return b"), ("Return the", " sum of all"), ("total", "(xs) in the list")] * 3


def examples(texts: Sequence[tuple[str, str]]) -> list[Example]:
    return [Example(prompt, completion, "text", (), (), key=str(at)) for at, (prompt, completion) in enumerate(texts)]


def agent(source: str, folder: Path, name: str, train: Sequence[tuple[str, str]] = OTHER, **more: Any) -> Agent:
    lm = LanguageModel.load(source)
    lm.costs = COSTS.setdefault(source, lm.costs)  # which take longer to find than all else here
    lm.add_adapter(name, AdapterSettings(rank=4, alpha=8), seed=len(name))
    data = AgentData(examples(train), examples(OTHER[:3]), examples(FACTS), [], examples(FACTS), Sums())
    training = TrainingSettings(1e-2, batch_size=4, warmup_steps=0, max_length=64)
    release = Release(assessed="agents", metrics="coordinator").model_dump()
    settings = AgentSettings(name, 0, folder / name, training, 4, codebleu=False, release=release, guard={})
    return Agent(settings, lm, data, AgentRecord(static=(0.0,) * 8, histogram=(1.0, *[0.0] * 11)))


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


def test_kd_across_tokenizers(models: dict[str, str], tmp_path: Path) -> None:
    method = {"type": "kd", "vocabularies": "aligned", "server_model": True, "top_k": 8}
    made = config(models, method=method, rounds=1)
    ledger = run(tmp_path / "run", made)
    taught = {body["learner"]: body["taught"] for body in bodies(ledger, "teachers", "kd")}
    assert taught == {SERVER: {"a0": 6, "a1": 6}, "a0": {SERVER: 6}, "a1": {SERVER: 6}}
    kinds = {body["payload"] for body in bodies(ledger, "transfer", "kd") if body["destination"] == COORDINATOR}
    assert kinds == {"tally", "scores", "receipt"} and not bodies(ledger, "failure")


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


# Bad input


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
