"""What a distillation step costs at the head of a large vocabulary: `python benchmarks/distillation.py`.

`distillation_loss` beside the plain form, in one run: all logits at once, log_softmax, `kl_div` against the same
teacher made dense, backward by autograd. V = 131 072, d = 256, 64 tokens of the teacher a position, fp32, one thread,
frozen head, gradient of the hidden states. T = 1 and no tail, so that both are the same number, which is checked,
with the gradient. Of the plain form neither the making nor the memory of its dense teacher is counted: it could be kept
from epoch to epoch.

Table 1, CPU seconds, taking turns, medians of five (256 positions) or two; beside them what the two matrix products
alone take, in the same chunks.
Table 2, MiB by which the peak of a process of its own grows.

The floor of n positions: 4 n V d FLOP, logits and their gradient (134 MFLOP a position; 1.5 ms at 90 GFLOP/s), and the
head, 4 V d = 134 MB, read twice a chunk. Memory: one chunk of logits, 4 B x 64 x V = 32 MiB, and the gradients of the
hidden states, 8 B x n d. The plain form holds logits, log_softmax and gradients of both: 16 B x n V, 2 GiB of 1024.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import torch
from torch import Tensor

from peertune.losses import Teacher, distillation_loss

V, D, K, CHUNK = 1 << 17, 256, 64, 64
FORMS = ("ours", "plain", "products")


def inputs(positions: int) -> tuple[Tensor, Tensor, Teacher]:
    """Hidden states, the head, and a teacher of which all probability is in its K tokens."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(V, D, generator=generator).mul_(D**-0.5)
    hidden = torch.randn(positions, D, generator=generator, requires_grad=True)
    spaced = torch.arange(K) * (V // K)
    ids = (spaced + torch.randint(V // K, (positions, K), generator=generator)).int()
    logp = torch.log_softmax(2 * torch.randn(positions, K, generator=generator), 1)
    return hidden, head, Teacher(logp, ids, torch.full((positions,), -torch.inf))


def densified(teacher: Teacher) -> Tensor:
    assert teacher.ids is not None
    return torch.zeros(len(teacher.logp), V).scatter_(1, teacher.ids.long(), teacher.logp.exp())


def work(form: str, hidden: Tensor, head: Tensor, teacher: Teacher | Tensor) -> float:
    """The loss of one step, whose gradient is left in `hidden`."""
    hidden.grad = None
    if isinstance(teacher, Tensor):
        found = torch.log_softmax(hidden @ head.T, 1)
        loss = torch.nn.functional.kl_div(found, teacher, reduction="batchmean")
    elif form == "ours":
        loss = distillation_loss(hidden, head, None, teacher, chunk=CHUNK)
    else:
        for rows in hidden.detach().split(CHUNK):
            _ = (rows @ head.T) @ head
        return 0.0
    loss.backward()
    return loss.item()


def clocked(call: Callable[[], float]) -> tuple[float, float]:
    """CPU seconds of this process, and the result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def compare(positions: int, repeats: int) -> None:
    hidden, head, teacher = inputs(positions)
    teachers = {"ours": teacher, "plain": densified(teacher), "products": teacher}
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(repeats):
        results = {}
        for form in FORMS:
            seconds, loss = clocked(lambda: work(form, hidden, head, teachers[form]))  # noqa: B023
            times[form].append(seconds)
            results[form] = loss, hidden.grad
        (ours, gradient), (plain, other) = results["ours"], results["plain"]
        assert gradient is not None and other is not None
        assert abs(ours - plain) < 1e-4 * plain and torch.allclose(gradient, other, rtol=1e-3, atol=1e-8), (ours, plain)
    ours, plain, products = (statistics.median(times[form]) for form in FORMS)
    print(
        f"{positions:>9}{ours:9.2f}{plain:9.2f}{plain / ours:8.2f}x{products:10.2f}{ours / products:15.2f}x", flush=True
    )


def peak(reset: bool = False) -> float:
    """The greatest resident memory of this process in MiB, since its start or the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def grow(form: str, positions: int) -> None:
    """In a process of its own: print by how much its peak grows."""
    hidden, head, teacher = inputs(positions)
    made = densified(teacher) if form == "plain" else teacher
    before = peak(reset=True)
    work(form, hidden, head, made)
    print(peak() - before)


def growth(form: str, positions: int) -> float:
    command = [sys.executable, __file__, "--grow", form, str(positions)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 positions alone; seconds instead of minutes")
    parser.add_argument("--grow", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.grow:
        grow(arguments.grow[0], int(arguments.grow[1]))
        return
    sizes = (256,) if arguments.quick else (256, 1024, 2048)
    print(f"{'positions':>9}{'ours, s':>9}{'plain':>9}{'ratio':>9}{'products':>10}{'ours / products':>16}")
    for positions in sizes:
        compare(positions, 5 if positions == sizes[0] else 2)
    print(f"\n{'positions':>9}{'ours, MiB':>10}{'plain':>9}{'ratio':>9}")
    for positions in sizes:
        ours, plain = growth("ours", positions), growth("plain", positions)
        print(f"{positions:>9}{ours:10.0f}{plain:9.0f}{plain / ours:8.0f}x", flush=True)


if __name__ == "__main__":
    main()
