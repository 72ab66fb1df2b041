"""The distillation loss against plain forms of it, its gradients against numerical ones, and its edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peertune.divergences import Divergence, absolute, jensen_shannon, kl
from peertune.knowledge import pack
from peertune.losses import Loss, Teacher, distillation_loss, most_probable, most_probable_and_loss, taught_loss

V, D, N = 23, 3, 7


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def top_k(logits: Tensor, k: int) -> Teacher:
    """The k most probable of each row, and the log of the probability of the others."""
    logp = torch.log_softmax(logits, 1)
    listed, ids = logp.topk(k)
    return Teacher(listed, ids, logp.scatter(1, ids, -torch.inf).logsumexp(1))


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, teacher: Teacher, temperature: float = 1.0) -> Tensor:
    """The same loss, written down with all logits and without care for memory or small tails."""
    student = torch.log_softmax(torch.nn.functional.linear(hidden, weight, bias), 1)
    expected = teacher.logp
    if teacher.ids is not None and teacher.tail is not None:
        listed = student.gather(1, teacher.ids)
        student = torch.cat([listed, (1 - listed.exp().sum(1, keepdim=True)).log()], 1)
        expected = torch.cat([expected, teacher.tail[:, None]], 1)
    found, wanted = (torch.log_softmax(each / temperature, 1) for each in (student, expected))
    return temperature**2 * (wanted.exp() * (wanted - found)).sum(1).mean()


def values(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("k", [1, 4, V - 1, None])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("chunk", [1, 3, N, 64])
def test_loss_and_gradients_are_those_of_the_plain_form(k: int | None, temperature: float, chunk: int) -> None:
    inputs = hidden, weight, bias = [numbers(*shape).requires_grad_() for shape in ((N, D), (V, D), (V,))]
    logits = numbers(N, V, seed=1, scale=2.0)
    teacher = top_k(logits, k) if k else Teacher(torch.log_softmax(logits, 1))
    found = values(distillation_loss(hidden, weight, bias, teacher, temperature, chunk), *inputs)
    expected = values(plain(hidden, weight, bias, teacher, temperature), *inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [4, V, None])
def test_gradients_are_the_numerical_ones(k: int | None) -> None:
    logits = numbers(N, V, seed=1)
    teacher = top_k(logits, k) if k else Teacher(torch.log_softmax(logits, 1))
    inputs = [numbers(*shape, seed=2).requires_grad_() for shape in ((N, D), (V, D), (V,))]
    assert torch.autograd.gradcheck(lambda *each: 3 * distillation_loss(*each, teacher, 2.0, 3), inputs)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_all_tokens_listed_is_the_dense_loss(temperature: float) -> None:
    hidden, weight = numbers(N, D).requires_grad_(), numbers(V, D)
    logits = numbers(N, V, seed=1)
    sparse, dense = top_k(logits, V), Teacher(torch.log_softmax(logits, 1))
    assert sparse.tail is not None and bool(sparse.tail.isneginf().all())
    ours, theirs = (
        values(distillation_loss(hidden, weight, None, each, temperature, 4), hidden) for each in (sparse, dense)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight = numbers(N, D).requires_grad_(), numbers(V, D)
    distillation_loss(hidden, weight, None, top_k(numbers(N, V), 4)).backward()
    assert hidden.grad is not None and weight.grad is None
    with torch.no_grad():
        assert not distillation_loss(hidden, weight, None, top_k(numbers(N, V), 4)).requires_grad


def test_a_label_is_a_teacher_with_one_token() -> None:
    hidden, weight = numbers(N, D), numbers(V, D)
    labels = torch.arange(N)
    teacher = Teacher(torch.zeros(N, 1), labels[:, None], torch.full((N,), -torch.inf))
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels)
    torch.testing.assert_close(distillation_loss(hidden, weight, None, teacher), expected)


def test_padding_changes_nothing() -> None:
    hidden, weight = numbers(N, D).requires_grad_(), numbers(V, D)
    teacher = top_k(numbers(N, V, seed=1), 4)
    assert teacher.ids is not None
    padded = Teacher(
        torch.cat([teacher.logp, torch.full((N, 3), -torch.inf)], 1),
        torch.cat([teacher.ids, teacher.ids[:, :1].expand(N, 3)], 1),
        teacher.tail,
    )
    ours, theirs = (values(distillation_loss(hidden, weight, None, each, 2.0), hidden) for each in (padded, teacher))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_tail_of_a_billionth_is_exact_in_fp32() -> None:
    """1 - sum of the listed is 0 or 1e-7 in fp32; the teacher's tail is e^-21, the student's e^-20."""
    bias = torch.tensor([0.0, -20.0])
    teacher = Teacher(torch.tensor([[math.log1p(-math.exp(-21))]]), torch.tensor([[0]]), torch.tensor([-21.0]))
    hidden = torch.zeros(1, 1, requires_grad=True)
    loss = distillation_loss(hidden, torch.tensor([[0.0], [1.0]]), bias, teacher, temperature=10.0)
    odds, expected = (1 / (1 + math.exp(-each)) for each in (2.0, 2.1))
    divergence = expected * math.log(expected / odds) + (1 - expected) * math.log((1 - expected) / (1 - odds))
    assert loss.item() == pytest.approx(100 * divergence, rel=1e-4)
    loss.backward()
    assert hidden.grad is not None and hidden.grad.item() == pytest.approx(10 * (expected - odds), rel=1e-4)


def test_all_mass_listed_pushes_the_tail_down() -> None:
    logits = numbers(N, V).requires_grad_()
    teacher = Teacher(
        torch.full((N, 2), math.log(0.5)), torch.tensor([[0, 1]]).expand(N, 2), torch.full((N,), -torch.inf)
    )
    loss = distillation_loss(logits, torch.eye(V, dtype=torch.float64), None, teacher)
    loss.backward()
    assert math.isfinite(loss.item()) and loss.item() > 0
    assert logits.grad is not None and bool((logits.grad[:, 2:] > 0).all())


def test_bf16_states_lose_what_fp32_states_lose() -> None:
    hidden, weight = numbers(N, D).bfloat16().requires_grad_(), numbers(V, D).bfloat16()
    teacher = top_k(numbers(N, V, seed=1).float(), 4)
    found = values(distillation_loss(hidden, weight, None, teacher), hidden)
    precise = hidden.detach().float().requires_grad_()
    expected = values(distillation_loss(precise, weight.float(), None, teacher), precise)
    assert found[0].dtype == torch.float32 and found[1].dtype == torch.bfloat16
    torch.testing.assert_close(found[0], expected[0], rtol=2e-2, atol=0.0)
    torch.testing.assert_close(found[1].float(), expected[1], rtol=5e-2, atol=2e-3)


@given(
    seed=st.integers(0, 1 << 30),
    scale=st.floats(0.1, 30),
    temperature=st.floats(0.2, 8),
    k=st.integers(1, V),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60)
def test_never_negative_and_nothing_between_equals(
    seed: int, scale: float, temperature: float, k: int, dtype: torch.dtype
) -> None:
    student, other = (numbers(N, V, seed=seed + each, scale=scale).to(dtype) for each in (0, 1))
    identity, slack = torch.eye(V, dtype=dtype), 100 * torch.finfo(dtype).eps * max(1.0, temperature**2)
    assert distillation_loss(student, identity, None, top_k(other, k), temperature).item() >= -slack
    hidden = student.clone().requires_grad_()
    same = distillation_loss(hidden, identity, None, top_k(student, k), temperature)
    assert abs(same.item()) <= slack
    assert values(same, hidden)[1].abs().max() <= slack


@given(seed=st.integers(0, 1 << 30), k=st.integers(1, V - 1))
@settings(max_examples=30)
def test_knowing_less_never_costs_more(seed: int, k: int) -> None:
    """At temperature 1 a coarser teacher's divergence is a lower bound (data processing)."""
    student, teacher = numbers(N, V, seed=seed), numbers(N, V, seed=seed + 1, scale=3.0)
    coarse, fine = (
        distillation_loss(student, torch.eye(V, dtype=torch.float64), None, top_k(teacher, each)) for each in (k, k + 1)
    )
    assert coarse <= fine + 1e-12


