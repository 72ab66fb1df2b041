"""What it costs to map one vocabulary to another, and to move knowledge: `python benchmarks/align.py`.

CPU seconds of one core for the map by least edit distance, beside three plain ways of the same run, each over all pairs
of a token without an equal one and a target: Wagner and Fischer's table in Python; the distances by rapidfuzz one by
one, and the least; `extractOne` of rapidfuzz, which stops early. The plain ways are timed on a sample, drawn by a seed,
and extrapolated by pairs, or by tokens. On the sample the maps are compared with the brute force; the run fails if they
differ.

Where it goes, GPT-2 to Mistral: of 0.92 billion pairs 0.36 have their marks compared (some 1.5 ns each), 0.06 are in
tables of distances (some 5 ns each), and the words of 1.7 million are compared one by one (some 0.2 µs each).

Then CPU milliseconds for one text of 512 tokens: the positions that end at the same byte, and the k most probable
tokens of each said in the other vocabulary; beside them the same by the paper's time warping, in numpy and as
published: a double loop that measures one pair of tokens at a time, and a dictionary for each position. Both ways of
warping must agree.
"""

import argparse
import itertools
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from transformers import PreTrainedTokenizerFast

from peertune.align import Aligner, Positions, Vocabulary, dtw
from peertune.align.transfer import transfer
from peertune.align.vocabulary import NONE, Tie, vocabulary_map
from peertune.knowledge import Knowledge, pack

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "tokenizers"
PAIRS = (("gpt2", "mistral_v1"), ("mistral_v1", "gpt2"), ("qwen", "openai_cl100k"), ("openai_cl100k", "qwen"))
TIES: tuple[Tie, ...] = ("lex", "id")
SAMPLE = 40  # tokens
TARGETS = 1000  # for each, for the plain Python
TEXT = Path(__file__).parents[1] / "docs" / "methods.md"
TOKENS = 512
Side = tuple[Vocabulary, Sequence[int]]


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


def warped(source: Sequence[bytes], target: Sequence[bytes]) -> list[list[int]]:
    """For each token of the target the tokens of the source that it meets, pair by pair."""
    one, other = ([token.replace(b" ", b"") for token in side] for side in (source, target))
    total = [[float("inf")] * (len(target) + 1) for _ in range(len(source) + 1)]
    total[0][0] = 0
    for i, j in itertools.product(range(len(source)), range(len(target))):
        before = min(total[i][j], total[i][j + 1], total[i + 1][j])
        total[i + 1][j + 1] = before + Levenshtein.distance(one[i], other[j])
    met: list[list[int]] = [[] for _ in target]
    i, j = len(source), len(target)
    while i and j:
        met[j - 1].append(i - 1)
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda step: total[step[0]][step[1]])
    return met


def copied(known: Knowledge, source: Side, target: Side, table: np.ndarray) -> tuple[list[int], list[dict[int, float]]]:
    """The target's positions that learn something, and what: of tokens with one counterpart the first."""
    assert known.ids is not None
    tokens, others = ([side[0].tokens[id] for id in side[1]] for side in (source, target))
    pairs = [(0, 0)]
    for j, met in enumerate(warped(tokens, others)[:-1]):
        same = len(met) == 1 and (tokens[met[0]] == others[j] or table[source[1][met[0]]] == target[1][j])
        pairs += [(met[0] + 1, j + 1)] if same and met[0] + 1 < len(tokens) else []
    found: list[dict[int, float]] = [{} for _ in pairs]
    for said, (row, _) in zip(found, pairs, strict=True):
        for id, logp in zip(known.ids[row].tolist(), known.logp[row].tolist(), strict=True):
            if table[id] != NONE:
                said.setdefault(int(table[id]), logp)
    return [j for _, j in pairs], found


def median(work: Callable[[], object], times: int) -> float:
    """CPU milliseconds."""
    return 1000 * statistics.median(seconds(work) for _ in range(times))


def one_text(source: Side, target: Side, table: np.ndarray, k: int, text: str) -> list[str]:
    """The cells of a row, after the names and k."""
    (of_source, _), (of_target, _) = source, target
    logits = np.random.default_rng(0).normal(0, 3, (TOKENS, len(of_source.tokens))).astype(np.float32)
    known = pack(logits, np.array([TOKENS]), k)
    sides = [Positions.of(vocabulary, [(ids, text)]) for vocabulary, ids in (source, target)]
    aligner = Aligner(of_source, of_target, table)

    def by_warping() -> tuple[Knowledge, np.ndarray]:
        rows, positions = dtw.rows(source, target, table)
        return transfer(known, rows, table, len(of_target.tokens), "first"), positions

    (result, positions), (places, said) = by_warping(), copied(known, source, target, table)
    assert result.ids is not None
    tables = zip(result.ids, result.logp, result.listed, strict=True)
    entries = [dict(zip(ids[on].tolist(), logp[on].tolist(), strict=True)) for ids, logp, on in tables]
    if (positions.tolist(), entries) != (places, said):
        raise SystemExit("time warping in numpy and as published differ")
    ours = median(lambda: aligner.translate(known, *sides), 50)
    others = median(by_warping, 5), median(lambda: copied(known, source, target, table), 2)
    cells = [cell for each in others for cell in (f"{each:.1f}", f"{each / ours:.0f}")]
    shares = [100 * len(each) / TOKENS for each in (aligner.translate(known, *sides)[2], positions)]
    return [f"{ours:.2f}", *cells, *(f"{share:.0f}" for share in shares)]


def cut(folder: Path, name: str, text: str) -> Side:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / name / "tokenizer.json"))
    return Vocabulary.of(tokenizer), tokenizer.encode(text, add_special_tokens=False)[:TOKENS]


def texts(folder: Path) -> None:
    text = TEXT.read_text(encoding="utf-8")
    columns = ("source to target", "k", "equal bytes, ms", "warping in numpy, ms", "ratio", "as published, ms", "ratio")
    columns += ("positions with a counterpart, %", "by warping, %")
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for names in PAIRS[:2]:
        source, target = (cut(folder, name, text) for name in names)
        table = vocabulary_map(source[0], target[0])
        for k in (16, 128):
            print(
                "| " + " | ".join([" to ".join(names), str(k), *one_text(source, target, table, k, text)]) + " |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", type=Path, default=PUBLISHED, help="a folder of NAME/tokenizer.json")
    parser.add_argument("--quick", action="store_true", help="two maps; seconds instead of a minute")
    given = parser.parse_args()
    maps(given.tokenizers, PAIRS[:2] if given.quick else PAIRS)
    texts(given.tokenizers)


if __name__ == "__main__":
    main()
