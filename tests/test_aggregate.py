"""Aggregation of adapters against the dense sum sum_k p_k s_k B_k A_k, which only these tests form."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peertune.aggregate import AGGREGATORS, Aggregate, Update, fold, for_rank, relative_error
from peertune.errors import MethodError

Arrays = Mapping[str, np.ndarray]
LAYERS = {"up": (40, 24), "down": (24, 40), "square": (32, 32)}  # out, in
MIXED = [name for name, rule in AGGREGATORS.items() if rule.mixed_ranks]
EQUAL = [name for name, rule in AGGREGATORS.items() if not rule.mixed_ranks]
WHOLE = [name for name, rule in AGGREGATORS.items() if rule.trained(1) == rule.shared(1) == "AB"]


def tensors(rank: int, random: np.random.Generator, layers: Mapping[str, tuple[int, int]] = LAYERS) -> Arrays:
    found = {"head.weight": random.normal(size=(5, 7))}
    for layer, (out, width) in layers.items():
        found[f"model.{layer}.lora_A.weight"] = random.normal(size=(rank, width))
        found[f"model.{layer}.lora_B.weight"] = random.normal(size=(out, rank))
    return {name: tensor.astype(np.float32) for name, tensor in found.items()}


def clients(ranks: Sequence[int], seed: int = 0, scale: float = 2.0) -> list[Update]:
    """Of unequal weights, in fp32."""
    random = np.random.default_rng(seed)
    return [Update(f"a{index}", tensors(rank, random), 10.0 + 7 * index, scale) for index, rank in enumerate(ranks)]


def changed(update: Update, new: Arrays) -> Update:
    return Update(update.name, {**update.tensors, **new}, update.weight, update.scale)


def only(update: Update, letters: str) -> Update:
    """What travels of it."""
    kept = {name: tensor for name, tensor in update.tensors.items() if any(f"lora_{each}." in name for each in letters)}
    return Update(update.name, kept, update.weight, update.scale)


def dense_product(found: Arrays, matrix: str, kind: str = "lora") -> np.ndarray:
    """B A in float64; 0 where there are no factors."""
    if f"model.{matrix}.{kind}_A.weight" not in found:
        return np.zeros(())
    b, a = (found[f"model.{matrix}.{kind}_{letter}.weight"].astype(np.float64) for letter in "BA")
    return b @ a


def wanted(updates: Sequence[Update], matrix: str) -> np.ndarray:
    total = sum(update.weight for update in updates)
    return np.sum([each.weight / total * each.scale * dense_product(each.tensors, matrix) for each in updates], axis=0)


def reached(aggregate: Aggregate, matrix: str) -> np.ndarray:
    own = aggregate.scale * dense_product(aggregate.factors, matrix)
    return own + dense_product(aggregate.frozen, matrix, "frozen")


def dense_error(updates: Sequence[Update], aggregate: Aggregate) -> float:
    missed = [wanted(updates, matrix) - reached(aggregate, matrix) for matrix in LAYERS]
    whole = [wanted(updates, matrix) for matrix in LAYERS]
    return float(np.sqrt(sum((each**2).sum() for each in missed) / sum((each**2).sum() for each in whole)))


def with_common(updates: Sequence[Update], letter: str) -> list[Update]:
    """All have the first one's A (or B)."""
    common = {name: tensor for name, tensor in updates[0].tensors.items() if f"lora_{letter}." in name}
    return [changed(update, common) for update in updates]


@pytest.mark.parametrize("name", WHOLE)
def test_the_error_is_that_of_the_dense_sums(name: str) -> None:
    updates = clients([4, 8, 16] if name in MIXED else [8, 8, 8, 8])
    found = AGGREGATORS[name].combine(updates)
    error = relative_error(updates, found)
    assert error == pytest.approx(dense_error(updates, found), rel=1e-5, abs=1e-9)
    assert error < 1e-6 if AGGREGATORS[name].exact else 0.05 < error < 1.5
    little = [Update(each.name, each.tensors, each.weight, 1e-6 * each.scale) for each in updates]
    assert relative_error(little, AGGREGATORS[name].combine(little)) == pytest.approx(error, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("name", "common"), [("ffa", "A"), ("rolora", "A"), ("rolora", "B")])
def test_a_mean_with_a_common_factor_is_exact(name: str, common: str) -> None:
    """Only the other factor travels; at home the product is whole again."""
    updates = with_common(clients([8] * 4), common)
    moving = "B" if common == "A" else "A"
    sent = [only(update, moving) for update in updates]
    found = AGGREGATORS[name].combine(sent)
    assert relative_error(sent, found) < 1e-6
    at_home = Aggregate({**updates[0].tensors, **found.factors}, found.frozen, found.scale)
    assert dense_error(updates, at_home) < 1e-6


