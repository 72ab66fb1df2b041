"""The groups of features, `pairwise` without some of them, and the study of what each is worth."""

import json
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from peertune.matchmakers import Pair, Pairwise
from peertune.matchmakers.features import GROUPS, NAMES, Group, kept
from peertune.matchmakers.synthetic import ENVIRONMENTS, candidates
from peertune.studies import ablation, matchmaking
from peertune.studies.ablation import PLAN, markdown, summarise
from peertune.studies.matchmaking import ABLATED, Cell, Plan, play

# As in test_studies.py: the tracker of shared resources may have ended with an earlier test's children
pytestmark = pytest.mark.filterwarnings("ignore:resource_tracker. process died unexpectedly:UserWarning")

DOCS = Path(__file__).parent.parent / "docs"
NOT_OF_PROFILES = [("trust", {"trust": 0.9}), ("lead", {"lead": 0.5}), ("protocol", {"protocol": "adapter"})]


# Groups


def test_the_groups_cover_every_feature_once() -> None:
    """Except the first, which counts the exchanges."""
    assert tuple(GROUPS) == get_args(Group)
    assert sorted(chain(["one"], *GROUPS.values())) == sorted(NAMES)


@pytest.mark.parametrize("group", GROUPS)
def test_each_group_zeroes_what_it_names(group: Group) -> None:
    """In what is remembered of an exchange; nothing else is changed."""
    assert {name for name, used in zip(NAMES, kept((group,)), strict=True) if not used} == set(GROUPS[group])
    pair = Pair("a", "b", np.random.default_rng(0).uniform(0.1, 1, 64), trust=0.9, lead=0.4, protocol="adapter")
    whole, without = (
        policy.update(policy.update(policy.init(0), pair, 0.5), pair, 0.1)
        for policy in (Pairwise(), Pairwise(without=(group,)))
    )
    used = kept((group,))
    np.testing.assert_array_equal(without["precision"], whole["precision"] * np.outer(used, used))
    np.testing.assert_array_equal(without["sides"], whole["sides"] * used)
    np.testing.assert_array_equal(without["history"], whole["history"])


@pytest.mark.parametrize(("group", "other"), NOT_OF_PROFILES)
def test_what_is_left_out_moves_no_prediction(group: Group, other: dict[str, Any]) -> None:
    plain, changed = (Pair("a", "b", np.zeros(64), **facts) for facts in ({}, other))

    def predicted(policy: Pairwise) -> list[float]:
        state = policy.init(0)
        for _ in range(4):
            state = policy.update_all(state, [(plain, 0.2), (changed, 0.8)])
        return [policy.match(state, [pair], 1)[0].predicted for pair in (plain, changed)]

    one, two = predicted(Pairwise(without=(group,)))
    assert one == two
    one, two = predicted(Pairwise())
    assert two > one + 0.1


# Nothing left out


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_leaving_out_what_is_always_zero_changes_no_bit(environment: str) -> None:
    """Trust, lead and protocol are in no synthetic federation: with and without them, states are the same bytes."""
    states = []
    for policy in (Pairwise(), Pairwise(without=("trust", "lead", "protocol"))):
        federation, state = ENVIRONMENTS[environment](8, "high", 0), policy.init(0)
        place = {name: index for index, name in enumerate(federation.names)}
        for _ in range(10):
            pairs = policy.match(state, candidates(federation), 4)
            rewards = federation.exchange([(place[pair.source], place[pair.receiver]) for pair in pairs])
            state = policy.update_all(state, zip(pairs, rewards, strict=True))
        states.append({name: value.tobytes() for name, value in state.items()})
    assert states[0] == states[1]


