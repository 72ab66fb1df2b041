"""Questions from a user's file: dealt by seed and category, no prompt in two splits, exact match; one line if wrong."""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import bodies, make_models, run, small_config

from peertune.assemble import make_task, public_examples
from peertune.errors import ConfigError
from peertune.places import check_places
from peertune.tasks.answers import ORDER, Answers
from peertune.tasks.disjoint import check_disjoint

ROOT = Path(__file__).parent.parent
BANKING = ROOT.parent / "shared" / "data" / "cls"
SUPERNI_DATA = BANKING.parent / "superni"
sys.path.insert(0, str(ROOT / "scripts"))

from make_answers import INTENTS, LISTS, intent_rows, list_rows, question_rows, record  # noqa: E402

SIZES = {"test": 5, "probe": 2, "transfer": 4, "validation": 3, "train": 7}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def question(category: str, number: int) -> dict[str, str]:
    return {"prompt": f"{category} {number}?", "completion": f" {number}", "category": category}


def questions(counts: Mapping[str, int]) -> list[dict[str, str]]:
    return [question(category, number) for category, count in counts.items() for number in range(count)]


def keys(task: Answers) -> dict[str, list[str]]:
    return {split: [example.key for example in task.examples(split)] for split in ORDER}


def test_every_split_goes_through_the_categories_in_turn(tmp_path: Path) -> None:
    task = Answers(write(tmp_path / "q.jsonl", questions({"b": 11, "a": 12})), 0, SIZES)
    assert task.categories == ("a", "b")
    for split in ORDER:
        found, size = task.examples(split), SIZES[split]
        assert [example.category for example in found] == ["a", "b", "a", "b", "a", "b", "a"][:size]
        assert all(example.prompt.startswith(f"{example.category} ") for example in found)
        assert not any(example.tests or example.chat for example in found)


def test_the_test_depends_on_the_seed_and_its_size_only(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", questions({"a": 60, "b": 60}))
    test = Answers(path, 3, SIZES).examples("test")
    assert Answers(path, 3, SIZES | {"train": 40, "probe": 0}).examples("test") == test
    assert Answers(path, 3, SIZES | {"test": 9}).examples("test")[:5] == test
    assert Answers(path, 4, SIZES).examples("test") != test
    more = write(tmp_path / "more.jsonl", questions({"a": 60, "b": 60, "c": 60}))
    assert [e for e in Answers(more, 3, SIZES | {"test": 9}).examples("test") if e.category != "c"][:5] == test


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 12), min_size=1),
       st.fixed_dictionaries({split: st.integers(0, 12) for split in ORDER}), st.integers(0, 2**63 - 1))  # fmt: skip
def test_splits_are_disjoint_or_refused(
    tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int], sizes: dict[str, int], seed: int
) -> None:
    path = write(tmp_path_factory.mktemp("answers") / "q.jsonl", questions(counts))
    try:
        task = Answers(path, seed, sizes)
    except ConfigError:
        turns = Counter(sorted(counts)[i % len(counts)] for size in sizes.values() for i in range(size))
        assert any(turns[category] > count for category, count in counts.items())
        return
    check_disjoint("answers", **{split: task.examples(split) for split in ORDER})
    found = keys(task)
    assert {split: len(each) for split, each in found.items()} == sizes
    assert max(Counter(key for each in found.values() for key in each).values(), default=1) == 1


def test_a_repeated_prompt_counts_once_and_first(tmp_path: Path) -> None:
    rows = [{"prompt": " one\n?", "completion": "1", "category": "a"}, question("a", 0)]
    again = {"prompt": "one ?", "completion": "2", "category": "b"}
    task = Answers(write(tmp_path / "q.jsonl", [*rows, again]), 0, dict.fromkeys(ORDER, 0) | {"train": 2})
    assert task.categories == ("a",)
    assert sorted((example.prompt, example.completion) for example in task.examples("train")) == [
        (" one\n?", "1"),
        ("a 0?", " 0"),
    ]


def test_an_answer_is_right_if_it_is_the_completion(tmp_path: Path) -> None:
    task = Answers(write(tmp_path / "q.jsonl", questions({"a": 21})), 0, SIZES)
    example = task.examples("train")[0]
    right = example.completion
    texts = [right, f"\n  {right.strip()}\n", f"{right} {right}", "", right + "0", "the" + right]
    assert task.grade([example] * len(texts), texts) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert task.clean("\n    return 7\n\n") == "\n    return 7"
    assert [task.clean(each.completion) for each in task.examples("train")] == [
        each.completion for each in task.examples("train")
    ]