def test_a_mean_between_common_factors_is_exact() -> None:
    """fed_sb: dW = s B R A."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(6, 20)), random.normal(size=(30, 6))
    sent = [
        Update(f"a{index}", {"m.lora_R.weight": random.normal(size=(6, 6)).astype(np.float32)}, index + 1.0, 0.5)
        for index in range(3)
    ]
    found = AGGREGATORS["fed_sb"].combine(sent)
    expected = sum(each.weight / 6 * b @ each.tensors["m.lora_R.weight"] @ a for each in sent)
    np.testing.assert_allclose(b @ found.factors["m.lora_R.weight"] @ a, expected, atol=1e-5)
    assert relative_error(sent, found) < 1e-6


def test_the_mean_misses_the_covariance_of_the_factors() -> None:
    updates = clients([8] * 4)
    found = AGGREGATORS["fedit"].combine(updates)
    shares = np.array([update.weight for update in updates]) / sum(update.weight for update in updates)
    for matrix in LAYERS:
        a, b = (
            np.array([each.tensors[f"model.{matrix}.lora_{letter}.weight"] for each in updates], dtype=np.float64)
            for letter in "AB"
        )
        centred = (factor - np.tensordot(shares, factor, 1) for factor in (b, a))
        covariance = 2.0 * np.einsum("k,kor,kri->oi", shares, *centred)
        np.testing.assert_allclose(wanted(updates, matrix) - reached(found, matrix), covariance, atol=2e-5)


def test_what_the_mean_misses_travels_as_factors_of_low_rank() -> None:
    found = AGGREGATORS["fedex"].combine(clients([3] * 4))
    assert found.frozen["model.square.frozen_B.weight"].shape == (32, 9)  # (K - 1) r
    assert found.frozen["model.square.frozen_A.weight"].shape == (9, 32)
    mean = AGGREGATORS["fedit"].combine(clients([3] * 4))
    for name, tensor in mean.factors.items():
        np.testing.assert_array_equal(found.factors[name], tensor)


def test_scaling_both_factors_of_a_stack_is_seen() -> None:
    """p_k and s_k on A as well as on B: what FLoRA's stack must not do."""
    updates = clients([4] * 4)
    right = AGGREGATORS["flora"].combine(updates)
    once = np.repeat([2.0 * update.weight for update in updates], 4)[:, None] / sum(each.weight for each in updates)
    twice = {name: tensor * once if "frozen_A" in name else tensor for name, tensor in right.frozen.items()}
    assert relative_error(updates, right) < 1e-6
    assert relative_error(updates, Aggregate(right.factors, twice, right.scale)) > 0.3


def test_the_best_of_each_rank_is_the_truncated_svd() -> None:
    """Of clients of rank 4, 8 and 16, alpha 16; each gets it in its own scale."""
    updates = [
        Update(each.name, each.tensors, each.weight, scale)
        for each, scale in zip(clients([4, 8, 16]), (4.0, 2.0, 1.0), strict=True)
    ]
    found = AGGREGATORS["flexlora"].combine(updates)
    for update, rank in zip(updates, (4, 8, 16), strict=True):
        own = for_rank(found.factors, rank, found.scale / update.scale)
        assert {name: tensor.shape for name, tensor in own.items()} == {
            name: tensor.shape for name, tensor in update.tensors.items()
        }
        for matrix in LAYERS:
            u, values, v = np.linalg.svd(wanted(updates, matrix))
            expected = (u[:, :rank] * values[:rank]) @ v[:rank]
            np.testing.assert_allclose(update.scale * dense_product(own, matrix), expected, atol=2e-5)


def test_both_factors_of_the_best_share_its_size() -> None:
    factors = AGGREGATORS["flexlora"].combine(clients([8] * 3)).factors
    for matrix in LAYERS:
        rows = np.linalg.norm(factors[f"model.{matrix}.lora_A.weight"], axis=1)
        columns = np.linalg.norm(factors[f"model.{matrix}.lora_B.weight"], axis=0)
        np.testing.assert_allclose(rows, columns, rtol=1e-5)
        assert all(one > two for one, two in pairwise(rows))


