"""HumanEval and MBPP: every reference passes, empty and altered answers fail, prompts leak nothing."""

import gzip
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peertune.errors import ConfigError
from peertune.tasks.base import Example, Split
from peertune.tasks.disjoint import check_disjoint
from peertune.tasks.humaneval import HumanEval
from peertune.tasks.mbpp import IDS, MBPP, signature
from peertune.tasks.programs import cut
from peertune.tasks.sandbox import Sandbox, probe

DATA = Path(__file__).parents[2] / "shared" / "data" / "code"
WORKS, WHY = probe()
needs_bubblewrap = pytest.mark.skipif(not WORKS, reason=WHY)
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the published problem files are not here")
SPLITS: tuple[Split, ...] = ("transfer", "test", "validation", "train")

ADD = {
    "task_id": "HumanEval/x",
    "prompt": 'def add(a, b):\n    """Add."""\n',
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(2, 2) == 4\n",
    "entry_point": "add",
}
TWICE = {
    "task_id": 11,
    "text": "Write a function to double a number.",
    "code": "def twice(x):\r\n\treturn 2 * x",
    "test_setup_code": "ONE = 1",
    "test_list": ["assert twice(ONE) == 2", "assert twice(2) == 4", "assert twice(-3) == -6"],
}
SANITIZED = {
    "task_id": 600,
    "prompt": "Write a function to take a root.",
    "code": "import math\ndef root(x):\n    return math.sqrt(x)",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(root(2.0), math.sqrt(2))"],
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def write(path: Path, *rows: dict[str, Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def all_of(task: MBPP) -> list[Example]:
    return [example for split in SPLITS for example in task.examples(split)]


@needs_bubblewrap
@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("    return a + b\n", 1.0),
        ("    return b + a", 1.0),
        ("    return a + b\n\nprint(add('a', 'b')\n", 1.0),  # cut where the function ends, as published
        ("    return a + b\n\ndef more(:", 1.0),
        ("", 0.0),
        ("x = 1", 0.0),
        ("    return a - b\n", 0.0),
        ("    return 3\n", 0.0),
        ("    import os; os._exit(0)\n", 0.0),
        ("    raise SystemExit\n", 0.0),
        ("    pass\nimport sys\nsys.exit(0)\n", 0.0),
        ("    return a + (", 0.0),
    ],
)
def test_humaneval_grades(sandbox: Sandbox, tmp_path: Path, text: str, grade: float) -> None:
    task = HumanEval(write(tmp_path / "h.jsonl", ADD), sandbox)
    assert task.grade(task.examples("test"), [text]) == [grade]


def test_humaneval_example(tmp_path: Path) -> None:
    task = HumanEval(write(tmp_path / "h.jsonl.gz", ADD), None)
    assert task.examples("test") == [
        Example(ADD["prompt"], ADD["canonical_solution"], "code", (ADD["test"], "check(add)\n"), key="HumanEval/x")
    ]
    with pytest.raises(ConfigError, match="no train split"):
        task.examples("train")
    with pytest.raises(ConfigError, match="only with a sandbox"):
        task.grade(task.examples("test"), [""])


@needs_bubblewrap
@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("def twice(x):\n    return x + x\n", 1.0),
        ("def one(x):\n    return x\n\ndef twice(x):\n    return 2 * one(x)\nassert twice(1) == 3", 1.0),
        ("def twice(x):\n    return 2 * x\nONE = 7\n", 1.0),  # the set-up comes after the answer
        ("", 0.0),
        ("x = 1", 0.0),
        ("def twice(x):\n    return x + 1\n", 0.0),
        ("def twice(x):\n    return 2 * abs(x)\n", 0.0),  # only the last assert tells
        ("import os\nos._exit(0)", 0.0),
    ],
)
def test_mbpp_grades(sandbox: Sandbox, tmp_path: Path, text: str, grade: float) -> None:
    task = MBPP(write(tmp_path / "m.jsonl", TWICE), sandbox)
    assert task.grade(task.examples("test"), [text]) == [grade]


