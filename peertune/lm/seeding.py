"""Random draws that depend on a seed only, not on what ran before, and that leave no trace after them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """In the block torch's generators (CPU and `device`) start from `seed`; after it they are as before."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def derived(seed: int, name: str, purpose: str, number: int) -> int:
    """A seed that depends on nothing but the run's seed, the agent's name, the purpose and a count."""
    words = [seed, *name.encode(), *purpose.encode(), number]
    return int(np.random.SeedSequence(words).generate_state(1)[0])