NEEDS = "expected 'prompt', 'completion' and 'category', found none or empty"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "secret", "completion": "1"}, f"q.jsonl: row 2: {NEEDS}: 'category'."),
        ({"prompt": "secret", "completion": "1", "category": None}, f"q.jsonl: row 2: {NEEDS}: 'category'."),
        ({"prompt": "", "completion": "1", "category": " "}, f"q.jsonl: row 2: {NEEDS}: 'prompt', 'category'."),
        ({"text": "secret", "category": "a"}, f"q.jsonl: row 2: {NEEDS}: 'prompt'."),
        (
            {"prompt": "secret", "category": "a"},
            "q.jsonl:2: expected a field 'completion', found 'prompt', 'category'.",
        ),
        ({"prompt": "secret", "completion": "1", "category": 7}, "field 'category': expected text, found a number."),
        ({"question": "secret"}, "q.jsonl:2: expected the fields"),
    ],
)
def test_a_record_that_does_not_fit_is_named_and_not_quoted(tmp_path: Path, row: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Answers(write(tmp_path / "q.jsonl", [question("a", 1), row]), 0, SIZES)
    assert expected in str(caught.value) and "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_too_few_prompts_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", questions({"a": 12, "b": 8}))
    with pytest.raises(ConfigError) as caught:
        Answers(path, 0, SIZES)
    assert str(caught.value) == (
        f"{path}: train, validation, transfer, probe, test of 7, 3, 4, 2, 5 examples need 9 different prompts of each "
        "of 2 categories, found one with 8; ask for fewer, or add prompts."
    )


def small_answers(tmp_path: Path, **task: Any) -> Any:
    path = write(tmp_path / "q.jsonl", questions(dict.fromkeys("abc", 40)))
    sizes = {"train": 48, "validation": 24, "transfer": 6, "probe": 3, "test": 6, "partition": "iid"}
    return small_config(
        make_models(tmp_path), task={"type": "answers", "path": path, **sizes, **task}, sandbox="bubblewrap"
    )


def test_the_configuration_makes_the_task(tmp_path: Path) -> None:
    config = small_answers(tmp_path)
    assert check_places(config) == []
    task = make_task(config.task, config.seed, None)
    assert public_examples(config) == (task.examples("transfer"), task.examples("probe"))
    assert [len(task.examples(split)) for split in ORDER] == [6, 3, 6, 24, 48]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": 31}, "task.train is 31, but 4 agents need at least 8 examples each; set it to 32 or more"),
        ({"validation": 15}, "task.validation is 15, but 4 agents need at least 4 examples each; set it to 16"),
        ({"partition": {"type": "experts", "experts": 4}}, "4 experts need more than 4 agents; lower `experts`"),
        ({"shuffle": True}, "shuffle"),
    ],
)
def test_sizes_that_cannot_work_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        small_answers(tmp_path, **changes)


def test_agents_with_data_of_their_own_and_codebleu_are_refused(tmp_path: Path) -> None:
    models, task = make_models(tmp_path), {"type": "answers", "path": "q.jsonl"}
    agents = [{"model": models["llama"], "data": {"path": "own.jsonl"}}, {"model": models["llama"]}]
    with pytest.raises(ValueError, match="task 'answers' deals its examples to all agents; remove their `data`"):
        small_config(models, task=task, agents=agents)
    with pytest.raises(ValueError, match="CodeBLEU compares programs, task 'answers' holds any text"):
        small_config(models, task=task, evaluation={"codebleu": True})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    config = small_config(make_models(tmp_path), task={"type": "answers", "path": str(tmp_path / "none.jsonl")})
    with pytest.raises(ConfigError, match=r"\[task.path\] .*none.jsonl: expected a file"):
        check_places(config)


def test_more_agents_than_categories_is_refused_when_they_are_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'by_category' leaves an agent with fewer than 8 training"):
        run(tmp_path / "run", small_answers(tmp_path, partition="by_category"))


def test_a_federation_runs_without_a_sandbox(tmp_path: Path) -> None:
    config = small_answers(tmp_path)
    ledger = run(tmp_path / "run", config)
    (facts,) = bodies(ledger, "run")[:1]
    assert [agent["train"] for agent in facts["agents"]] == [12, 12, 12, 12]
    assert all(agent["histogram"][3:] == [0] * 9 for agent in facts["agents"])  # three categories of at most twelve
    assert bodies(ledger, "pair")  # somebody learned, without tests to run
    assert all(set(body["correct"]) <= {0.0, 1.0} and len(body["correct"]) == 6 for body in bodies(ledger, "scores"))
    ledger.close()