def test_mbpp_example_and_splits(tmp_path: Path) -> None:
    rows = [TWICE | {"task_id": number} for number in (1, 10, 11, 510, 511, 600, 601, 974)]
    task = MBPP(write(tmp_path / "m.jsonl", *rows), None)
    assert {split: [e.key for e in task.examples(split)] for split in SPLITS} == {
        "transfer": ["MBPP/1", "MBPP/10"],
        "test": ["MBPP/11", "MBPP/510"],
        "validation": ["MBPP/511", "MBPP/600"],
        "train": ["MBPP/601", "MBPP/974"],
    }
    assert task.examples("test")[0] == Example(
        prompt='"""\nWrite a function to double a number.\ntwice(object)\n"""\n',
        completion="def twice(x):\n\treturn 2 * x\n",
        category="code",
        tests=("ONE = 1\nassert twice(ONE) == 2", "ONE = 1\nassert twice(2) == 4", "ONE = 1\nassert twice(-3) == -6"),
        key="MBPP/11",
    )
    with pytest.raises(ConfigError, match="no probe split"):
        task.examples("probe")


def test_two_asserts_of_a_transfer_problem_are_public_and_count_no_more(tmp_path: Path) -> None:
    rows = [TWICE | {"task_id": 1}, TWICE | {"task_id": 2, "test_list": TWICE["test_list"][:2]}]
    three, two = MBPP(write(tmp_path / "m.jsonl", *rows), None).examples("transfer")
    assert three.public == ("ONE = 1\nassert twice(ONE) == 2", "ONE = 1\nassert twice(2) == 4")
    assert three.tests == ("ONE = 1\nassert twice(-3) == -6",)
    assert two.public == () and len(two.tests) == 2  # one must be left to grade with


def test_train_problems_can_be_public_instead(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", *[TWICE | {"task_id": number} for number in (1, 601, 602, 603)])
    task = MBPP(path, None, public=2)
    assert [example.key for example in task.examples("transfer")] == ["MBPP/601", "MBPP/602"]
    assert [len(example.public) for example in task.examples("transfer")] == [2, 2]
    assert [example.key for example in task.examples("train")] == ["MBPP/603"]
    with pytest.raises(ConfigError, match="MBPP has 373 training problems, 373 cannot be public"):
        MBPP(path, None, public=373)


@needs_bubblewrap
def test_public_tests_and_the_grade_judge_apart(sandbox: Sandbox, tmp_path: Path) -> None:
    task = MBPP(write(tmp_path / "m.jsonl", TWICE | {"task_id": 1}), sandbox)
    texts = [TWICE["code"], "def twice(x):\n    return 2 * abs(x)\n", "def twice(x):\n    return -6\n", ""]
    problems = task.examples("transfer") * 4
    assert task.check(problems, texts) == [True, True, False, False]
    assert task.grade(problems, texts) == [1.0, 0.0, 1.0, 0.0]


@needs_bubblewrap
def test_the_sanitized_file_is_read_too(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps([SANITIZED]))
    task = MBPP(path, sandbox)
    examples = task.examples("validation")
    assert "\nroot(float)\n" in examples[0].prompt
    assert task.grade(examples, [examples[0].completion]) == [1.0]


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("assert f(1, 2.0, 'a', [1], (1,), {1: 2}, True)", "f(int, float, str, list, tuple, dict, bool)"),
        ("assert f(x, key=-3) == 1", "f(object, key=int)"),
        ("assert int(lobb_num(5, 3)) == 35", "lobb_num(int, int)"),
        ("assert sum(10, 15) == 6", "sum(int, int)"),
        ("assert (f(g(1))) == h(2)", "f(object)"),
    ],
)  # fmt: skip
def test_signature(test: str, expected: str) -> None:
    assert signature(test) == expected


def test_equal_answers_run_once(tmp_path: Path) -> None:
    class Counting:
        def run(self, programs: list[Any]) -> list[Any]:
            self.programs = programs
            return [types.SimpleNamespace(passed="return a + b" in program.code) for program in programs]

    counting: Any = Counting()
    task = HumanEval(write(tmp_path / "h.jsonl", ADD), counting, timeout=7.0)
    texts = ["    return a + b", "    return 0", "    return a + b"]
    assert task.grade(task.examples("test") * 3, texts) == [1.0, 0.0, 1.0]
    assert [program.timeout for program in counting.programs] == [7.0, 7.0]


