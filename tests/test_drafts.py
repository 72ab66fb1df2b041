"""What is offered, what is kept, and where right and wrong texts part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sums import PROBE, TRANSFER, WRONG, Sums

from peertune.agent.drafts import (
    MOST_SURPRISE,
    Draft,
    Lesson,
    PublicProblems,
    add_lesson,
    confidence_threshold,
    surprise,
)
from peertune.errors import PayloadError
from peertune.payloads import Picks, Texts

INFINITE = float("inf")


@pytest.fixture
def public() -> PublicProblems:
    task = Sums()
    return PublicProblems(task, task.examples("transfer"), task.examples("probe"))


# The confidence gate


def passed(surprises: list[float], right: list[bool]) -> list[bool]:
    """Who of the planted texts passes the threshold that was learnt on them."""
    return [value <= confidence_threshold(np.array(surprises), np.array(right)) for value in surprises]


def test_right_and_wrong_texts_that_part_are_told_apart() -> None:
    right = [True, False, True, False, True]
    assert passed([10, 900, 20, 800, 300], right) == right
    assert confidence_threshold(np.array([10, 900, 20, 800, 300]), np.array(right)) == 300.0


def test_a_confident_wrong_text_costs_no_more_than_it_must() -> None:
    """Sensitivity plus specificity: 3/3 + 1/2 at 300 beats 1/3 + 2/2 at 5."""
    assert passed([5, 10, 300, 7, 900], [True, True, True, False, False]) == [True, True, True, True, False]


def test_nobody_passes_where_none_was_right_and_everybody_where_none_was_wrong() -> None:
    assert confidence_threshold(np.array([0, 5]), np.array([False, False])) == -1.0
    assert confidence_threshold(np.array([0, 5]), np.array([True, True])) == INFINITE
    assert confidence_threshold(np.zeros(0), np.zeros(0, bool)) == -1.0


def test_texts_of_equal_surprise_pass_together() -> None:
    assert confidence_threshold(np.array([7, 7]), np.array([True, False])) == 7.0


texts = st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=20)


@given(texts)
def test_no_other_threshold_parts_them_better(planted: list[tuple[int, bool]]) -> None:
    surprises, right = np.array([each[0] for each in planted]), np.array([each[1] for each in planted])
    if right.all() or not right.any():
        return

    def youden(threshold: float) -> float:
        return float((surprises[right] <= threshold).mean() - (surprises[~right] <= threshold).mean())

    found = youden(confidence_threshold(surprises, right))
    assert found == pytest.approx(max(youden(cut) for cut in np.unique(surprises)))


def test_surprise_is_in_thousandths_of_a_nat_a_token_and_bounded() -> None:
    assert surprise(3.0, 2.0) == 1500
    assert surprise(0.0, 1.0) == 0
    assert surprise(1e9, 1.0) == MOST_SURPRISE == (1 << 16) - 1


@pytest.mark.parametrize(
    ("draft", "offered"),
    [
        (Draft("4", 100, True), True),
        (Draft("4", 100, None), True),
        (Draft("4", 100, False), False),
        (Draft("4", 101, True), False),
        (Draft(" \n", 0, None), False),
        (Draft("", 0, True), False),
    ],
)
def test_what_others_may_have(draft: Draft, offered: bool) -> None:
    assert draft.offered(100) is offered


# Lessons


def test_a_verified_lesson_is_never_replaced_by_one_that_is_not() -> None:
    lessons: dict[int, Lesson] = {}
    for text, verified, kept in (
        ("a", False, "a"),
        ("b", False, "b"),  # of equals the newer one
        ("c", True, "c"),
        ("d", False, "c"),
        ("e", True, "e"),
    ):
        add_lesson(lessons, 0, Lesson(text, verified))
        assert lessons[0].text == kept
    add_lesson(lessons, 1, Lesson("x", False))
    assert list(lessons) == [0, 1]


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=12))
def test_the_best_lesson_stays_whatever_comes(offers: list[tuple[int, bool]]) -> None:
    lessons: dict[int, Lesson] = {}
    for number, (problem, verified) in enumerate(offers):
        add_lesson(lessons, problem, Lesson(str(number), verified))
    for problem, lesson in lessons.items():
        own = [(verified, number) for number, (which, verified) in enumerate(offers) if which == problem]
        assert (lesson.verified, int(lesson.text)) == max(own)


# Public problems


def test_problems_are_numbered_transfer_first(public: PublicProblems) -> None:
    task = Sums()
    expected = [*task.examples("transfer"), *task.examples("probe")]
    assert public.of(Picks(tuple(range(TRANSFER + PROBE)))) == expected
    assert [public.teaches(problem) for problem in range(TRANSFER + PROBE)] == [True] * TRANSFER + [False] * PROBE
    assert public.of(Picks(())) == []


def test_numbers_and_texts_that_do_not_fit_are_refused(public: PublicProblems) -> None:
    with pytest.raises(PayloadError, match="there are 7 public problems, and number 7 was asked"):
        public.of(Picks((0, 7)))
    for count in (0, 1, 3):
        with pytest.raises(PayloadError, match=f"2 problems were answered with {count} texts"):
            public.of(Picks((0, 1)), Texts(("x",) * count))


def test_public_tests_tell_right_from_wrong_where_there_are_some(public: PublicProblems) -> None:
    problems = public.of(Picks((0, 1)))
    assert public.verify(problems, ["2", WRONG], tested=True) == [True, False]
    assert public.verify(problems, ["2", WRONG], tested=False) == [None, None]
    untested = Sums().examples("test")
    assert public.verify([*untested, *problems], ["x", "y", WRONG, "4"], tested=True) == [None, None, False, True]
    assert public.verify([], [], tested=True) == []


def test_accuracy_is_the_share_of_right_lessons(public: PublicProblems) -> None:
    assert public.accuracy({}) is None
    assert public.accuracy({0: Lesson("2", True), 1: Lesson(WRONG, False)}) == 0.5
