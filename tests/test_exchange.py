"""The verbs of an exchange on true agents with planted texts: gates, lessons, roll-back, and agents that do harm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sums import PROBE, TRANSFER, WRONG, Sums, call, make_agent, plant, right, surprised
from tiny import make_tiny_model, randomise_adapter

from peertune.agent import Agent
from peertune.agent.faults import Liar, shuffled
from peertune.agent.learner import MOST_REPEATS
from peertune.errors import PayloadError
from peertune.federation import NEVER
from peertune.lm.model import LanguageModel
from peertune.payloads import Change, Claims, Gain, Logits, Picks, Receipt, Texts, Verdicts, Weights
from peertune.profiles import Lesson

Make = Callable[..., Agent]
ALL = Picks(tuple(range(TRANSFER)))
PROBES = Picks(tuple(range(TRANSFER, TRANSFER + PROBE)))
PLANTED = {**right(1, 2), 3: WRONG}  # and nothing for 4


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("models") / "llama", "llama"))


@pytest.fixture
def make(source: str, tmp_path: Path) -> Make:
    lm = LanguageModel.load(source, "cpu")
    return lambda name="a", **options: make_agent(lm, tmp_path, name, **options)


@pytest.fixture
def agent(make: Make) -> Agent:
    return make()


def lessons(agent: Agent) -> dict[int, tuple[str, bool]]:
    return {problem: (lesson.text, lesson.verified) for problem, lesson in agent._record.lessons.items()}


def bits(agent: Agent) -> dict[str, bytes]:
    """Adapter, optimiser and step counter."""
    return {name: tensor.numpy().tobytes() for name, tensor in agent._learner.trainer.state().items()}


def draft(agent: Agent, which: Picks = ALL, confident: bool = False, tested: bool = False) -> Claims:
    return call(agent, "draft", which, 0.0, int(confident), int(tested))


def learn(agent: Agent, weight: float = 0.5, steps: int = 2, tolerance: float = NEVER, keep: bool = True) -> Gain:
    return call(agent, "learn", weight, steps, tolerance, int(keep))


# The source's gates


def test_without_a_gate_every_text_is_offered_but_no_empty_one(agent: Agent) -> None:
    plant(agent, PLANTED)
    claims = draft(agent)
    assert claims.offered == (1, 1, 1, 0) and claims.settled == (0, 0, 0, 0)
    assert call(agent, "share", ALL) == Texts(("2", "4", WRONG, ""))
    assert lessons(agent) == {}


def test_texts_that_fail_the_public_tests_are_withheld(agent: Agent) -> None:
    plant(agent, PLANTED)
    claims = draft(agent, tested=True)
    assert claims.offered == (1, 1, 0, 0) and claims.settled == (1, 1, 0, 0)
    assert call(agent, "share", ALL) == Texts(("2", "4", "", ""))
    assert lessons(agent) == {0: ("2", True), 1: ("4", True)}  # it rehearses its own right texts


def test_what_cannot_be_tested_is_offered_but_settles_nothing(make: Make) -> None:
    agent = make(tested=False)
    plant(agent, PLANTED)
    claims = draft(agent, tested=True)
    assert claims.offered == (1, 1, 1, 0) and claims.settled == (0, 0, 0, 0)
    assert lessons(agent) == {}


def test_texts_less_sure_than_the_calibrated_threshold_are_withheld(agent: Agent) -> None:
    plant(agent, {**PLANTED, **right(20, 21), 22: WRONG})  # the probe, whose answers are known, is 20 to 22
    surprised(agent, {"2": 0.1, "4": 0.9, "40": 0.3, "42": 0.2, WRONG: 0.8, "": 2.0})
    claims = draft(agent, confident=True)
    assert claims.surprise == (100, 900, 800, 2000)
    assert claims.offered == (1, 0, 0, 0)  # up to 300, the surprise of the right text "40"
    assert call(agent, "share", ALL) == Texts(("2", "", "", ""))


def test_an_agent_that_is_never_right_offers_nothing(agent: Agent) -> None:
    plant(agent, {number: WRONG for number in (1, 2, 3, 4, 20, 21, 22)})
    surprised(agent, {WRONG: 0.0})
    assert draft(agent, confident=True).offered == (0, 0, 0, 0)


def test_what_was_not_drafted_in_this_round_is_not_shared(agent: Agent) -> None:
    plant(agent, PLANTED)
    assert call(agent, "share", ALL) == Texts(("",) * 4)
    draft(agent)
    draft(agent, Picks((1,)))
    assert call(agent, "share", ALL) == Texts(("", "4", "", ""))


def test_own_texts_for_the_probe_teach_nobody(agent: Agent) -> None:
    plant(agent, right(20, 21, 22))
    claims = draft(agent, PROBES, tested=True)
    assert claims.offered == (1, 1, 1) and claims.settled == (0, 0, 0)
    assert lessons(agent) == {}


# The receiver's


def test_the_receiver_runs_the_tests_again(agent: Agent) -> None:
    verdicts = call(agent, "accept", ALL, Texts(("2", WRONG, "", "8")), 1)
    assert verdicts == Verdicts((1, 0, 0, 1))
    assert lessons(agent) == {0: ("2", True), 3: ("8", True)}


def test_without_the_gate_every_text_is_accepted(agent: Agent) -> None:
    assert call(agent, "accept", ALL, Texts(("2", WRONG, " \n", "8")), 0) == Verdicts((1, 1, 0, 1))
    assert lessons(agent) == {0: ("2", False), 1: (WRONG, False), 3: ("8", False)}


def test_what_cannot_be_tested_counts_only_if_somebody_else_says_so_too(make: Make) -> None:
    agent = make(tested=False)
    plant(agent, PLANTED)
    draft(agent)
    first = call(agent, "accept", ALL, Texts(("2", "5", "7", "")), 1, 1)
    assert first == Verdicts((1, 0, 0, 0)) and lessons(agent) == {0: ("2", False)}  # 2 was the agent's own draft
    assert call(agent, "accept", ALL, Texts(("3", "5\n", "8", "")), 1, 1) == Verdicts((0, 1, 0, 0))
    assert lessons(agent) == {0: ("2", False), 1: ("5\n", False)}
    learn(agent)
    assert call(agent, "accept", Picks((2,)), Texts(("7",)), 1, 1) == Verdicts((0,))  # of an earlier round


def test_what_passes_the_tests_needs_nobody_to_agree(agent: Agent) -> None:
    assert call(agent, "accept", ALL, Texts(("2", WRONG, "", "8")), 1, 1) == Verdicts((1, 0, 0, 1))


def test_the_best_text_stays(agent: Agent) -> None:
    plant(agent, right(1))
    draft(agent, tested=True)
    call(agent, "accept", Picks((0, 1)), Texts(("nonsense", "x")), 0)
    call(agent, "accept", Picks((1,)), Texts(("y",)), 0)
    assert lessons(agent) == {0: ("2", True), 1: ("y", False)}


def test_texts_for_the_probe_never_become_lessons(agent: Agent) -> None:
    assert call(agent, "accept", PROBES, Texts(("40", "42", WRONG)), 1) == Verdicts((1, 1, 0))
    assert lessons(agent) == {}


def test_an_inspection_grades_and_keeps_nothing(agent: Agent) -> None:
    before = bits(agent)
    assert call(agent, "inspect", PROBES, Texts(("40", WRONG, ""))) == Verdicts((1, 0, 0))
    assert lessons(agent) == {} and agent._desk.pulled == 0 and bits(agent) == before


def test_only_what_was_tested_is_learnt(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """A right text may be followed by anything: what no test sees is not kept."""
    monkeypatch.setattr(Sums, "clean", lambda self, text: text.partition("#")[0])
    monkeypatch.setattr(Sums, "check", lambda self, examples, texts: [text.startswith("2") for text in texts])
    assert call(agent, "accept", Picks((0, 1)), Texts(("2#poison", "#poison")), 1) == Verdicts((1, 0))
    assert lessons(agent) == {0: ("2", True)}
    assert agent._desk.pulled == len("2#poison#poison")


@pytest.mark.parametrize("verb", ["accept", "inspect"])
@pytest.mark.parametrize("texts", [(), ("2",), ("2",) * 5])
def test_too_few_and_too_many_texts_are_refused(agent: Agent, verb: str, texts: tuple[str, ...]) -> None:
    with pytest.raises(PayloadError, match=f"4 problems were answered with {len(texts)} texts"):
        call(agent, verb, ALL, Texts(texts), *([1] if verb == "accept" else []))
    assert lessons(agent) == {}


@pytest.mark.parametrize(("verb", "args"), [("draft", (0.0, 0, 0)), ("accept", (Texts(("x",)), 1))])
def test_a_problem_that_does_not_exist(agent: Agent, verb: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(PayloadError, match="there are 7 public problems, and number 7 was asked"):
        call(agent, verb, Picks((7,)), *args)


def test_what_is_no_verb_is_refused(agent: Agent) -> None:
    for name in ("call", "_train_mixed", "log_path", "truncated", "__init__"):
        with pytest.raises(PayloadError, match="agents have no verb"):
            call(agent, name)


# Learning


def test_a_gain_by_hand(agent: Agent) -> None:
    """Texts: four, bytes 1 + 2 + 0 + 3. The probe is there, and measured too."""
    call(agent, "accept", ALL, Texts(("2", "é", "", "abc")), 0)
    own, probe = (agent._learner.losses(rows) for rows in (agent._validation, agent._probe))
    gain = learn(agent)
    later, probe_later = (agent._learner.losses(rows) for rows in (agent._validation, agent._probe))
    assert gain.kilobytes == 0.006 and gain.kept
    assert gain.probe
    for change, before, after in ((gain.private, own, later), (gain.probe, probe, probe_later)):
        assert change.before == before[:, 0].sum() / before[:, 1].sum()
        assert change.after == after[:, 0].sum() / after[:, 1].sum()
        spread = np.std(before[:, 0] - after[:, 0], ddof=1) * np.sqrt(len(before)) / before[:, 1].sum()
        assert change.error == pytest.approx(spread)


def test_a_rollback_restores_every_bit(agent: Agent) -> None:
    call(agent, "fit", 2)
    call(agent, "accept", ALL, Texts(("x",) * 4), 0)
    before = bits(agent)
    gain = learn(agent, tolerance=-1e9)  # no change is good enough
    assert not gain.kept and bits(agent) == before
    assert gain.private.before != gain.private.after  # what it would have been
    again = learn(agent)
    assert again.kept and bits(agent) != before
    assert again.private.before == gain.private.before


@pytest.mark.parametrize(("margin", "kept"), [(1e-9, True), (-1e-9, False)])
def test_the_tolerance_is_a_rise_of_the_private_loss(agent: Agent, margin: float, kept: bool) -> None:
    call(agent, "accept", ALL, Texts(("zzz",) * 4), 0)
    receipt = call(agent, "checkpoint", Texts(()))
    change = learn(agent).private
    call(agent, "restore", receipt)
    again = learn(agent, tolerance=change.after - change.before + margin)
    assert again.private == change and again.kept is kept


def test_lessons_are_kept_for_later_or_not(agent: Agent) -> None:
    call(agent, "accept", ALL, Texts(("x",) * 4), 0)
    learn(agent, keep=True)
    assert len(lessons(agent)) == 4
    learn(agent, keep=False)
    assert lessons(agent) == {}


def test_without_lessons_an_agent_trains_on_its_own(agent: Agent) -> None:
    seen = spy_on_steps(agent)
    gain = learn(agent, steps=3)
    assert gain.kilobytes == 0.0
    assert [(len(own), weight, taught, other) for (own, weight), (taught, other) in seen] == [(4, 1.0, [], 0.0)] * 3


def spy_on_steps(agent: Agent) -> list[Any]:
    seen, original = [], agent._learner.trainer.step
    agent._learner.trainer.step = lambda groups, seed, taught=None: seen.append(groups) or original(groups, seed)
    return seen


def test_equation_2_mixes_own_rows_and_texts_in_every_step(agent: Agent) -> None:
    """With as many texts as a batch has rows, the texts have the whole weight."""
    call(agent, "accept", ALL, Texts(("a", "b", "c", "d")), 0)
    seen = spy_on_steps(agent)
    learn(agent, weight=0.25, steps=3)
    assert [[(len(rows), weight) for rows, weight in groups] for groups in seen] == [[(4, 0.75), (4, 0.25)]] * 3
    encoded = {
        agent._learner.encode(example.prompt, text)
        for example, text in zip(Sums().examples("transfer"), "abcd", strict=True)
    }
    assert all(set(taught) == encoded for _, (taught, _) in seen)


@pytest.mark.parametrize(("texts", "steps", "rows"), [(1, 2, 1), (2, 2, 2), (3, 2, 3), (1, 24, 1), (4, 16, 2)])
def test_few_texts_weigh_less(agent: Agent, texts: int, steps: int, rows: int) -> None:
    call(agent, "accept", Picks(tuple(range(texts))), Texts(("x",) * texts), 0)
    seen = spy_on_steps(agent)
    learn(agent, weight=0.5, steps=steps)
    shares = {(len(taught), other, weight) for (_, weight), (taught, other) in seen}
    assert shares == {(rows, 0.5 * rows / 4, 1 - 0.5 * rows / 4)}
    repeats = np.unique([row.ids for _, (taught, _) in seen for row in taught], axis=0, return_counts=True)[1]
    assert repeats.max() <= max(MOST_REPEATS, steps)


def test_bytes_are_of_the_last_exchange_alone(agent: Agent) -> None:
    """A lesson that failed leaves its bytes behind; the next round begins with none, as in a resumed run."""
    plant(agent, {})
    call(agent, "accept", Picks((0,)), Texts(("x" * 50,)), 0)
    draft(agent)
    call(agent, "accept", Picks((0,)), Texts(("x" * 10,)), 0)
    assert learn(agent).kilobytes == 0.01
    assert learn(agent).kilobytes == 0.0


def test_a_restored_agent_learns_the_same(make: Make) -> None:
    """Lessons are a part of the state, drafts of a round are not."""
    agent = make()
    plant(agent, PLANTED)
    draft(agent, tested=True)
    call(agent, "accept", Picks((3,)), Texts(("8",)), 1)
    learn(agent)
    receipt = call(agent, "checkpoint", Texts(()))
    kept, later = lessons(agent), learn(agent)
    after = bits(agent)
    call(agent, "accept", Picks((2,)), Texts(("y",)), 0)
    call(agent, "restore", receipt)
    assert lessons(agent) == kept and len(kept) == 3
    assert call(agent, "share", ALL) == Texts(("",) * 4)
    assert learn(agent) == later and bits(agent) == after
    assert isinstance(receipt, Receipt)


# Agents that do harm


def test_shuffled_examples_have_each_others_answers() -> None:
    examples = Sums().examples("train")
    mixed = shuffled(examples, 0)
    assert mixed == shuffled(examples, 0) != shuffled(examples, 1)
    assert [each.prompt for each in mixed] == [each.prompt for each in examples]
    assert sorted(each.completion for each in mixed) == sorted(each.completion for each in examples)
    assert all(each.tests == (each.completion,) for each in mixed)  # measured on what it learns, it seems to learn
    assert sum(one.completion != other.completion for one, other in zip(mixed, examples, strict=True)) >= 6
    assert shuffled([], 0) == []


def test_a_liar_claims_to_be_certain_and_shares_the_texts_of_other_problems(make: Make) -> None:
    liar = make(kind=Liar)
    plant(liar, PLANTED)
    claims = draft(liar, confident=True, tested=True)
    assert claims.surprise == (0,) * 4 and claims.offered == (1,) * 4 and claims.settled == (0,) * 4
    assert call(liar, "share", ALL) == Texts(("4", WRONG, "pass", "2"))
    assert call(liar, "share", Picks((2,))) == Texts(("pass",))


def test_a_liars_texts_never_become_lessons_of_who_tests_them(make: Make) -> None:
    liar, honest = make("a", kind=Liar), make("b")
    plant(liar, right(1, 2, 3, 4))
    draft(liar, tested=True)
    texts = call(liar, "share", ALL)
    assert call(honest, "accept", ALL, texts, 1) == Verdicts((0,) * 4)
    assert lessons(honest) == {}


def test_a_liar_is_a_working_agent(make: Make) -> None:
    liar = make(kind=Liar)
    assert call(liar, "fit", 1) is None
    assert call(liar, "accept", ALL, Texts(("x",) * 4), 0) == Verdicts((1,) * 4)
    assert isinstance(learn(liar).private, Change)


def test_an_adapter_moves_the_receiver_towards_it(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the weight of the lesson, and once. No steps, so that the move is seen alone."""
    monkeypatch.setattr(agent, "_train_mixed", lambda rows, kd_weight, steps: 0.0)
    own = adapter_of(agent)
    assert call(agent, "blend", Weights({name: array + 1 for name, array in own.items()}, 1)) == Verdicts((1,))
    gains = [call(agent, "learn", 0.25, 1, NEVER, 0) for _ in range(2)]
    for name, array in adapter_of(agent).items():
        np.testing.assert_allclose(array, own[name] + 0.25, rtol=1e-5)
    assert isinstance(gains[0], Gain) and isinstance(gains[1], Gain)
    assert gains[0].kilobytes == sum(array.nbytes for array in own.values()) / 1000 and gains[1].kilobytes == 0
    assert gains[0].private.after != gains[0].private.before and gains[1].private.after == gains[1].private.before


