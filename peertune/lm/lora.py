"""LoRA (Hu et al. 2021) on a linear layer: PEFT's layer, with a forward and a backward that cost less.

PEFT adds s B A x as four operations with a temporary of the layer's output each, and autograd then multiplies
thin matrices in their slow order. Here the sum is made in place and each thin product in its fast order.

An adapter may have two more terms, which exact aggregation brings: a core R, trained in W + s B R A, and a frozen part
F_B F_A, which belongs to the base from then on but stays factors, as the base is shared by many adapters.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D


class AdaptedLinear(Linear):
    """What PEFT puts in the place of a linear layer. Final.

    `frozen`: by adapter F_A [rank, in] and F_B [out, rank]; `lora_R`: by adapter R [rank, rank]; where there are any.
    Anything but one plain fp32 adapter without dropout takes the way of PEFT: bf16 on a GPU, dropout in training.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.frozen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.lora_R = torch.nn.ModuleDict()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """W x + b + s B R A x + F_B F_A x; `x` [..., in] -> [..., out]."""
        base: Any = self.get_base_layer()
        key = self.active_adapters[0]
        if args or kwargs or x.dtype != torch.float32 or not self._is_plain(base, key):
            more = not self.disable_adapters and (key in self.lora_R or key in self.frozen)
            return self._with_more(x, key) if more else super().forward(x, *args, **kwargs)
        weight = base.weight.T if type(base) is Conv1D else base.weight
        a, b = self.lora_A[key].weight, self.lora_B[key].weight
        if key in self.lora_R:
            b = torch.mm(b, self.lora_R[key].weight)  # pyright: ignore[reportArgumentType]
        return _LowRankSum.apply(x, weight, base.bias, a, b, self.scaling[key], self.frozen.get(key))

    def _with_more(self, x: torch.Tensor, key: str) -> torch.Tensor:
        """As PEFT, which adds in the adapter's precision, does it; the frozen part is the base's and has no dropout."""
        a: Any = self.lora_A[key]
        wide = x.to(a.weight.dtype)
        inner = a(self.lora_dropout[key](wide))
        if key in self.lora_R:
            inner = self.lora_R[key](inner)
        added = self.lora_B[key](inner) * self.scaling[key]
        if key in self.frozen:
            down, up = self.frozen[key]
            added = added + wide @ down.T @ up.T
        result = self.base_layer(x)
        return (result + added).to(result.dtype)

    def _is_plain(self, base: Any, key: str) -> bool:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1 or key not in self.lora_A:
            return False
        known = type(base) in (torch.nn.Linear, Conv1D) and key not in self.lora_variant
        dropout = self.training and not isinstance(self.lora_dropout[key], torch.nn.Identity)
        return known and not dropout and base.weight.dtype == self.lora_A[key].weight.dtype == torch.float32


class _LowRankSum(torch.autograd.Function):
    """x W^T + c + s (x A^T) B^T + (x F_A^T) F_B^T; W [out, in], c, F_A and F_B frozen, A [rank, in], B [out, rank]."""

    @staticmethod
    def forward(ctx: Any, x: Any, *terms: Any) -> torch.Tensor:
        weight, bias, a, b, scale, frozen = terms
        result = torch.nn.functional.linear(x, weight, bias)
        inner = flat(x) @ a.T
        flat(result).addmm_(inner, b.T, alpha=scale)
        if frozen:
            flat(result).addmm_(flat(x) @ frozen[0].T, frozen[1].T)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale, ctx.frozen = scale, frozen
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, a, b, inner = ctx.saved_tensors
        for_x, _, _, for_a, for_b, *_ = ctx.needs_input_grad  # no x: below are only frozen embeddings
        gradient = flat(gradients[0])
        to_x = to_a = to_b = None
        if for_x or for_a:
            back = _thin(gradient, b)
            to_a = (back.T @ flat(x)).mul_(ctx.scale) if for_a else None
            to_x = (gradient @ weight).addmm_(back, a, alpha=ctx.scale) if for_x else None
        if to_x is not None and ctx.frozen:
            to_x.addmm_(_thin(gradient, ctx.frozen[1]), ctx.frozen[0])
        if for_b:
            to_b = (inner.T @ gradient).mul_(ctx.scale).T  # the transposed product is three times as fast
        return to_x if to_x is None else to_x.view(x.shape), None, None, to_a, to_b, None, None


def _thin(gradient: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """gradient @ b, twice as fast as with `b` itself, whose rows are short."""
    return gradient @ b.T.contiguous().T


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """[..., n] -> [all, n]"""
    return tensor.reshape(-1, tensor.shape[-1])
