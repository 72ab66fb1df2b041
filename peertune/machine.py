"""This machine: which worker hosts which agents, and the facts that numbers of a run may depend on beside its seed."""

import os
import platform
import sys
from typing import Any

import torch

from peertune.config.schema import Config


def seating(config: Config) -> tuple[list[list[str]], list[dict[str, str]]]:
    """Which worker hosts which agents, and each worker's environment. Agents of one model sit together where it
    balances.
    """
    gpus = _gpus() if config.engine.device != "cpu" else 0
    wanted = config.engine.workers
    workers = max(1, gpus or len(os.sched_getaffinity(0))) if wanted == "auto" else max(1, wanted)
    named = sorted(zip(config.agent_names(), config.agents, strict=True), key=lambda pair: pair[1].model)
    workers = min(workers, len(named))
    groups = [[name for name, _ in part] for part in _even_parts(named, workers)]
    environments = [{"CUDA_VISIBLE_DEVICES": str(index % gpus)} if gpus else {} for index in range(workers)]
    return groups, environments


def _even_parts(items: list[Any], count: int) -> list[list[Any]]:
    bounds = [round(index * len(items) / count) for index in range(count + 1)]
    return [items[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]


def _gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def machine() -> dict[str, str]:
    """What numbers of a run may depend on, beside its seed."""
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
