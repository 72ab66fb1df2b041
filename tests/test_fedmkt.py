"""FedMKT in whole runs and call by call: what travels, who learns from whom, and in which order."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fedmkt_parts import MKT, config, facts, models_of_three_tokenizers
from small import bodies, run

from peertune.engines.base import ANSWERS, Barrier, Engine, Entry, Ref
from peertune.federation import Federation
from peertune.ledger import COORDINATOR, SERVER, Ledger
from peertune.methods import Budget, FedMKT, Run
from peertune.methods.base import Public
from peertune.payloads import Tally, decode, encode


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    torch.set_num_threads(1)
    return models_of_three_tokenizers(tmp_path_factory.mktemp("models"))


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


def test_homogeneous_clients_end_with_one_adapter(models: dict[str, str], tmp_path: Path) -> None:
    ledger = run(tmp_path / "run", config(models, "llama llama", method=MKT | {"setting": "homogeneous"}))
    assert links(ledger)["a0", COORDINATOR] == ["weights", *["tally", "weights"] * 2]  # the first make the start
    first, second = (body["metrics"] for body in bodies(ledger, "scores", "fedmkt"))
    assert first["test_loss"] == second["test_loss"] and len(bodies(ledger, "aggregation")) == 3
    assert not bodies(ledger, "failure")


def test_kd_across_tokenizers(models: dict[str, str], tmp_path: Path) -> None:
    method = {"type": "kd", "vocabularies": "aligned", "server_model": True, "top_k": 8}
    made = config(models, method=method, rounds=1)
    ledger = run(tmp_path / "run", made)
    taught = {body["learner"]: body["taught"] for body in bodies(ledger, "teachers", "kd")}
    assert taught == {SERVER: {"a0": 6, "a1": 6}, "a0": {SERVER: 6}, "a1": {SERVER: 6}}
    kinds = {body["payload"] for body in bodies(ledger, "transfer", "kd") if body["destination"] == COORDINATOR}
    assert kinds == {"tally", "scores", "receipt"} and not bodies(ledger, "failure")


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
