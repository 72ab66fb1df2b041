"""This machine: which worker hosts which agents, whether the models fit, and facts that numbers of a run depend on."""

import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from peertune.config.schema import Config
from peertune.errors import ConfigError
from peertune.lm.source import local_folder

WORKER_BYTES = 400e6  # a process with torch, transformers and peft, before its first model
BYTES_PER_PARAMETER = 4.0  # fp32 on a CPU


def seating(config: Config) -> tuple[list[list[str]], list[dict[str, str]]]:
    """Which worker hosts which agents, and each worker's environment. Agents of one model sit together."""
    gpus = _gpus() if config.engine.device != "cpu" else 0
    wanted = config.engine.workers
    named = sorted(config.parties().items(), key=lambda pair: pair[1].model)
    if wanted == "auto":  # agents of one worker wait for each other
        wanted = len(named) if config.asynchrony else gpus or len(os.sched_getaffinity(0))
    workers = min(max(1, wanted), len(named))
    groups = [[name for name, _ in part] for part in _even_parts(named, workers)]
    environments = [{"CUDA_VISIBLE_DEVICES": str(index % gpus)} if gpus else {} for index in range(workers)]
    return groups, environments


def check_memory(config: Config, groups: list[list[str]]) -> None:
    """Raise `ConfigError` if the base models of all workers, each loaded once a worker, will not fit into memory."""
    if config.engine.device != "cpu" and _gpus():
        return
    models = {name: party.model for name, party in config.parties().items()}
    parameters = {model: _parameters(local_folder(model)) for model in set(models.values())}
    needed = sum(
        WORKER_BYTES + BYTES_PER_PARAMETER * sum(parameters[model] for model in {models[name] for name in group})
        for group in groups
    )
    if needed > available_memory():
        workers, cure = (f"{len(groups)} workers", "set `engine.workers: 1`, ") if len(groups) > 1 else ("1 worker", "")
        raise ConfigError(
            f"the models need about {needed / 1e9:.1f} GB in {workers}, {available_memory() / 1e9:.1f} GB are free; "
            f"{cure}use smaller models, or close other programs"
        )


def available_memory() -> float:
    """Bytes that programs can still get without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024.0
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def machine() -> dict[str, str]:
    """What numbers of a run may depend on, beside its seed."""
    import torch  # late, here and below: `doctor` asks for the memory where torch may be missing

    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _parameters(folder: Path) -> int:
    """How many numbers the safetensors files of a model hold; none if damaged, which loading will report."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  no dict
        except (SafetensorError, OSError):
            return 0
    return total


def _even_parts(items: list[Any], count: int) -> list[list[Any]]:
    bounds = [round(index * len(items) / count) for index in range(count + 1)]
    return [items[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