@pytest.mark.parametrize(("positions", "rows"), [(0, 0), (3, 2), (1, 3)])
def test_every_position_needs_its_row(positions: int, rows: int) -> None:
    with pytest.raises(ValueError, match=f"found {rows} rows for {positions} positions"):
        distillation_loss(numbers(positions, D), numbers(V, D), None, Teacher(numbers(rows, V)))


@pytest.mark.parametrize("k", [1, 4, V, V + 5, None])
@pytest.mark.parametrize("chunk", [2, 64])
def test_what_a_model_expects_is_read_off_its_head(k: int | None, chunk: int) -> None:
    hidden, weight, bias = numbers(N, D), numbers(V, D, seed=1), numbers(V, seed=2)
    logits = torch.nn.functional.linear(hidden, weight, bias)
    expected = top_k(logits, min(k, V)) if k else Teacher(torch.log_softmax(logits, 1))
    found = most_probable(hidden.requires_grad_(), weight, bias, k, chunk)
    torch.testing.assert_close(found.logp, expected.logp)
    if expected.ids is not None:
        assert found.ids is not None and found.ids.dtype == torch.int32
        torch.testing.assert_close(found.ids.long(), expected.ids)
        torch.testing.assert_close(found.tail, expected.tail)
    assert not found.logp.requires_grad
    assert distillation_loss(hidden, weight, bias, found, 2.0).item() == pytest.approx(0, abs=1e-12)


def test_knowledge_that_was_packed_is_a_teacher() -> None:
    """Rows of different counts, padded, teach what the same rows teach one at a time."""
    known = pack(numbers(N, V, seed=1, scale=2.0).numpy(), np.array([N]), 8).trim(0.8)
    assert known.counts is not None and known.ids is not None and known.tail is not None
    logp, ids, tail = (torch.from_numpy(each) for each in (known.logp, known.ids, known.tail))
    hidden, weight = numbers(N, D), numbers(V, D)
    whole = distillation_loss(hidden, weight, None, Teacher(logp, ids, tail), 2.0)
    rows = [
        distillation_loss(
            hidden[row, None],
            weight,
            None,
            Teacher(logp[row, None, :count], ids[row, None, :count], tail[row, None]),
            2.0,
        )
        for row, count in enumerate(known.counts)
    ]
    torch.testing.assert_close(whole, torch.stack(rows).mean())


