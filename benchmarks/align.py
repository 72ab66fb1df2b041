"""What it costs to map one vocabulary to another: `python benchmarks/align.py`.

CPU seconds of one core for the map by least edit distance, beside three plain ways of the same run, each over all pairs
of a token without an equal one and a target: Wagner and Fischer's table in Python; the distances by rapidfuzz one by
one, and the least; `extractOne` of rapidfuzz, which stops early. The plain ways are timed on a sample, drawn by a seed,
and extrapolated by pairs, or by tokens. On the sample the maps are compared with the brute force; the run fails if they
differ.

Where it goes, GPT-2 to Mistral: of 0.92 billion pairs 0.36 have their marks compared (some 1.5 ns each), 0.06 are in
tables of distances (some 5 ns each), and the words of 1.7 million are compared one by one (some 0.2 µs each).
"""

import argparse
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from transformers import PreTrainedTokenizerFast

from peertune.align import Vocabulary
from peertune.align.vocabulary import NONE, Tie, vocabulary_map

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "tokenizers"
PAIRS = (("gpt2", "mistral_v1"), ("mistral_v1", "gpt2"), ("qwen", "openai_cl100k"), ("openai_cl100k", "qwen"))
TIES: tuple[Tie, ...] = ("lex", "id")
SAMPLE = 40  # tokens
TARGETS = 1000  # for each, for the plain Python


def vocabulary(folder: Path, name: str) -> Vocabulary:
    path = folder / name / "tokenizer.json"
    if not path.is_file():
        raise SystemExit(f"{path}: expected a tokenizer, found none; say with --tokenizers where they are")
    return Vocabulary.of(PreTrainedTokenizerFast(tokenizer_file=str(path)))


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def edits(left: bytes, right: bytes) -> int:
    """Wagner and Fischer 1974."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def one_by_one(token: bytes, words: list[bytes]) -> list[int]:
    return [Levenshtein.distance(token, word) for word in words]


def check(tokens: list[bytes], found: list[int], ids: list[int], target: Vocabulary, tie: Tie) -> None:
    """Raises `SystemExit` unless each of `tokens` has the target that brute force among `ids` finds."""
    words = [target.tokens[id] for id in ids]
    order = words if tie == "lex" else ids
    for token, mine in zip(tokens, found, strict=True):
        _, _, expected = min(zip(one_by_one(token, words), order, ids, strict=True))
        if mine != expected:
            raise SystemExit(f"{token!r}: expected {target.tokens[expected]!r}, found {target.tokens[mine]!r}")


def one_map(source: Vocabulary, target: Vocabulary) -> list[str]:
    """The cells of a row, after the names."""
    maps: dict[Tie, np.ndarray] = {}
    ours = [seconds(lambda tie=tie: maps.update({tie: vocabulary_map(source, target, "mined", tie)})) for tie in TIES]
    lacking = (vocabulary_map(source, target, "exact") == NONE) & np.array([bool(token) for token in source.tokens])
    missing = np.flatnonzero(lacking)
    random = np.random.default_rng(0)
    sample = random.choice(missing, min(SAMPLE, len(missing)), replace=False).tolist()
    tokens, scale = [source.tokens[id] for id in sample], len(missing) / len(sample)
    ids = [id for id, token in enumerate(target.tokens) if token and id not in target.spare]
    for tie in TIES:
        check(tokens, maps[tie][sample].tolist(), ids, target, tie)
    words = [target.tokens[id] for id in ids]
    some = [words[n] for n in random.integers(len(words), size=TARGETS)]
    if [[edits(token, word) for word in some[:50]] for token in tokens] != [one_by_one(t, some[:50]) for t in tokens]:
        raise SystemExit("the distances of rapidfuzz are not those of Wagner and Fischer")
    plain = seconds(lambda: [[edits(token, word) for word in some] for token in tokens]) * scale * len(words) / TARGETS
    single = seconds(lambda: [min(one_by_one(token, words)) for token in tokens]) * scale
    extract = seconds(lambda: [process.extractOne(t, words, scorer=Levenshtein.distance) for t in tokens]) * scale
    cells = [f"{len(missing):,} x {len(words):,}", *(f"{each:.2f}" for each in ours)]
    for each in (plain, single, extract):
        cells += [f"{each:,.0f}", f"{each / ours[0]:,.0f}"]
    return cells


def maps(folder: Path, pairs: tuple[tuple[str, str], ...]) -> None:
    columns = ("source to target", "tokens without an equal one x targets", "lex, s", "id, s", "Python, s", "ratio")
    columns += ("rapidfuzz, s", "ratio", "extractOne, s", "ratio", "most memory so far, MB")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for names in pairs:
        source, target = (vocabulary(folder, name) for name in names)
        cells = [" to ".join(names), *one_map(source, target)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
        print("| " + " | ".join(cells) + f" | {peak:,} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", type=Path, default=PUBLISHED, help="a folder of NAME/tokenizer.json")
    parser.add_argument("--quick", action="store_true", help="two maps; seconds instead of a minute")
    given = parser.parse_args()
    maps(given.tokenizers, PAIRS[:2] if given.quick else PAIRS)


if __name__ == "__main__":
    main()
