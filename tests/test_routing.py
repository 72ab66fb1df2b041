"""One round of routing: claims on the board, orders, audits, retries, and whose account is credited."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertune.matchmakers.candidates import candidate_pairs
from peertune.matchmakers.router import TESTED, Router
from peertune.methods import Budget, Run
from peertune.methods.base import Public
from peertune.methods.routing import Board, audits, book, lost, orders, rankings, read_board, with_leads
from peertune.methods.texts import Order, Pulled
from peertune.payloads import PROFILE_SIZE, Claims, Profile

NAMES = ["a", "b", "c", "d"]
TRANSFER = (Public("x", True), Public("y", True), Public("x", False))
PROBE = (Public("z", True), Public("x", True))
RUN = Run(3, 0, Budget(1, 1), TRANSFER, PROBE)
EVERYTHING = tuple(range(5))


def claim(count: int, surprise: int = 100, offered: int = 1, settled: int = 0) -> Claims:
    return Claims((surprise,) * count, (offered,) * count, (settled,) * count)


@pytest.fixture
def board() -> Board:
    return read_board(RUN, NAMES, EVERYTHING, {name: claim(5) for name in NAMES}, tested=True)


# The board


def test_claims_stand_where_they_belong() -> None:
    claims = {"a": Claims((1, 20), (1, 0), (0, 1)), "c": Claims((300, 4), (0, 1), (0, 0))}
    board = read_board(RUN, NAMES, (1, 4), claims, tested=True)
    assert board.claimed.surprise[:, [1, 4]].tolist() == [[1, 20], [0, 0], [300, 4], [0, 0]]
    assert board.claimed.offered.tolist() == [
        [False, True, False, False, False],
        [False] * 5,
        [False, False, False, False, True],
        [False] * 5,
    ]
    assert not board.claimed.settled[0, 1] and board.claimed.settled[0, 4]
    assert board.claimed.settled[[1, 3]].all()  # who is absent needs nothing
    assert board.claimed.settled[:, [0, 2, 3]].all()  # and nobody what was not asked
    assert board.categories.tolist() == [0, 1, 0, 2, 0]


def test_what_can_be_tested(board: Board) -> None:
    assert board.testable.tolist() == [True, True, False, True, True]
    assert board.claimed.bins[0].tolist() == [TESTED, TESTED, 1, TESTED, TESTED]
    without = read_board(RUN, NAMES, EVERYTHING, {"a": claim(5)}, tested=False)
    assert not without.testable.any() and (without.claimed.bins[0] == 1).all()


# Audits


@pytest.mark.parametrize("t", range(1, 8))
def test_everybody_has_an_auditor_who_is_not_itself(board: Board, t: int) -> None:
    found = audits(board, (3, 4), t)
    assert [order.source for order in found] == NAMES
    assert sorted(order.receiver for order in found) == NAMES  # one audit each
    assert all(order.source != order.receiver and order.problems == (3, 4) for order in found)


def test_auditors_take_turns(board: Board) -> None:
    auditors = [{order.source: order.receiver for order in audits(board, (3,), t)}["a"] for t in range(1, 5)]
    assert auditors == ["b", "c", "d", "b"]


def test_only_what_is_offered_is_audited() -> None:
    claims = {"a": Claims((1, 1), (1, 0), (0, 0)), "b": claim(2, offered=0)}
    board = read_board(RUN, NAMES, (3, 4), claims, tested=True)
    assert audits(board, (3, 4), 1) == [Order("a", "b", (3,))]
    assert audits(board, (), 1) == []


# Orders


def test_orders_gather_the_prompts_of_a_source_and_a_receiver(board: Board) -> None:
    ranked = {"a": np.array([[1, 2, -1, -1], [1, 3, -1, -1], [-1] * 4]), "d": np.array([[0, 1, -1, -1]] * 3)}
    assert orders(board, ranked, {}, 0) == [Order("b", "a", (0, 1)), Order("a", "d", (0, 1, 2))]


def test_a_second_source_is_asked_for_failed_texts_only(board: Board) -> None:
    ranked = {"a": np.array([[1, 2, -1, -1], [1, 3, -1, -1], [2, -1, -1, -1]])}
    first = orders(board, ranked, {}, 0)
    assert first == [Order("b", "a", (0, 1)), Order("c", "a", (2,))]
    pulled: Pulled = {first[0]: (1, 0), first[1]: (0,)}
    assert orders(board, ranked, pulled, 1) == [Order("d", "a", (1,))]  # nobody else has a text for the last
    assert orders(board, ranked, pulled | {Order("d", "a", (1,)): (1,)}, 2) == []


def test_a_source_that_did_not_answer_is_passed_over(board: Board) -> None:
    ranked = {"a": np.array([[1, 2, -1, -1]])}
    assert orders(board, ranked, {}, 1) == [Order("c", "a", (0,))]  # its order is not among what was pulled


def test_what_was_useful_to_others_says_nothing_of_ones_own(board: Board) -> None:
    ranked = {"a": np.array([[1, 2, -1, -1]])}
    assert orders(board, ranked, {Order("b", "d", (0,)): (1,)}, 1) == [Order("c", "a", (0,))]


def test_as_many_attempts_as_there_are_agents(board: Board) -> None:
    ranked = {"a": np.array([[1, 2, 3, -1]])}
    assert [len(orders(board, ranked, {}, attempt)) for attempt in range(6)] == [1, 1, 1, 0, 0, 0]


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=3, max_size=3), st.data())
def test_no_text_is_pulled_twice_and_none_that_is_not_needed(right: list[list[bool]], data: st.DataObject) -> None:
    """`right[problem][source]`; whatever the rankings, each prompt is asked until a text is of use, then no more."""
    board = read_board(RUN, NAMES, EVERYTHING, {name: claim(5) for name in NAMES}, tested=True)
    ranked = {
        name: np.array([data.draw(st.permutations([other for other in range(4) if other != row])) + [-1]] * 3)
        for row, name in enumerate(NAMES)
    }
    pulled: Pulled = {}
    for attempt in range(3):
        wanted = orders(board, ranked, pulled, attempt)
        assert not set(wanted) & set(pulled)
        pulled |= {
            order: tuple(int(right[problem][NAMES.index(order.source)]) for problem in order.problems)
            for order in wanted
        }
    for name in NAMES:
        for problem in range(3):
            asked = [
                (NAMES.index(order.source), passed[order.problems.index(problem)])
                for order, passed in pulled.items()
                if order.receiver == name and problem in order.problems
            ]
            sources = [source for source, _ in asked]
            assert sources == ranked[name][problem][: len(asked)].tolist()
            assert [use for _, use in asked[:-1]] == [0] * (len(asked) - 1)
            assert asked[-1][1] or len(asked) == 3


# Credit


def test_credit_goes_to_the_source_by_category_and_bin(board: Board) -> None:
    router = Router()
    credit = book(router, router.init(4, 3, 0), board, {Order("b", "a", (0, 1, 2)): (1, 0, 1)})
    right, tried = credit["right"], credit["tried"]
    assert right[1, 0, TESTED] == 1 and tried[1, 0, TESTED] == 1
    assert right[1, 1, TESTED] == 0 and tried[1, 1, TESTED] == 1
    assert tried.sum() == 2  # problem 2 has no tests: that a text was taken says nothing of it


def test_what_an_audit_graded_counts_also_without_tests(board: Board) -> None:
    router = Router()
    credit = book(router, router.init(4, 3, 0), board, {Order("b", "a", (2, 3)): (1, 0)}, known=True)
    assert credit["tried"][1, 0, 1] == credit["right"][1, 0, 1] == 1
    assert credit["tried"][1, 2, TESTED] == 1 and credit["right"].sum() == 1


def test_nothing_found_changes_nothing(board: Board) -> None:
    router = Router()
    first = router.init(4, 3, 0)
    assert book(router, first, board, {}) is first
    after = book(router, first, board, {Order("b", "a", ()): ()})
    assert after["tried"].sum() == 0


def test_rankings_are_of_transfer_problems_only(board: Board) -> None:
    router = Router(explore=False)
    ranked = rankings(router, router.init(4, 3, 0), board, ["a", "c"])
    assert set(ranked) == {"a", "c"} and ranked["a"].shape == (3, 4)


# Leads


def test_leads_by_hand() -> None:
    """A text that is said to pass the tests is right with .9, of bin 3 with .8, of bin 0 with .05."""
    claims = {"a": Claims((0, 0, 0), (1, 1, 1), (0, 0, 0)), "b": Claims((0, 0, 500), (0, 1, 1), (0, 1, 0))}
    board = read_board(RUN, ["a", "b"], (0, 1, 2), claims, tested=True)
    router = Router()
    pairs = candidate_pairs({name: Profile((0.0,) * PROFILE_SIZE) for name in ("b", "a")})  # in another order
    found = {(p.source, p.receiver): p.lead for p in with_leads(pairs, router, router.init(2, 3, 0), board)}
    # b withholds its text for prompt 0, which has tests, so it is wrong; for prompt 1 it needs none; 2 has no tests
    assert found == {("a", "b"): pytest.approx((0.9 + 0 + 0.75) / 3), ("b", "a"): 0.0}


def test_orders_of_a_source_that_failed_count_as_wrong() -> None:
    wanted = [Order("a", "b", (0, 1)), Order("c", "b", (2,)), Order("d", "b", (2,))]
    assert lost(wanted, {wanted[1]: (1,)}, {"a"}) == {wanted[0]: (0, 0)}
