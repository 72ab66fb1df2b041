"""What a student loses against a teacher's distribution, in memory that does not grow with the number of positions.

The logits of a position take 4 B x V (0.5 MB of a vocabulary of 128k), and a plain loss holds several copies of them
for all positions. Here they are made for `chunk` positions at a time and turned into their own gradient, in place,
while they are there; what stays is the gradient of the hidden states (Liger kernels, arXiv:2410.10989, on the
cross-entropy). The price: no second derivative.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peertune.divergences import Divergence, kl


@dataclass(frozen=True)
class Teacher:
    """What a teacher expects at n positions: log-probabilities (nats) at temperature 1, and ids.

    Sparse: `logp` [n, k] of the tokens `ids` [n, k], each id once in a row, and `tail` [n], the log of the probability
    of all other tokens, -inf where the ids are all there are. An entry with `logp` -inf is padding and repeats an id
    of its row. Dense: `logp` [n, V], `ids` and `tail` are None. Need not sum to one: the loss normalises.
    `weights` [n]: of positions; None: all count alike.
    """

    logp: Tensor
    ids: Tensor | None = None
    tail: Tensor | None = None
    weights: Tensor | None = None

    def split(self, size: int) -> list["Teacher"]:
        """Views of `size` positions each; of the last, of fewer."""
        count = -(-len(self.logp) // size)
        parts = ([None] * count if each is None else each.split(size) for each in self._tensors())
        return [Teacher(logp, *others) for logp, *others in zip(*parts, strict=True)]

    @property
    def total(self) -> float:
        """The weight of all positions together."""
        return len(self.logp) if self.weights is None else float(self.weights.sum())

    def _tensors(self) -> Iterator[Tensor | None]:
        yield from (self.logp, self.ids, self.tail, self.weights)


@dataclass(frozen=True)
class Loss:
    """How far a student is from a teacher. `ranked`: the student's k most probable tokens are compared with the
    teacher's, the first with the first, whichever they are; of sparse teachers whose entries are by falling log p.
    """

    temperature: float = 1.0
    divergence: Divergence = kl
    ranked: bool = False


_CHUNK = 64  # positions whose logits are there at a time


@torch.no_grad()
def most_probable(
    hidden: Tensor, head_weight: Tensor, head_bias: Tensor | None, k: int | None, chunk: int = _CHUNK
) -> Teacher:
    """What a model expects at n positions: its k most probable tokens, by falling probability; None: all, dense.

    `hidden` [n, d], `head_weight` [V, d], `head_bias` [V]. Ids are int32. The tail is added up over the other tokens.
    Memory: 8 B x `chunk` x V and the result.
    """
    parts = [_known(torch.nn.functional.linear(rows, head_weight, head_bias), k) for rows in hidden.split(chunk)]
    if k is None:
        return Teacher(torch.cat([part.logp for part in parts]))
    logp, ids, tail = zip(*((part.logp, part.ids, part.tail) for part in parts), strict=True)
    return Teacher(torch.cat(logp), torch.cat(ids), torch.cat(tail))


@torch.no_grad()
def most_probable_and_loss(
    hidden: Tensor, head_weight: Tensor, head_bias: Tensor | None, labels: Tensor, k: int
) -> tuple[Teacher, Tensor]:
    """As `most_probable`, and what the model loses on the `labels` [n] of these positions, nats, float32 [n]."""
    parts, losses = [], []
    for rows, right in zip(hidden.split(_CHUNK), labels.split(_CHUNK), strict=True):
        logits = torch.nn.functional.linear(rows, head_weight, head_bias).float()
        losses.append(torch.nn.functional.cross_entropy(logits, right, reduction="none"))
        parts.append(_known(logits, k))
    logp, ids, tail = (torch.cat(each) for each in zip(*((p.logp, p.ids, p.tail) for p in parts), strict=True))
    return Teacher(logp, ids, tail), torch.cat(losses)


def _known(logits: Tensor, k: int | None) -> Teacher:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if k is None:
        return Teacher(torch.log_softmax(logits, 1))
    listed, ids = logits.topk(min(k, logits.shape[1]))
    tail = logits.scatter_(1, ids, -torch.inf).logsumexp(1)
    total = torch.logaddexp(listed.logsumexp(1), tail)
    return Teacher(listed - total[:, None], ids.int(), tail - total)


def distillation_loss(
    hidden: Tensor,
    head_weight: Tensor,
    head_bias: Tensor | None,
    teacher: Teacher,
    temperature: float = 1.0,
    chunk: int = _CHUNK,
) -> Tensor:
    """T^2 KL(teacher || student), the mean over positions, in nats (Hinton et al. 2015, arXiv:1503.02531).

    `hidden` [n, d]: the inputs of the head, `head_weight` [V, d], `head_bias` [V]; gradients go to those of the three
    that need one. Memory: 4 B x `chunk` x V (seven times that if the teacher is dense) and a gradient of each; on a GPU
    a larger chunk is faster.

    A sparse teacher knows k tokens and how probable the others are together. Both sides are then k+1 classes: nothing
    is said of single tokens in the tail, no zero stands for what was not sent. The temperature flattens these classes:
    p_i^(1/T), normalised. So the sender need not know T, the loss is 0 exactly where all k+1 probabilities are the
    teacher's, and with k = V it is the dense loss. (To flatten all V tokens and add up the tail afterwards would let
    the tail decide: at T = 2 and V = 128k, 0.05 of the probability, spread evenly, would weigh 80 times a certain
    token.)

    With one token of `logp` 0 and a tail of -inf, this is the cross-entropy of a label.
    Raises `ValueError` if there is no position, or not one row of the teacher for each.
    """
    return taught_loss(hidden, head_weight, head_bias, teacher, Loss(temperature), chunk)


def taught_loss(
    hidden: Tensor, head_weight: Tensor, head_bias: Tensor | None, teacher: Teacher, loss: Loss, chunk: int = _CHUNK
) -> Tensor:
    """As `distillation_loss`, whatever the loss; the mean is weighted if the teacher has weights."""
    if not len(hidden) or len(teacher.logp) != len(hidden):
        raise ValueError(
            f"expected one row of the teacher for each of one or more positions, "
            f"found {len(teacher.logp)} rows for {len(hidden)} positions"
        )
    return _Distillation.apply(hidden, head_weight, head_bias, teacher.split(chunk), loss)  # pyright: ignore


class _Distillation(torch.autograd.Function):
    """The loss, and in the same pass its gradients."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, teachers: list[Teacher], how: Loss
    ) -> Tensor:
        gradients = [
            torch.zeros_like(each) if each is not None and needed else None
            for each, needed in zip((hidden, weight, bias), ctx.needs_input_grad[:3], strict=True)
        ]
        losses, start = [], 0
        for teacher in teachers:
            rows = slice(start, start + len(teacher.logp))
            loss, of_logits = _loss(torch.nn.functional.linear(hidden[rows], weight, bias), teacher, how)
            _add(gradients, hidden, rows, weight, of_logits)
            losses.append(loss)
            start = rows.stop
            del of_logits  # else it would stay while the next logits are made
        ctx.total = sum(teacher.total for teacher in teachers)
        ctx.save_for_backward(*gradients)
        return torch.stack(losses).sum() / ctx.total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale = gradient / ctx.total
        scaled = [None if each is None else (each * scale).to(each.dtype) for each in ctx.saved_tensors]
        return *scaled, None, None