def test_the_list_questions_are_many_different_and_right(tmp_path: Path) -> None:
    rows = list(list_rows(0))
    assert Counter(category for category, _, _ in rows) == dict.fromkeys(LISTS, 400)
    assert len({prompt for _, prompt, _ in rows}) == len(rows)
    assert list(list_rows(0)) == rows != list(list_rows(1))
    answers = {prompt: answer for _, prompt, answer in rows}
    for prompt, answer in answers.items():
        numbers = json.loads(prompt[prompt.index("[") :])
        if prompt.startswith("largest"):
            assert int(answer) == max(numbers) and 3 <= len(numbers) <= 6
        if prompt.startswith("every second"):
            assert json.loads(answer) == numbers[0::2]
    (tmp_path / "lists.jsonl").write_text("".join(record(row) + "\n" for row in rows))
    sizes = {"train": 480, "validation": 120, "transfer": 192, "probe": 48, "test": 120}
    task = Answers(str(tmp_path / "lists.jsonl"), 0, sizes)
    assert all(task.clean(each.completion) == each.completion for each in task.examples("train"))


def test_intents_of_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="banking77_train.csv: expected a file of BANKING77, found none"):
        list(intent_rows(tmp_path))
    (tmp_path / "banking77_train.csv").write_text("text,label\nsecret,exchange_rate\n")
    with pytest.raises(ConfigError, match="expected the columns text and category, found no category$"):
        list(intent_rows(tmp_path))


@pytest.mark.skipif(not BANKING.is_dir(), reason=f"BANKING77 is not at {BANKING}")
def test_the_intents_of_banking77(tmp_path: Path) -> None:
    rows = list(intent_rows(BANKING))
    assert len(rows) == 3768 and {label for _, _, label in rows} == {each for two in INTENTS.values() for each in two}
    assert all(label in INTENTS[category] for category, _, label in rows)
    (tmp_path / "intents.jsonl").write_text("".join(record(row) + "\n" for row in rows))
    sizes = {"train": 960, "validation": 120, "transfer": 384, "probe": 48, "test": 120}
    task = Answers(str(tmp_path / "intents.jsonl"), 0, sizes)
    assert task.categories == tuple(INTENTS)
    check_disjoint("banking77", **{split: task.examples(split) for split in ORDER})


CSQA = {"answerKey": "B", "question": {"stem": "Where is  it?", "choices": [
    {"label": "A", "text": "here"}, {"label": "B", "text": "far away"}]}}  # fmt: skip
ADAPTERS = {
    "instruction": "Answer with true or false, question: is it\n\nAnswer format: true/false",
    "answer": "true",
}
SUPERNI = {"input": "Who is it ?", "output": ["Person", "person"]}


@pytest.mark.parametrize(("name", "text", "row"), [
    ("a.jsonl", json.dumps(CSQA) + "\n", ("B", "Where is it? A: here B: far away", "B")),
    ("a.json", json.dumps([ADAPTERS]), ("true", "is it", "true")),
    ("a.json", json.dumps({"Definition": "", "Instances": [SUPERNI]}), ("Person", "Who is it ?", "Person")),
])  # fmt: skip
def test_published_questions(tmp_path: Path, name: str, text: str, row: tuple[str, str, str]) -> None:
    (tmp_path / name).write_text(text)
    assert list(question_rows(tmp_path / name, 240)) == [row]
    assert list(question_rows(tmp_path / name, len(row[1]) - 1)) == []


def test_answers_are_categories_where_they_are_few_and_not_rare(tmp_path: Path) -> None:
    def rows(answers: list[str]) -> list[tuple[str, str, str]]:
        found = {"Instances": [{"input": f"{number}?", "output": [each]} for number, each in enumerate(answers)]}
        (tmp_path / "task.json").write_text(json.dumps(found))
        return list(question_rows(tmp_path / "task.json", 240))

    assert Counter(category for category, _, _ in rows(["a"] * 60 + ["b"] * 40 + ["c"])) == {"a": 60, "b": 40}
    assert {category for category, _, _ in rows(list("abcdefghi"))} == {"all"}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": []}', '[{"instruction": 1}]'])
def test_files_of_another_form_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match="expected CommonsenseQA, a file of LLM-Adapters or a task"):
        list(question_rows(tmp_path / "a.json", 240))


@pytest.mark.skipif(not SUPERNI_DATA.is_dir(), reason=f"Super-NaturalInstructions is not at {SUPERNI_DATA}")
def test_the_questions_of_trec(tmp_path: Path) -> None:
    rows = list(question_rows(SUPERNI_DATA / "task1289_trec_classification.json", 240))
    assert {row[0] for row in rows} == {"Description", "Entity", "Location", "Person", "Quantity"} and len(rows) > 5000
    (tmp_path / "trec.jsonl").write_text("".join(record(row) + "\n" for row in rows))
    sizes = {"train": 240, "validation": 48, "transfer": 96, "probe": 0, "test": 96}
    check_disjoint(
        "trec", **{split: Answers(str(tmp_path / "trec.jsonl"), 0, sizes).examples(split) for split in ORDER}
    )
