"""LoRA (Hu et al. 2021) on a linear layer: PEFT's layer, with a forward and a backward that cost less.

PEFT adds s B A x as four operations with a temporary of the layer's output each, and autograd then multiplies
thin matrices in their slow order. Here the sum is made in place and each thin product in its fast order.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D


class AdaptedLinear(Linear):
    """What PEFT puts in the place of a linear layer. Final.

    Anything but one plain fp32 adapter without dropout is left to PEFT: bf16 on a GPU, dropout in training.
    """

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """W x + b + s B A x; `x` [..., in] -> [..., out]."""
        base: Any = self.get_base_layer()
        key = self.active_adapters[0]
        if args or kwargs or x.dtype != torch.float32 or not self._is_plain(base, key):
            return super().forward(x, *args, **kwargs)
        weight = base.weight.T if type(base) is Conv1D else base.weight
        a, b = self.lora_A[key].weight, self.lora_B[key].weight
        return _LowRankSum.apply(x, weight, base.bias, a, b, self.scaling[key])

    def _is_plain(self, base: Any, key: str) -> bool:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1 or key not in self.lora_A:
            return False
        known = type(base) in (torch.nn.Linear, Conv1D) and key not in self.lora_variant
        dropout = self.training and not isinstance(self.lora_dropout[key], torch.nn.Identity)
        return known and not dropout and base.weight.dtype == self.lora_A[key].weight.dtype == torch.float32


class _LowRankSum(torch.autograd.Function):
    """x W^T + c + s (x A^T) B^T with W [out, in] and c frozen, A [rank, in], B [out, rank]."""

    @staticmethod
    def forward(ctx: Any, x: Any, *factors: Any) -> torch.Tensor:
        weight, bias, a, b, scale = factors
        result = torch.nn.functional.linear(x, weight, bias)
        inner = flat(x) @ a.T
        flat(result).addmm_(inner, b.T, alpha=scale)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, a, b, inner = ctx.saved_tensors
        gradient = flat(gradients[0])
        back = gradient @ b.T.contiguous().T  # twice as fast as with B itself, whose rows are short
        to_a = (back.T @ flat(x)).mul_(ctx.scale)
        to_b = (inner.T @ gradient).mul_(ctx.scale).T  # the transposed product is three times as fast
        if not ctx.needs_input_grad[0]:  # below are only frozen embeddings
            return None, None, None, to_a, to_b, None
        to_x = (gradient @ weight).addmm_(back, a, alpha=ctx.scale)
        return to_x.view(x.shape), None, None, to_a, to_b, None


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """[..., n] -> [all, n]"""
    return tensor.reshape(-1, tensor.shape[-1])