def test_cut() -> None:
    assert cut("a\ndef b", ("\nclass", "\ndef")) == "a"
    assert cut("a\nclass\ndef", ("\ndef", "\nclass")) == "a"
    assert cut("a", ("\ndef",)) == "a"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "cannot be read"),
        ("data.csv", b"", "expected a .jsonl"),
        ("broken.jsonl", b"{", "expected JSON"),
        ("bytes.jsonl", b"\xff\xfe", "expected JSON"),
        ("broken.jsonl.gz", b"not gzip", "cannot be read"),
        ("other.jsonl", b'{"task_id": "x"}', "row 1: expected text under prompt, canonical_solution, test"),
        ("list.jsonl", b"[1]", "row 1: expected text under task_id"),
    ],
)
def test_a_file_that_is_not_humaneval(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        HumanEval(tmp_path / name, None)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("h.jsonl", "h.jsonl.gz"):
        (tmp_path / name).symlink_to("/proc/self/mem")  # its first page gives an I/O error
        with pytest.raises(ConfigError, match=rf"{name} cannot be read \(Input/output error\)"):
            HumanEval(tmp_path / name, None)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"a" * 99)[:12] + b"\xff" * 20)
    with pytest.raises(ConfigError, match=r"b.jsonl.gz cannot be read \(damaged gzip data\)"):
        HumanEval(tmp_path / "b.jsonl.gz", None)


@pytest.mark.parametrize(
    "change", [{"task_id": "x"}, {"test_list": []}, {"test_list": ["assert ("]}, {"test_list": ["assert 1"]}]
)
def test_a_file_that_is_not_mbpp(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not a row of MBPP"):
        MBPP(write(tmp_path / "m.jsonl", TWICE | change), None)


def test_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="install `peertune\\[data\\]`"):
        HumanEval("openai/openai_humaneval", None)
    fake: Any = types.ModuleType("datasets")
    fake.load_dataset = {"google-research-datasets/mbpp": {"test": [TWICE], "train": [TWICE | {"task_id": 601}]}}.get
    monkeypatch.setitem(sys.modules, "datasets", fake)
    task = MBPP("google-research-datasets/mbpp", None)
    assert [len(task.examples(split)) for split in ("test", "train")] == [1, 1]

    def offline(name: str) -> None:
        raise ConnectionError("no network")

    fake.load_dataset = offline
    with pytest.raises(ConfigError, match="was not loaded \\(ConnectionError\\)"):
        MBPP("google-research-datasets/mbpp", None)


@needs_data
@needs_bubblewrap
def test_all_references_of_humaneval_pass_and_no_other_answers(sandbox: Sandbox) -> None:
    task = HumanEval(DATA / "HumanEval.jsonl.gz", sandbox, timeout=20.0)
    examples = task.examples("test")
    assert len({example.key for example in examples}) == 164
    assert task.grade(examples, [example.completion for example in examples]) == [1.0] * 164
    for text in ("", "x = 1", "    pass\n", "    import sys\n    sys.exit(0)\n"):
        assert task.grade(examples, [text] * 164) == [0.0] * 164
    assert task.grade(examples, [example.completion for example in examples[1:] + examples[:1]]) == [0.0] * 164


@needs_data
@needs_bubblewrap
@pytest.mark.parametrize(("file", "size"), [("mbpp.jsonl", 973), ("sanitized-mbpp.json", 427)])
def test_all_references_of_mbpp_pass(sandbox: Sandbox, file: str, size: int) -> None:
    task = MBPP(DATA / file, sandbox, timeout=20.0)
    examples = all_of(task)
    assert len({example.key for example in examples}) == size
    check_disjoint("mbpp", **{split: task.examples(split) for split in SPLITS})
    assert task.grade(examples, [example.completion for example in examples]) == [1.0] * size


@needs_data
@needs_bubblewrap
def test_other_answers_to_mbpp_fail(sandbox: Sandbox) -> None:
    task = MBPP(DATA / "mbpp.jsonl", sandbox)
    examples = all_of(task)[::4]
    for text in ("", "x = 1", "import os\nos._exit(0)"):
        assert not any(task.grade(examples, [text] * len(examples)))
    neighbours = [example.completion for example in examples[1:] + examples[:1]]
    assert not any(task.grade(examples, neighbours))


@needs_data
def test_prompts_of_mbpp_hold_no_value_of_a_test_and_no_line_of_the_reference() -> None:
    examples = all_of(MBPP(DATA / "mbpp.jsonl", None))
    assert [len(IDS[split]) for split in SPLITS] == [10, 500, 90, 373]
    for example in examples:
        assert "assert" not in example.prompt
        assert not any(len(line) > 8 and line in example.prompt for line in example.completion.splitlines())
