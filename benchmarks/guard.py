"""How fast the outgoing guard reads: `python benchmarks/guard.py`. One thread, CPU seconds, about ten seconds in all.

Table 1, megabytes a second of each group of rules: over a megabyte of the standard library as it is, over the same in
pieces of 400 characters as texts of an exchange are, over the hostile text that takes it longest of some that are made
to (`HOSTILE`), and over twice as much of that; the last two are equal if time is linear.
Table 2, what it costs to begin: importing detect-secrets and compiling the rules, and remembering private text.
"""

import os
import sysconfig
import time
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1")

from peertune.guard.copies import Copies
from peertune.guard.personal import find_personal
from peertune.guard.secrets import find_secrets
from peertune.guard.spans import Span

SIZE, PIECE = 1_000_000, 400  # characters
HOSTILE = (
    "a",
    "1",
    "1.",
    "a@",
    "+1 ",
    "phone 1 ",
    "=a1",
    "token=a1",
    "aws",
    "://a",
    "eyJaaaaaaaa.",
    "$1$",
    "AA11",
    "\n",
)


def code(size: int) -> str:
    """The beginning of the standard library."""
    text = ""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if len(text) >= size:
            break
        text += path.read_text(encoding="utf-8")
    return text[:size]


def speed(find: Callable[[str], Iterable[Span]], texts: list[str]) -> float:
    """Megabytes a second."""
    began = time.process_time()
    for text in texts:
        for _ in find(text):
            pass
    return sum(map(len, texts)) / 1e6 / (time.process_time() - began)


def main() -> None:
    text = code(SIZE)
    began = time.process_time()
    list(find_secrets(""))
    start = time.process_time() - began
    began = time.process_time()
    copies = Copies([text[::-1]])
    remembering = time.process_time() - began
    pieces = [text[at : at + PIECE] for at in range(0, SIZE, PIECE)]
    print(f"{'MB/s':<10}{'code':>8}{'pieces':>8}{'hostile':>9}{'twice':>8}  the hostile text repeats")
    for name, find in (("secrets", find_secrets), ("personal", find_personal), ("copies", copies.find)):
        slow, unit = min((speed(find, [unit * (SIZE // 5 // len(unit))]), unit) for unit in HOSTILE)
        twice = speed(find, [unit * (2 * SIZE // 5 // len(unit))])
        print(f"{name:<10}{speed(find, [text]):>8.1f}{speed(find, pieces):>8.1f}{slow:>9.1f}{twice:>8.1f}  {unit!r}")
    print(f"\nto begin: secrets {start:.2f} s, copies {remembering:.2f} s a megabyte of private text")


if __name__ == "__main__":
    main()