def _add(gradients: list[Tensor | None], hidden: Tensor, rows: slice, weight: Tensor, of_logits: Tensor) -> None:
    """Add what the gradient of the logits of `rows` makes of those of the hidden states, the weight and the bias."""
    of_hidden, of_weight, of_bias = gradients
    if of_hidden is not None:
        torch.mm(of_logits, weight, out=of_hidden[rows])
    if of_weight is not None:
        of_weight.addmm_(of_logits.T, hidden[rows])
    if of_bias is not None:
        of_bias += of_logits.sum(0)


def _loss(logits: Tensor, teacher: Teacher, loss: Loss) -> tuple[Tensor, Tensor]:
    """The sum of the losses of some positions, and its gradient by their logits [n, V], which are overwritten."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if loss.ranked:
        teacher = _by_rank(precise, teacher)
    if teacher.ids is None:
        losses, gradient = loss.divergence(precise, teacher.logp, loss.temperature)
    else:
        losses, gradient = _sparse(precise, teacher, loss)
    if teacher.weights is not None:
        losses, gradient = losses * teacher.weights, gradient.mul_(teacher.weights[:, None])
    return losses.sum(), gradient.to(logits.dtype)


def _by_rank(logits: Tensor, teacher: Teacher) -> Teacher:
    """What the teacher has at its i-th most probable token, said of the student's."""
    assert teacher.tail is not None
    k = min(teacher.logp.shape[1], logits.shape[1])
    logp, rest = teacher.logp[:, :k], teacher.logp[:, k:]
    tail = torch.cat([rest, teacher.tail[:, None]], 1).logsumexp(1) if rest.shape[1] else teacher.tail
    ids = logits.topk(k).indices
    return Teacher(logp, torch.where(logp.isneginf(), ids[:, :1], ids), tail, teacher.weights)


def _sparse(logits: Tensor, teacher: Teacher, loss: Loss) -> tuple[Tensor, Tensor]:
    """The losses over k+1 classes, and their gradient, which takes the place of `logits` [n, V].

    The logit of the class "all others" is the logsumexp of theirs, added up over them alone: exact however small
    it is, where log(1 - sum of the listed) would cancel.
    """
    assert teacher.ids is not None and teacher.tail is not None
    ids = teacher.ids.long()
    listed = logits.gather(1, ids).masked_fill_(teacher.logp.isneginf(), -torch.inf)
    logits.scatter_(1, ids, -torch.inf)
    top = logits.amax(1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)  # finite even if nothing is left
    mass = logits.sub_(top).exp_().sum(1, keepdim=True)  # 0 if nothing is left, else 1 or more
    classes = torch.cat([listed, top + mass.log()], 1)
    wanted = torch.cat([teacher.logp, teacher.tail[:, None]], 1)
    losses, gradient = loss.divergence(classes, wanted, loss.temperature)
    logits.mul_(gradient[:, -1:] / mass.clamp_min(1.0))  # of the class's logit, shared out by softmax within it
    return losses, logits.scatter_add_(1, ids, gradient[:, :-1])
