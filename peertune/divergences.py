"""How far a student's distribution over a few classes is from a teacher's, and the gradient by the student's logits."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# (logits of the student [n, c], of the teacher [n, c], temperature) -> (losses [n], gradient by the student's [n, c])
Divergence = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def kl(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), nats."""
    expected, found = _log_probabilities(student, teacher, temperature)
    probability = expected.exp()
    loss = torch.where(probability > 0, probability * (expected - found), 0.0).sum(1) * temperature**2
    return loss, found.exp_().sub_(probability).mul_(temperature)


def jensen_shannon(beta: float) -> Divergence:
    """The generalised Jensen-Shannon divergence, nats: T^2 (beta KL(P || M) + (1 - beta) KL(Q || M)), with the mixture
    M = beta P + (1 - beta) Q of teacher P and student Q (Agarwal et al. 2023, arXiv:2306.13649, Eq. 1).

    Its derivative by q_i is (1 - beta) log(q_i / m_i).
    """

    def divergence(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        expected, found = _log_probabilities(student, teacher, temperature)
        mixed = torch.logaddexp(expected + math.log(beta), found + math.log1p(-beta))
        p, q = expected.exp(), found.exp()
        by_q = torch.where(q > 0, found - mixed, 0.0)
        loss = beta * torch.where(p > 0, p * (expected - mixed), 0.0).sum(1) + (1 - beta) * (q * by_q).sum(1)
        return loss * temperature**2, _through_softmax(q, (1 - beta) * by_q) * temperature

    return divergence


def absolute(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """sum |p - q|, in the order in which the classes come (of sorted ones: Boizard et al. 2024, arXiv:2402.12030)."""
    expected, found = _log_probabilities(student, teacher, temperature)
    q = found.exp()
    difference = q - expected.exp()
    return difference.abs().sum(1), _through_softmax(q, difference.sign()) / temperature


def _log_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of the teacher and of the student."""
    expected = torch.log_softmax(teacher.to(student.dtype) / temperature, 1)
    return expected, torch.log_softmax(student / temperature, 1)


def _through_softmax(q: Tensor, by_q: Tensor) -> Tensor:
    """The gradient by what the softmax was taken of, times the temperature."""
    return q * (by_q - (q * by_q).sum(1, keepdim=True))
