"""What an adapter has beside LoRA's A and B, layer by layer: cores R and frozen parts; and PEFT's form of it all.

Names are those of `LanguageModel.trainable`, with `frozen_A` and `frozen_B` in the place of `lora_A` and `lora_B`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from peertune.errors import PayloadError
from peertune.lm.lora import AdaptedLinear

Pair = tuple[Tensor, Tensor]
_FACTOR = re.compile(r"\.lora_([ABR])\.weight$")


def letter(name: str) -> str:
    """The factor that a tensor is, A, B or R; empty for what is none: a classification head."""
    factor = _FACTOR.search(name)
    return factor[1] if factor else ""


def frozen_of(model: Any, key: str) -> dict[str, Tensor]:
    """The frozen parts of the adapter `key`, CPU: ....frozen_A.weight [rank, in], ....frozen_B.weight [out, rank]."""
    found = {}
    for path, layer in _layers(model, key).items():
        if key in layer.frozen:
            down, up = layer.frozen[key]
            found |= {f"{path}.frozen_A.weight": down.cpu(), f"{path}.frozen_B.weight": up.cpu()}
    return found


def freeze(model: Any, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Replace the frozen parts. Raises `PayloadError`, and changes nothing, unless all fit the model's layers."""
    layers, left, pairs = _layers(model, key), dict(tensors), dict[str, Pair]()
    for path, layer in layers.items():
        parts = [left.pop(name) for side in "AB" if (name := f"{path}.frozen_{side}.weight") in left]
        if parts:
            pairs[path] = _pair(path, layer, parts)
    if left:
        raise PayloadError(f"expected frozen parts of {len(layers)} layers, found {min(left)!r}")
    for path, layer in layers.items():
        layer.frozen.pop(key, None)
        if path in pairs:
            down, up = (part.to(layer.lora_A[key].weight.device, torch.float32) for part in pairs[path])
            layer.frozen[key] = down, up


def extras_of(model: Any, key: str) -> tuple[tuple[int, int], ...]:
    """Ranks of the core and of the frozen part of each layer, 0 where there is none; empty if no layer has any."""
    layers = _layers(model, key).values()
    ranks = tuple(
        (layer.r[key] if key in layer.lora_R else 0, len(layer.frozen[key][0]) if key in layer.frozen else 0)
        for layer in layers
    )
    return ranks if any(map(any, ranks)) else ()


def has_core(model: Any, key: str) -> bool:
    return any(key in layer.lora_R for layer in _layers(model, key).values())


def set_core(model: Any, key: str, wanted: bool) -> None:
    """Give every layer a core R = 0, or take it away."""
    for layer in _layers(model, key).values():
        if wanted:
            rank, device = layer.r[key], layer.lora_A[key].weight.device
            layer.lora_R[key] = torch.nn.Linear(rank, rank, bias=False, device=device)
            torch.nn.init.zeros_(layer.lora_R[key].weight)
        elif key in layer.lora_R:
            del layer.lora_R[key]


def cores(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """R = 0 for every layer of an adapter."""
    return {f"{path}.lora_R.weight": torch.zeros(rank, rank) for path, rank in ranks_of(tensors).items()}


def overlay(own: Mapping[str, Tensor], new: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """`own` with `new` in its place; if `new` has fewer ranks, the others start as those of a new adapter do.

    Raises `PayloadError` for other names or shapes.
    """
    generator = torch.Generator().manual_seed(seed)
    result = dict(own)
    for name, given in sorted(new.items()):
        if name not in own:
            raise PayloadError(f"expected tensors of an adapter with {len(own)}, found {name!r}")
        side, shape = {"A": 0, "B": 1}.get(letter(name)), own[name].shape
        sizes = list(shape)
        if side is not None and given.ndim == 2:
            sizes[side] = min(sizes[side], given.shape[side])
        if list(given.shape) != sizes:
            raise PayloadError(f"{name}: expected the shape {tuple(shape)}, found {tuple(given.shape)}")
        result[name] = _new(letter(name), shape, generator)
        result[name][tuple(map(slice, given.shape))] = given
    return result


def as_lora(tensors: Mapping[str, Tensor], frozen: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A and B alone, of a greater rank where there is a frozen part: A' = [A; F_A], B' = [B R | F_B / s]."""
    result = {}
    for name, tensor in tensors.items():
        path, side = name.rsplit(".lora_", 1)[0], letter(name)
        more = frozen.get(f"{path}.frozen_{side}.weight")
        if side == "B" and f"{path}.lora_R.weight" in tensors:
            tensor = tensor @ tensors[f"{path}.lora_R.weight"]
        if more is not None:
            tensor = torch.cat([tensor, more]) if side == "A" else torch.cat([tensor, more / scale], dim=1)
        if side != "R":
            result[name] = tensor.contiguous()
    return result


def ranks_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The rank of the adapter of each layer, by its path."""
    return {name.rsplit(".lora_", 1)[0]: len(tensor) for name, tensor in tensors.items() if letter(name) == "A"}


def _layers(model: Any, key: str) -> dict[str, Any]:
    """`AdaptedLinear`s by the path that stands before the names of their tensors."""
    adapted = ((path, layer) for path, layer in model.named_modules() if isinstance(layer, AdaptedLinear))
    return {path: layer for path, layer in adapted if key in layer.lora_A}


def _pair(path: str, layer: Any, parts: list[Tensor]) -> Pair:
    """F_A [rank, in] and F_B [out, rank]; a greater rank than both sides have is not needed for any matrix."""
    most = min(layer.in_features, layer.out_features)
    shapes = [tuple(part.shape) for part in parts]
    rank = shapes[0][0] if shapes[0] else 0
    if shapes != [(rank, layer.in_features), (layer.out_features, rank)] or not 0 < rank <= most:
        raise PayloadError(
            f"{path}: expected a frozen part of rank 1 to {most}, [rank, {layer.in_features}] and "
            f"[{layer.out_features}, rank], found {shapes}"
        )
    return parts[0], parts[1]


def _new(side: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A new factor: A uniform within 1 / sqrt(in), as PEFT draws it; the others are zero."""
    if side != "A":
        return torch.zeros(shape)
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