def test_the_matchmaking_study_stands_as_committed() -> None:
    """One setting of it, played again: 20 federations of 8 agents in a second or two."""
    summary = json.loads((DOCS / "matchmaking" / "summary.json").read_text(encoding="utf-8"))
    setting = {"environment": "skill", "agents": 8, "heterogeneity": "high", "arm": "pairwise"}
    (row,) = [row for row in summary["rows"] if setting.items() <= row.items()]
    found = [play(Cell(**setting, seed=seed, rounds=summary["plan"]["rounds"])) for seed in range(row["seeds"])]
    for measure in ("reward", "regret", "skill", "worst", "abstained"):
        mean = np.mean([getattr(one, measure) for one in found])
        assert row[measure][0] == pytest.approx(mean, abs=1e-5), measure


# The study


def record(place: tuple[str, int, str, int], arm: str, reward: float) -> dict[str, Any]:
    environment, agents, heterogeneity, seed = place
    about = {"environment": environment, "agents": agents, "heterogeneity": heterogeneity, "seed": seed}
    return {**about, "arm": arm, "reward": reward}


def test_differences_are_paired_and_averaged_over_heterogeneities() -> None:
    """Seeds differ much more than policies do, and by the same for all: the intervals have no width."""
    plan = Plan(agents=(8,), heterogeneity=("low", "high"), seeds=3)
    levels = {"uniform": 0.0, "pairwise": 0.8, "oracle": 1.0, **dict.fromkeys(ABLATED, 0.8)}
    found = summarise(
        plan,
        [
            record((environment, 8, heterogeneity, seed), arm, level * scale + seed)
            for environment in ENVIRONMENTS
            for heterogeneity, scale, lost in (("low", 0.1, 0.4), ("high", 0.5, 0.2))
            for seed in range(3)
            for arm, level in (levels | {"without sides": 0.8 - lost}).items()
        ],
    )
    assert len(found) == 2 * 3 * (1 + len(ABLATED))
    rows = {(row["heterogeneity"], row["arm"]): row for row in found if row["environment"] == "trust"}
    assert rows["low", "without sides"]["over_whole"] == pytest.approx((-0.4,) * 3)
    assert rows["high", "without sides"]["gap_closed"] == pytest.approx((0.6,) * 3)
    assert rows["all", "without sides"]["over_whole"] == pytest.approx((-0.3,) * 3)
    assert rows["all", "without sides"]["gap_closed"] == pytest.approx((0.5,) * 3)
    assert rows["all", "without recency"]["over_whole"] == (0.0, 0.0, 0.0)
    page = markdown(found)
    assert "| policy | `trust`, 8 agents | `skill`, 8 agents |" in page
    assert "| without sides | 0.50; **-0.30 (-0.30 to -0.30)** |" in page and "| 0.80; +0.00 (+0.00 to +0.00) |" in page


def test_the_study_writes_its_files(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    plan = Plan(agents=(4,), heterogeneity=("low",), seeds=2, rounds=2)
    files = ablation.study(tmp_path / "out", plan, lambda done, of: heard.append((done, of)))
    assert [path.name for path in files] == ["summary.json", "table.md"]
    assert heard[-1] == (2 * 2 * len(ablation.ARMS),) * 2
    summary = json.loads(files[0].read_text())
    assert summary["plan"]["seeds"] == 2 and len(summary["rows"]) == 2 * 2 * (1 + len(ABLATED))
    assert markdown(summary["rows"]) == files[1].read_text()


def test_every_group_of_synthetic_federations_is_left_out_once() -> None:
    there = {group for group in GROUPS if group not in dict(NOT_OF_PROFILES)}
    assert {f"without {group}" for group in there} < set(ABLATED) and len(ABLATED) == len(there) + 1
    assert set(ablation.ARMS) == {"uniform", "pairwise", "oracle", *ABLATED}
    assert not set(ABLATED) & set(matchmaking.ARMS)


def test_the_results_page_holds_the_table_of_the_committed_summary() -> None:
    summary = json.loads((DOCS / "matchmaking" / "ablation" / "summary.json").read_text(encoding="utf-8"))
    assert summary["plan"] == json.loads(json.dumps(matchmaking.asdict(PLAN)))
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    assert markdown(summary["rows"]) in page, "run `peertune study ablation` and copy table.md"