def test_padded_factors_are_weighted_by_their_norm() -> None:
    """Norms 3 and 1; the client of rank 1 says nothing of the second row. Both products in one scale."""
    one = {"m.lora_A.weight": np.array([[3.0, 0.0]]), "m.lora_B.weight": np.array([[1.0], [0.0]])}
    two = {"m.lora_A.weight": np.array([[0.0, 1.0], [0.0, 0.0]]), "m.lora_B.weight": np.array([[0.0, 4.0], [1.0, 0.0]])}
    updates = [Update("a0", one, 1.0, 1.0), Update("a1", two, 9.0, 1.0)]
    found = AGGREGATORS["hetlora"].combine(updates)
    np.testing.assert_allclose(found.factors["m.lora_A.weight"], [[2.25, 0.25], [0.0, 0.0]])
    np.testing.assert_allclose(found.factors["m.lora_B.weight"], [[0.75, 1.0], [0.25, 0.0]])
    quarter = Update("a0", {name: tensor / 2 for name, tensor in one.items()}, 1.0, 4.0)
    same = AGGREGATORS["hetlora"].combine([quarter, updates[1]])
    assert same.scale == 4.0
    np.testing.assert_allclose(2 * same.factors["m.lora_A.weight"], found.factors["m.lora_A.weight"])
    np.testing.assert_allclose(2 * same.factors["m.lora_B.weight"], found.factors["m.lora_B.weight"])


@pytest.mark.parametrize("name", AGGREGATORS)
def test_dense_tensors_are_averaged_by_examples(name: str) -> None:
    heads = [np.full((2, 3), value, dtype=np.float32) for value in (1.0, 5.0)]
    first, second = clients([4, 4])
    updates = [
        Update(each.name, {**only(each, AGGREGATORS[name].shared(1)).tensors, "score.weight": head}, weight, 1.0)
        for each, head, weight in zip((first, second), heads, (30, 10), strict=True)
    ]
    np.testing.assert_array_equal(AGGREGATORS[name].combine(updates).factors["score.weight"], np.full((2, 3), 2.0))


def test_clients_begin_anew_after_a_stack() -> None:
    found = AGGREGATORS["flora"].combine(clients([4, 8]))
    assert set(found.factors) == {"head.weight"}
    assert found.frozen["model.up.frozen_B.weight"].shape == (40, 12)


def test_nobody_has_learnt_anything() -> None:
    """B = 0 everywhere: nothing is divided by zero, and no row is left that could never learn again."""
    updates = [
        changed(each, {name: 0 * tensor for name, tensor in each.tensors.items() if "lora_B" in name})
        for each in clients([4, 4])
    ]
    for name in WHOLE:
        found = AGGREGATORS[name].combine(updates)
        assert relative_error(updates, found) == 0.0
        assert all(tensor.any() for factor, tensor in found.factors.items() if "lora_A" in factor and tensor.size)
    assert AGGREGATORS["flexlora"].combine(updates).factors["model.up.lora_A.weight"].shape == (0, 24)


def test_cutting_to_a_rank() -> None:
    factors = clients([8])[0].tensors
    cut = for_rank(factors, 3, gain=4.0)
    np.testing.assert_array_equal(cut["model.up.lora_A.weight"], 2 * factors["model.up.lora_A.weight"][:3])
    np.testing.assert_array_equal(cut["model.up.lora_B.weight"], 2 * factors["model.up.lora_B.weight"][:, :3])
    np.testing.assert_array_equal(cut["head.weight"], factors["head.weight"])
    for name, tensor in for_rank(factors, 12).items():  # no more than there is
        np.testing.assert_array_equal(tensor, factors[name])
        assert tensor.dtype == np.float32


def test_frozen_parts_add_up_and_stay_small() -> None:
    """Twelve rounds of rank 9: beyond a rank of 24 the matrix itself is kept."""
    frozen: Arrays = {}
    total = dict.fromkeys(LAYERS, np.zeros(()))
    for seed in range(12):
        new = AGGREGATORS["fedex"].combine(clients([3] * 4, seed)).frozen
        frozen = fold(frozen, new)
        total = {matrix: total[matrix] + dense_product(new, matrix, "frozen") for matrix in LAYERS}
        for matrix, shape in LAYERS.items():
            assert len(frozen[f"model.{matrix}.frozen_A.weight"]) == min(9 * (seed + 1), *shape)
            scale = np.abs(total[matrix]).max()
            np.testing.assert_allclose(dense_product(frozen, matrix, "frozen"), total[matrix], atol=1e-6 * scale)