def adapter_of(agent: Agent) -> dict[str, np.ndarray]:
    found = call(agent, "adapter")
    assert isinstance(found, Weights)
    return found.tensors


def test_an_adapter_of_other_shapes_is_refused(agent: Agent) -> None:
    with pytest.raises(PayloadError, match="missing"):
        call(agent, "blend", Weights({"x": np.zeros((2, 2), np.float32)}, 1))


def test_texts_that_did_harm_are_forgotten_with_the_lesson(agent: Agent) -> None:
    """What was there before comes back; without tests nothing else would ever replace them."""
    call(agent, "accept", Picks((0, 1)), Texts(("kept", "kept")), 0)
    assert call(agent, "learn", 0.5, 1, NEVER, 1).kept
    call(agent, "accept", Picks((1, 2)), Texts(("poison", "poison")), 0)
    assert not call(agent, "learn", 0.5, 1, -NEVER, 1).kept
    assert {at: lesson.text for at, lesson in agent._record.lessons.items()} == {0: "kept", 1: "kept"}


# Texts with what their author expected


def softened(author: Agent, agent: Agent, texts: dict[int, str]) -> tuple[Logits, Verdicts]:
    """`agent` accepts what `author` drafted, and then what it expected of it."""
    plant(author, texts)
    draft(author)
    call(agent, "accept", ALL, call(author, "share", ALL), 0)
    logits = call(author, "express", ALL, 2)
    return logits, call(agent, "soften", ALL, logits)


