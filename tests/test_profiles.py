"""Profiles: the 32 numbers, exactly, and nothing but numbers."""

import math
from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peertune.payloads import PROFILE_SIZE, Change, Gain, Profile, decode, encode
from peertune.profiles import (
    BINS,
    DYNAMIC,
    HISTOGRAM,
    SCORE,
    STATIC,
    AgentRecord,
    Lesson,
    build_profile,
    category_histogram,
    static_features,
)

CATEGORIES = tuple(f"c{index:02}" for index in range(12))


def record() -> AgentRecord:
    return AgentRecord(static=(0.0,) * 8, histogram=(1.0, *[0.0] * 11))


def test_layout() -> None:
    places = list(range(PROFILE_SIZE))
    assert [*places[STATIC], *places[DYNAMIC], *places[HISTOGRAM]] == places
    assert [len(places[part]) for part in (STATIC, DYNAMIC, HISTOGRAM)] == [8, 12, 12]


@pytest.mark.parametrize(
    ("family", "one_hot"),
    [
        ("llama", (1, 0, 0, 0, 0)),
        ("qwen2", (1, 0, 0, 0, 0)),
        ("mistral", (1, 0, 0, 0, 0)),
        ("gpt2", (0, 1, 0, 0, 0)),
        ("gpt_neox", (0, 0, 1, 0, 0)),
        ("bloom", (0, 0, 0, 1, 0)),
        ("opt", (0, 0, 0, 0, 1)),
    ],
)
def test_static_features(family: str, one_hot: tuple[int, ...]) -> None:
    features = static_features(family, parameters=1000, trainable=30, examples=15)
    assert features[:5] == one_hot
    assert features[5:] == pytest.approx((3 / 10, 0.03, 4 / 16), abs=1e-12)


def test_histogram_of_known_categories() -> None:
    assert category_histogram(["c01", "c01", "c03", "c11"], CATEGORIES) == (
        *(0.0, 0.5, 0.0, 0.25),
        *[0.0] * 7,
        0.25,
    )


def test_histogram_of_other_categories() -> None:
    """Unknown names, or more than 12 known ones, share bins by a hash that is the same everywhere and always."""
    many = tuple(f"topic {index}" for index in range(40))
    histogram = category_histogram(["topic 3"] * 3 + ["topic 7"], many)
    assert histogram[10] == 0.75 and histogram[7] == 0.25
    assert category_histogram(["topic 3"], CATEGORIES) == category_histogram(["topic 3"], ())
    assert category_histogram([], CATEGORIES) == (0.0,) * BINS


@given(st.lists(st.sampled_from([*CATEGORIES, "", "other", "ü"]), min_size=1), st.sampled_from([CATEGORIES, ()]))
def test_histogram_is_a_distribution(categories: list[str], known: tuple[str, ...]) -> None:
    histogram = category_histogram(categories, known)
    assert len(histogram) == BINS and min(histogram) >= 0
    assert sum(histogram) == pytest.approx(1)


def gain(before: float, after: float) -> Gain:
    return Gain(Change(before, after, 0.0), Change(9.0, 1.0, 0.0), kilobytes=9, kept=True)


def test_the_32_numbers_of_two_rounds() -> None:
    agent = AgentRecord(
        static=static_features("gpt2", 10**6, 10**4, 63), histogram=category_histogram(["c00", "c02"], CATEGORIES)
    )
    agent.steps = 60
    agent.trained(2.5)
    first = build_profile(agent, loss=2.0, score=0.25)
    static = (0, 1, 0, 0, 0, 0.6, 0.01, 6 / 16)
    histogram = (0.5, 0, 0.5, *[0] * 9)
    dynamic = (2.0, 0, 0.25, 0, math.exp(-2), 2.5, 0, 0, 0, 0, 0, 0.06)
    assert first.values == pytest.approx((*static, *dynamic, *histogram), abs=1e-12)
    agent.steps, agent.given = 92, 1
    agent.trained(1.5)
    agent.learned(gain(2.0, 1.5))
    agent.learned(gain(1.5, 1.75))
    second = build_profile(agent, loss=1.75, score=0.5)
    dynamic = (1.75, -0.25, 0.5, 0.25, math.exp(-1.75), 1.5, -1.0, 0.2, 0.1, -0.25, 0.125, 0.092)
    assert second.values == pytest.approx((*static, *dynamic, *histogram), abs=1e-12)
    assert second.values[SCORE] == 0.5


def test_a_perfect_first_round_is_remembered() -> None:
    """A loss or a score of 0 is a value like any other, not the sign of a first time."""
    agent = record()
    build_profile(agent, loss=0.0, score=0.0)
    second = build_profile(agent, loss=0.5, score=0.25)
    assert second.values[DYNAMIC][:4] == (0.5, 0.5, 0.25, 0.25)
    agent.trained(0.0)
    agent.trained(0.5)
    assert agent.train_loss_change == 0.5


@given(
    st.floats(0, 100),
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=5),
    st.integers(0, 100_000),
)
def test_any_sane_profile_can_be_sent(
    loss: float, score: float, exchanges: list[tuple[float, float]], steps: int
) -> None:
    agent = record()
    agent.steps = steps
    for before, after in exchanges:
        agent.learned(gain(before, after))
    profile = build_profile(agent, loss, score)
    assert decode(encode(profile)) == profile
    assert len(profile.values) == PROFILE_SIZE and all(type(value) is float for value in profile.values)


def test_two_agents_do_not_share_their_lessons() -> None:
    first, second = record(), record()
    first.lessons[0] = Lesson("return 0", verified=False)
    assert second.lessons == {}


def test_lessons_do_not_show_in_a_profile() -> None:
    plain, taught = record(), record()
    taught.lessons[0] = Lesson("return 0", verified=True)
    assert build_profile(plain, 1.0, 0.5) == build_profile(taught, 1.0, 0.5)


def test_there_is_no_room_for_text() -> None:
    assert get_type_hints(Profile)["values"] == tuple[float, ...]
    assert set(Profile.__struct_fields__) == {"values"}


def test_a_record_survives_its_checkpoint(tmp_path: Path) -> None:
    agent = record()
    agent.trained(1.5)
    agent.lessons[3] = Lesson("return 3", verified=True)
    build_profile(agent, 1.0, 0.5)
    (tmp_path / "record").write_bytes(msgspec.json.encode(agent))
    assert msgspec.json.decode((tmp_path / "record").read_bytes(), type=AgentRecord) == agent
