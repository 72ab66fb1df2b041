"""The book of exchanges that are awaited: each is settled once, in the order of time, and what fits none is refused."""

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from asynchrony_parts import NAMES, RUN, Scripted, equal, gain, method, of, play
from hypothesis import given, settings
from hypothesis import strategies as st

from peertune.clock import Availability, Clock
from peertune.federation import Federation
from peertune.matchmakers.base import Pair
from peertune.matchmakers.linucb import LinUCB
from peertune.methods import Knexa
from peertune.methods.book import REWARD_LIMIT, Book, Report
from peertune.methods.evidence import Evidence


def federation(now: float = 0.0) -> Federation:
    fed = Federation(Scripted(), NAMES, Clock(NAMES, Availability()))
    fed.clock.now = now
    return fed


def pair(source: str = "a", receiver: str = "b", number: float = 0.0) -> Pair:
    return Pair(source, receiver, np.arange(64.0) + number, 0.25, 0.75, "logits", 0.1)


def refusals(fed: Federation) -> list[dict[str, Any]]:
    return of(fed.end_round().rows, "refused")


def test_reports_come_in_the_order_of_their_time_then_of_their_number() -> None:
    fed = federation(now=5.0)
    book = Book({}, fed, 1)
    numbers = [book.agree(pair(number=place), 1.0) for place in range(4)]
    for number, due in zip(numbers, (5.0, 3.0, 3.0, 5.5), strict=True):
        assert book.take(Report(number, "a", "b", 0.1), due)
    assert [each.number for each in book.come()] == [numbers[1], numbers[2], numbers[0]]
    assert book.come() == []
    fed.clock.now = 6.0
    later = Book(book.state, fed, 3)
    (last,) = later.come()
    assert (last.number, later.age(last), last.agreed) == (numbers[3], 2, 1)
    assert later.state == {} and later.agree(pair(), 1.0) not in numbers


def test_what_is_awaited_can_be_saved_as_it_is() -> None:
    book = Book({}, federation(), 4)
    asked = [pair(), pair("c", "d", 0.1), Pair("d", "a", np.full(64, -1 / 3), math.nan)]
    for place, each in enumerate(asked):
        assert book.take(
            Report(book.agree(each, place / 3), each.source, each.receiver, place / 7, kept=place != 1), 9.5
        )
    book.agree(pair("b", "c"), 1.0)  # nobody reports it: given up
    fed = federation(now=10.0)
    again = Book(book.state, fed, 5)
    assert equal(again.state, book.state)
    found = again.come()
    for each, wanted in zip(found, asked, strict=True):
        for part in fields(Pair):  # also those that a later version may add
            np.testing.assert_array_equal(getattr(each.pair, part.name), getattr(wanted, part.name), part.name)
    assert [(each.share, each.reward, each.kept) for each in found] == [
        (place / 3, place / 7, place != 1) for place in range(3)
    ]


SPOILT = {
    "no number": ({"number": 17}, "no exchange 17 is open"),
    "a pair never formed": (dict(source="c"), "is another pair's, not that of c and b"),
    "the roles exchanged": (dict(source="b", receiver="a"), "is another pair's, not that of b and a"),
    "NaN": (dict(reward=math.nan), "a reward of nan is not a number within"),
    "infinite": (dict(reward=-math.inf), "a reward of -inf is not a number within"),
    "too much": (dict(reward=100.1), "a reward of 100.1 is not a number within"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_report_that_cannot_be_is_refused_and_changes_nothing(what: str) -> None:
    change, cause = SPOILT[what]
    fed = federation()
    book = Book({}, fed, 1)
    first, second = book.agree(pair(), 1.0), book.agree(pair("c", "d"), 1.0)
    assert book.take(Report(second, "c", "d", 0.5), due=7.0)
    before = book.state
    good = {"number": first, "source": "a", "receiver": "b", "reward": 0.1}
    assert not book.take(Report(**{**good, **change}), due=3.0)
    assert equal(book.state, before) and book.come() == []
    (body,) = refusals(fed)
    assert body["agent"] == {**good, **change}["receiver"] and body["exchange"] == {**good, **change}["number"]
    assert cause in body["cause"]
    assert book.take(Report(**good), due=3.0)  # the exchange is still open for its true report


def test_a_second_report_is_refused_before_and_after_the_first_has_come() -> None:
    fed = federation(now=1.0)
    book = Book({}, fed, 1)
    number = book.agree(pair(), 1.0)
    for due in (1.0, 2.0):
        assert book.take(Report(number, "a", "b", 0.1), due) is (due == 1.0)
    assert [each.reward for each in book.come()] == [0.1]
    assert not book.take(Report(number, "a", "b", 0.3), 1.0)
    first, second = (body["cause"] for body in refusals(fed))
    assert first.endswith("has been reported before") and "has been settled" in second


@settings(derandomize=True)
@given(st.lists(st.tuples(st.integers(-1, 6), st.sampled_from("ab"), st.floats()), max_size=12))
def test_whatever_is_reported_each_exchange_is_settled_at_most_once(reports: list[tuple[int, str, float]]) -> None:
    fed = federation()
    book = Book({}, fed, 1)
    numbers = [book.agree(pair(), 1.0) for _ in range(4)]
    for place, source, reward in reports:
        number = numbers[place] if 0 <= place < 4 else place
        before = book.state
        if not book.take(Report(number, source, "b", reward), due=0.0):
            assert equal(book.state, before)
    settled = book.come()
    assert len({each.number for each in settled}) == len(settled)
    assert all(abs(each.reward) <= REWARD_LIMIT for each in settled)
    assert len(settled) + len(refusals(fed)) == len(reports)


def test_a_refused_reward_does_not_stop_the_round_and_teaches_nobody() -> None:
    """One receiver claims that its loss fell by 150 nats: the state is that of a round without its report."""
    knexa, told = method(), {"b": [gain(150.0)]}
    fed = Federation(Scripted(told), NAMES)
    states, rows = play(fed, knexa, 1)
    silent = Federation(Scripted(), NAMES)
    silent.begin_round(1)

    class Deaf(Book):
        def take(self, report: Report, due: float) -> bool:
            return report.receiver != "b" and super().take(report, due)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peertune.methods.knexa.Book", Deaf)
        assert equal(states[1], knexa.round(knexa.init(silent), silent, 1))
    (body,) = of(rows[0], "refused")
    assert body["agent"] == "b" and body["cause"] == "a reward of 150 is not a number within +-100"
    assert sorted(pair["receiver"] for pair in of(rows[0], "pair")) == ["a", "c", "d"]
    routed = Knexa(run=RUN, matchmaker=LinUCB(), byte_weight=0.0)
    _, rows = play(Federation(Scripted(told), NAMES), routed, 1)
    assert [body["agent"] for body in of(rows[0], "refused")] == ["b"]
    assert "b" not in {pair["receiver"] for pair in of(rows[0], "pair")}


def test_regret_fades_like_what_is_regretted() -> None:
    fed = federation()
    evidence = Evidence({"counts": np.array([[0.81, 0.0]] * 4) / 0.9}, fed)
    evidence.regret("a", 1.0, age=2)  # noted as 1 two rounds ago
    assert evidence.state["counts"][0] == pytest.approx([0.405, 0.405])