# Other losses, weights


def classes(logits: Tensor, teacher: Teacher, temperature: float) -> tuple[Tensor, Tensor]:
    """Probabilities of the teacher and of a student with these logits, over the listed tokens and all others."""
    assert teacher.ids is not None and teacher.tail is not None
    listed = torch.log_softmax(logits, 1).gather(1, teacher.ids)
    student = torch.cat([listed, (1 - listed.exp().sum(1, keepdim=True)).log()], 1)
    expected = torch.cat([teacher.logp, teacher.tail[:, None]], 1)
    return (expected / temperature).softmax(1), (student / temperature).softmax(1)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_generalised_jsd_is_that_of_the_paper(beta: float, temperature: float) -> None:
    logits, teacher = numbers(N, V).requires_grad_(), top_k(numbers(N, V, seed=1, scale=2.0), 4)
    p, q = classes(logits, teacher, temperature)
    mixed = beta * p + (1 - beta) * q
    plain = beta * (p * (p / mixed).log()).sum(1) + (1 - beta) * (q * (q / mixed).log()).sum(1)
    loss = Loss(temperature, jensen_shannon(beta))
    found = taught_loss(logits, torch.eye(V, dtype=torch.float64), None, teacher, loss, 3)
    torch.testing.assert_close(values(found, logits), values(plain.mean() * temperature**2, logits))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_uld_compares_what_is_as_probable(temperature: float) -> None:
    """Whatever the ids: those of the teacher may be of another vocabulary, and beyond the student's."""
    logits, teacher = numbers(N, V).requires_grad_(), top_k(numbers(N, V, seed=1, scale=2.0), 4)
    assert teacher.ids is not None
    foreign = Teacher(teacher.logp, teacher.ids + 10 * V, teacher.tail)
    own = Teacher(teacher.logp, logits.detach().topk(4).indices, teacher.tail)
    p, q = classes(logits, own, temperature)
    loss = Loss(temperature, absolute, ranked=True)
    found = taught_loss(logits, torch.eye(V, dtype=torch.float64), None, foreign, loss, 3)
    torch.testing.assert_close(values(found, logits), values((p - q).abs().sum(1).mean(), logits))
    few = taught_loss(numbers(N, 3), torch.eye(3, dtype=torch.float64), None, foreign, loss)  # a smaller vocabulary
    assert math.isfinite(few.item())


@pytest.mark.parametrize("divergence", [kl, jensen_shannon(0.3), absolute])
@pytest.mark.parametrize("ranked", [True, False])
@pytest.mark.parametrize("k", [4, V])
def test_every_loss_is_nothing_between_equals_and_finite_with_padding(
    divergence: Divergence, ranked: bool, k: int
) -> None:
    logits = numbers(N, V).requires_grad_()
    same, other = top_k(logits.detach(), k), top_k(numbers(N, V, seed=1), k)
    assert other.ids is not None
    padded = Teacher(
        torch.cat([other.logp, torch.full((N, 2), -torch.inf)], 1),
        torch.cat([other.ids, other.ids[:, :1].expand(N, 2)], 1),
        other.tail,
    )
    identity, loss = torch.eye(V, dtype=torch.float64), Loss(1.5, divergence, ranked)
    assert taught_loss(logits, identity, None, same, loss).item() == pytest.approx(0, abs=1e-12)
    ours, theirs = (values(taught_loss(logits, identity, None, each, loss), logits) for each in (padded, other))
    if k < V or not ranked:  # else there are fewer tokens than entries
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-13)
    assert bool(torch.isfinite(ours[1]).all())


def test_positions_count_by_their_weights() -> None:
    hidden, head = numbers(N, D).requires_grad_(), numbers(V, D)
    teacher = top_k(numbers(N, V, seed=1), 4)
    weights = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weighted = Teacher(teacher.logp, teacher.ids, teacher.tail, weights)
    each = [distillation_loss(hidden[row, None], head, None, teacher.split(1)[row]) for row in range(N)]
    found = values(distillation_loss(hidden, head, None, weighted, chunk=3), hidden)
    torch.testing.assert_close(found, values((torch.stack(each) * weights).sum() / weights.sum(), hidden))


def test_losses_on_labels_come_with_what_is_expected() -> None:
    hidden, head, bias = numbers(70, D).float(), numbers(V, D).float(), numbers(V).float()
    labels = torch.arange(70) % V
    teacher, nats = most_probable_and_loss(hidden, head, bias, labels, 4)
    logits = hidden @ head.T + bias
    torch.testing.assert_close(nats, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    torch.testing.assert_close(teacher.logp, most_probable(hidden, head, bias, 4).logp)
