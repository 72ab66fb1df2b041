"""What a run needs of this machine, what was found, and how to mend it."""

import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIN_MEMORY_GB, MIN_DISK_GB = 2, 1


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table; `fix` is empty where all is well."""

    name: str
    found: str
    fix: str = ""


def examine() -> list[Check]:
    """All checks, in order. Slow ones import torch."""
    checks: tuple[Callable[[], Check], ...] = (_python, _torch, device, _memory, _sandbox, _disk, _sqlite)
    return [check() for check in checks]


def _python() -> Check:
    found = platform.python_version()
    return Check("Python", found, "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer")


def _torch() -> Check:
    try:
        import peft
        import torch
        import transformers
    except ImportError as error:
        return Check("PyTorch", f"not importable ({error.name})", "in the checkout: pip install -e .")
    return Check(
        "PyTorch",
        f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}",
    )


def device(wanted: str = "auto") -> Check:
    """`wanted`: `engine.device` of the configuration."""
    try:
        import torch
    except ImportError:
        return Check("Device", "unknown without PyTorch", "in the checkout: pip install -e .")
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        return Check("Device", f"{torch.cuda.device_count()} GPU ({', '.join(sorted(names))})")
    cores = len(os.sched_getaffinity(0))
    fix = (
        f"the configuration says `device: {wanted}`; install a driver and a torch with CUDA" if wanted == "cuda" else ""
    )
    return Check("Device", f"{cores} CPU cores, no GPU; one worker a core", fix)


def _memory() -> Check:
    from peertune.machine import available_memory

    available = available_memory() / 1e9
    low = available < MIN_MEMORY_GB
    return Check("Memory", f"{available:.1f} GB free", "close programs, or set engine.workers: 1" if low else "")


def _sandbox() -> Check:
    from peertune.tasks.sandbox import probe

    works, found = probe()
    fix = "" if works else "apt install bubblewrap; or `sandbox: unsafe` in the configuration, for models you trust"
    return Check("Sandbox", found, fix)


def _disk() -> Check:
    return disk(Path.cwd(), "use --runs elsewhere")


def disk(folder: Path, otherwise: str) -> Check:
    """Is there space where `folder` is? `otherwise`: what to do but free some."""
    free = shutil.disk_usage(folder).free / 1e9
    return Check(
        "Disk", f"{free:.1f} GB free at {folder}", f"free some space, or {otherwise}" if free < MIN_DISK_GB else ""
    )


def _sqlite() -> Check:
    return Check("SQLite", f"{sqlite3.sqlite_version}, rollback journal")
