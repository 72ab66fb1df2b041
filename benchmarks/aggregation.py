"""What the sum of K adapters costs the server: `python benchmarks/aggregation.py`.

CPU milliseconds of one core for one matrix [m, n]. Table 1, the best approximation by rank r: QR of the stacked factors
and SVD of the small core, beside the plain way, which forms the dense sum and takes its full SVD (as FlexLoRA's
reference does), in float32; the two take turns and their results are compared. Table 2, every rule on the same
updates, and what its `relative_error` costs beside it.

The floor of table 1: 4 (m + n) R^2 FLOPs for two QR with their orthogonal factors, R = K r, and 2 (m + n) R r for the
result; the plain way needs 2 m n R for the sum and some 20 n^3 for the SVD.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

from peertune.aggregate import AGGREGATORS, Update, relative_error

A, B = "m.lora_A.weight", "m.lora_B.weight"
SIZES = ((256, 256, 5, 16), (768, 2304, 5, 16), (1024, 1024, 5, 16), (1024, 1024, 20, 16), (1024, 4096, 5, 16))


def adapters(out: int, width: int, clients: int, rank: int) -> list[Update]:
    random = np.random.default_rng(0)
    shapes = {A: (rank, width), B: (out, rank)}
    return [
        Update(
            f"a{k}", {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, k + 1, 2.0
        )
        for k in range(clients)
    ]


def plain(updates: list[Update]) -> np.ndarray:
    """The dense sum, its full SVD, cut to the rank; [m, n]."""
    total = sum(update.weight for update in updates)
    whole = np.sum([each.weight / total * each.scale * (each.tensors[B] @ each.tensors[A]) for each in updates], axis=0)
    u, values, v = np.linalg.svd(whole.astype(np.float32), full_matrices=False)
    rank = len(updates[0].tensors[A])
    return (u[:, :rank] * values[:rank]) @ v[:rank]


def least(works: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """The least CPU milliseconds of each of `works`, which take turns."""
    times = [[0.0] * repeats for _ in works]
    for turn in range(repeats):
        for work, own in zip(works, times, strict=True):
            start = time.process_time()
            work()
            own[turn] = 1e3 * (time.process_time() - start)
    return [min(own) for own in times]


def against_plain(sizes: tuple[tuple[int, int, int, int], ...]) -> None:
    print("| m x n, K, r | factors, ms | full SVD, ms | ratio | GFLOP/s | largest difference, of the largest entry |")
    print("|---" * 6 + "|")
    for out, width, clients, rank in sizes:
        updates, rule = adapters(out, width, clients, rank), AGGREGATORS["flexlora"].combine
        ours, theirs = least([partial(rule, updates), partial(plain, updates)], 3)
        found, expected = rule(updates), plain(updates)
        difference = np.abs(found.scale * found.factors[B] @ found.factors[A] - expected).max() / np.abs(expected).max()
        stacked = clients * rank
        rate = (4 * (out + width) * stacked**2 + 2 * (out + width) * stacked * rank) / ours / 1e6
        cells = f"{ours:.1f} | {theirs:.0f} | {theirs / ours:.0f} | {rate:.1f} | {difference:.0e}"
        print(f"| {out} x {width}, {clients}, {rank} | {cells} |", flush=True)


def every_rule(out: int, width: int, clients: int, rank: int) -> None:
    print(f"\n| {out} x {width}, {clients}, {rank} | rule, ms | relative_error, ms | error |")
    print("|---" * 4 + "|")
    updates = adapters(out, width, clients, rank)
    for name, rule in AGGREGATORS.items():
        if rule.shared(1) == "AB":
            found = rule.combine(updates)
            works = [partial(rule.combine, updates), partial(relative_error, updates, found)]
            cells = " | ".join(f"{cost:.1f}" for cost in least(works, 5))
            print(f"| {name} | {cells} | {relative_error(updates, found):.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two sizes; a second instead of half a minute")
    quick = parser.parse_args().quick
    against_plain(SIZES[:2] if quick else SIZES)
    every_rule(*SIZES[1 if quick else 2])


if __name__ == "__main__":
    main()