def test_frozen_parts_of_different_matrices_are_kept() -> None:
    one, two = (
        {f"{name}.frozen_A.weight": np.ones((1, 3)), f"{name}.frozen_B.weight": np.ones((3, 1))} for name in "xy"
    )
    assert set(fold(one, two)) == {*one, *two}


def test_a_wide_sum_is_kept_as_the_matrix_itself() -> None:
    updates = clients([16] * 4)  # 64 > 32
    for name, rank in (("flora", 32), ("fedex", 32)):
        found = AGGREGATORS[name].combine(updates)
        assert len(found.frozen["model.square.frozen_A.weight"]) == rank
        assert relative_error(updates, found) < 1e-6


def test_clients_without_examples_do_not_count() -> None:
    updates = clients([4, 4, 4])
    idle = Update("idle", clients([4], seed=9)[0].tensors, 0, 2.0)
    for name in WHOLE:
        with_idle, without = (AGGREGATORS[name].combine(each) for each in ([*updates, idle], updates))
        assert_same(with_idle, without)


def test_half_precision_updates() -> None:
    half = [
        Update(each.name, {name: tensor.astype(np.float16) for name, tensor in each.tensors.items()}, each.weight, 1.0)
        for each in clients([8] * 3)
    ]
    for name in ("fedex", "flora"):
        found = AGGREGATORS[name].combine(half)
        assert relative_error(half, found) < 1e-6
        assert {tensor.dtype for tensor in (*found.factors.values(), *found.frozen.values())} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("name", "trained", "shared"),
    [
        ("fedit", ("AB", "AB"), ("AB", "AB")),
        ("ffa", ("B", "B"), ("B", "B")),
        ("rolora", ("B", "A"), ("B", "A")),
        ("fedsa", ("AB", "AB"), ("A", "A")),
        ("fed_sb", ("R", "R"), ("R", "R")),
    ],
)
def test_what_is_trained_and_shared_in_odd_and_even_rounds(
    name: str, trained: tuple[str, str], shared: tuple[str, str]
) -> None:
    rule = AGGREGATORS[name]
    assert tuple(rule.trained(t) for t in (1, 2)) == tuple(rule.trained(t) for t in (3, 4)) == trained
    assert tuple(rule.shared(t) for t in (1, 2)) == shared


@pytest.mark.parametrize("name", EQUAL)
def test_rules_of_one_rank_refuse_others(name: str) -> None:
    updates = [only(update, AGGREGATORS[name].shared(1)) for update in clients([4, 8])]
    if name == "fed_sb":
        updates = [Update(f"a{r}", {"m.lora_R.weight": np.eye(r)}, 1.0, 1.0) for r in (4, 8)]
    with pytest.raises(MethodError, match=r"a\d and a\d: expected one model and one rank .*flexlora"):
        AGGREGATORS[name].combine(updates)
    first, second = with_common(clients([4, 4]), "A")
    with pytest.raises(MethodError, match="a0 and a1: expected one scale .* 2 and 3"):
        AGGREGATORS[name].combine([first, Update("a1", second.tensors, 1.0, 3.0)])


@pytest.mark.parametrize("name", AGGREGATORS)
def test_updates_of_different_models_are_refused(name: str) -> None:
    first, second = clients([4, 4])
    random = np.random.default_rng(0)
    other = Update("b", tensors(4, random, {**LAYERS, "up": (40, 25)}), 1.0, 2.0)
    with pytest.raises(MethodError, match=r"a0 and b: expected one model.*up.lora_A.weight of the shapes"):
        AGGREGATORS[name].combine([first, second, other])
    fewer = Update("b", tensors(4, random, {"up": (40, 24)}), 1.0, 2.0)
    with pytest.raises(MethodError, match=r"a0 and b: .* 4 tensors are of one alone, the first model.down.lora_A"):
        AGGREGATORS[name].combine([first, second, fewer])


@pytest.mark.parametrize("name", AGGREGATORS)
def test_updates_without_examples_are_refused(name: str) -> None:
    idle = [Update(each.name, each.tensors, 0, each.scale) for each in clients([4, 4])]
    for updates in (idle, []):
        with pytest.raises(MethodError, match=f"found {len(updates)} updates and no example"):
            AGGREGATORS[name].combine(updates)


@pytest.mark.parametrize("name", ["fedex", *MIXED])
def test_products_need_both_factors(name: str) -> None:
    with pytest.raises(MethodError, match="model.up: expected lora_A and lora_B, found only A"):
        AGGREGATORS[name].combine([only(update, "A") for update in clients([4, 4])])