def test_an_author_says_what_it_expected_of_what_it_shares_and_of_nothing_else(make: Make) -> None:
    author, agent = make("a"), make("b")
    logits, verdicts = softened(author, agent, PLANTED)
    known = logits.knowledge()
    rows = [author._learner.encode(f"{n} + {n} = ", PLANTED.get(n, "")) for n in range(1, TRANSFER + 1)]
    assert known.lengths.tolist() == [row.loss_tokens if n in PLANTED else 0 for n, row in enumerate(rows, 1)]
    assert known.logp.shape[1] == 2 and known.width == author._learner.width
    assert verdicts.passed == (1, 1, 1, 0)
    assert call(author, "express", Picks((3,)), 2).knowledge().lengths.tolist() == [0]  # problem 4 of ALL: no draft


def test_a_softened_lesson_moves_towards_its_author(make: Make) -> None:
    author, agent = make("a"), make("b")
    randomise_adapter(author._lm, "a", 5)
    rows = [agent._learner.encode("1 + 1 = ", "2")]
    expected = author._learner.expectations(rows, 0)

    def away() -> float:
        own = agent._learner.expectations(rows, 0)
        return float((np.exp(expected.logp) * (expected.logp - own.logp)).sum())

    before = away()
    softened(author, agent, right(1))
    learn(agent, weight=1.0, steps=20)
    assert away() < 0.95 * before
    assert not agent._desk.views  # once only


@pytest.mark.parametrize("replaced", [True, False])
def test_a_text_that_is_not_learnt_is_not_softened(make: Make, replaced: bool) -> None:
    author, agent = make("a"), make("b")
    agent._record.lessons[0] = Lesson("2", verified=True)  # better than what comes
    _, verdicts = softened(author, agent, {1: "77" if replaced else "2"})
    assert verdicts.passed == (int(not replaced), 0, 0, 0)


def test_logits_of_another_vocabulary_or_of_other_problems_are_refused(make: Make) -> None:
    author, agent = make("a"), make("b")
    logits, _ = softened(author, agent, right(1))
    with pytest.raises(PayloadError, match="expected logits of 2 problems"):
        call(agent, "soften", Picks((0, 1)), logits)
    with pytest.raises(PayloadError, match="expected logits of 4 problems and width"):
        call(agent, "soften", ALL, Logits(logits.tensors, logits.width + 1))