@pytest.mark.parametrize(
    ("tensors", "weight", "scale", "message"),
    [
        ({"head": np.array([1.0, np.nan])}, 1, 1, "bad: head holds NaN"),
        ({"head": np.array([np.inf])}, 1, 1, "bad: head holds NaN, infinity"),
        ({"head": np.array([1, 2])}, 1, 1, "bad: head holds .* no floats"),
        ({}, -1, 1, "bad: expected a finite weight .* found -1 and 1"),
        ({}, np.nan, 1, "bad: expected a finite weight"),
        ({}, np.inf, 1, "bad: expected a finite weight"),
        ({}, 1, 0, "scale > 0, found 1 and 0"),
        ({"m.lora_A.weight": np.ones(3)}, 1, 1, "bad: m.lora_A.weight: expected a matrix"),
        ({"m.lora_R.weight": np.ones((2, 3))}, 1, 1, r"bad: m: .* one rank, found R \(2, 3\)"),
        ({"m.lora_A.weight": np.ones((2, 3)), "m.lora_B.weight": np.ones((4, 3))}, 1, 1, "bad: m: .* one rank"),
    ],
)
def test_what_no_adapter_can_be_is_refused(tensors: Arrays, weight: float, scale: float, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        Update("bad", tensors, weight, scale)


@st.composite
def federations(draw: st.DrawFn, mixed: bool) -> list[Update]:
    count = draw(st.integers(1, 5))
    rank = st.integers(1, 6)
    ranks = draw(st.lists(rank, min_size=count, max_size=count)) if mixed else [draw(rank)] * count
    layers = {"up": (draw(st.integers(1, 12)), draw(st.integers(1, 12)))}
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    return [
        Update(f"a{index}", tensors(rank, random, layers), draw(st.integers(1, 50)), draw(st.sampled_from((0.5, 2.0))))
        if mixed
        else Update(f"a{index}", tensors(rank, random, layers), draw(st.integers(1, 50)), 2.0)
        for index, rank in enumerate(ranks)
    ]


def assert_same(one: Aggregate, two: Aggregate) -> None:
    """The same products and dense tensors."""
    np.testing.assert_allclose(one.factors["head.weight"], two.factors["head.weight"], atol=1e-5)
    for kind, parts in (("lora", (one.factors, two.factors)), ("frozen", (one.frozen, two.frozen))):
        assert parts[0].keys() == parts[1].keys()
        for name in parts[0]:
            if f".{kind}_A." in name:
                products = [each[name.replace("_A.", "_B.")] @ each[name] for each in parts]
                np.testing.assert_allclose(products[0], products[1], atol=2e-4)
    assert one.scale == two.scale


@pytest.mark.parametrize("name", WHOLE)
@given(data=st.data())
@settings(max_examples=25)
def test_the_order_of_clients_does_not_matter(name: str, data: st.DataObject) -> None:
    updates = data.draw(federations(mixed=name in MIXED))
    shuffled = data.draw(st.permutations(updates))
    assert_same(AGGREGATORS[name].combine(updates), AGGREGATORS[name].combine(shuffled))


@pytest.mark.parametrize("name", WHOLE)
@given(data=st.data())
@settings(max_examples=25)
def test_one_client_goes_on_from_its_own_adapter(name: str, data: st.DataObject) -> None:
    update = data.draw(federations(mixed=name in MIXED))[0]
    found = AGGREGATORS[name].combine([update])
    assert missed([update], found) < 1e-6
    if not AGGREGATORS[name].mixed_ranks:
        assert not found.frozen
        for tensor, expected in zip(found.factors.values(), update.tensors.values(), strict=True):
            np.testing.assert_array_equal(tensor, expected)


@pytest.mark.parametrize("name", [name for name in WHOLE if AGGREGATORS[name].exact])
@given(data=st.data())
@settings(max_examples=25)
def test_exact_rules_are_exact_for_all_shapes(name: str, data: st.DataObject) -> None:
    updates = data.draw(federations(mixed=name in MIXED))
    assert missed(updates, AGGREGATORS[name].combine(updates)) < 1e-6


def missed(updates: Sequence[Update], aggregate: Aggregate) -> float:
    """Relative to what is added up, which may be far more than what is left of it."""
    total, sizes = sum(update.weight for update in updates), 0.0
    for update in updates:
        factors = [tensor for name, tensor in update.tensors.items() if "lora" in name]
        sizes += update.weight / total * update.scale * float(np.prod([np.linalg.norm(factor) for factor in factors]))
    return float(np.linalg.norm(wanted(updates, "up") - reached(aggregate, "up"))) / sizes
