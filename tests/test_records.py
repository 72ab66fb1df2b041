import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_tokenizer

from peertune.errors import ConfigError
from peertune.lm.encode import encode
from peertune.tasks.base import Example
from peertune.tasks.records import Records, read_examples

SECRET = "patient 4711 has gout"
ROWS = [
    {"prompt": "2+2=", "completion": "4", "category": "sum"},
    {"prompt": "2*3=", "completion": "6", "category": None},
    {"text": "four is two and two"},
]
Writer = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def write_rows(rows: list[Any], name: str = "data.jsonl") -> str:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n" if name.endswith(".jsonl") else f"[{','.join(lines)}]")
        return str(path)

    return write_rows


def contents(examples: list[Example]) -> list[tuple[str, str, str]]:
    return [(example.prompt, example.completion, example.category) for example in examples]


EXPECTED = [("2+2=", "4", "sum"), ("2*3=", "6", ""), ("", "four is two and two", "")]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_json_rows(write: Writer, name: str) -> None:
    examples = read_examples(write(ROWS, name))
    assert contents(examples) == EXPECTED
    assert len({example.key for example in examples}) == 3 and not any(example.chat for example in examples)


def test_json_lines_with_blank_lines_line_separators_and_byte_order_mark(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "a\u2028b", "completion": "c\nd"}, ensure_ascii=False)
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\n  \n{row}".encode())
    assert contents(read_examples(str(tmp_path / "x.jsonl"))) == [("a\u2028b", "c\nd", "")] * 2


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS[:2]), tmp_path / "x.parquet")
    assert contents(read_examples(str(tmp_path / "x.parquet"))) == EXPECTED[:2]
    parquet.write_table(pyarrow.Table.from_pylist([{"prompt": "a", "completion": 3}]), tmp_path / "y.parquet")
    with pytest.raises(ConfigError, match=r"y.parquet: row 1: field 'completion': expected text, found a number"):
        read_examples(str(tmp_path / "y.parquet"))
    (tmp_path / "z.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match="expected a Parquet file"):
        read_examples(str(tmp_path / "z.parquet"))


def save_to_disk(rows: list[Any], folder: Path) -> None:
    """What `Dataset.save_to_disk` writes."""
    import pyarrow

    folder.mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(folder / "data.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    features = {name: {"dtype": "string", "_type": "Value"} for name in table.column_names}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    formats = ("_format_columns", "_format_kwargs", "_format_type", "_output_all_columns", "_split")
    state = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "0123"} | dict.fromkeys(formats)
    (folder / "state.json").write_text(json.dumps(state | {"_format_kwargs": {}, "_output_all_columns": False}))


def test_saved_data_set(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the extra peertune[data]")
    save_to_disk(ROWS[:2], tmp_path / "single")
    save_to_disk(ROWS[:2], tmp_path / "several" / "test")
    (tmp_path / "several" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert contents(read_examples(str(tmp_path / "single"))) == EXPECTED[:2]
    assert contents(read_examples(f"{tmp_path}/several:test")) == EXPECTED[:2]
    with pytest.raises(ConfigError, match="no split 'train'; name one of test as .*several:SPLIT"):
        read_examples(str(tmp_path / "several"))
    with pytest.raises(ConfigError, match="expected a folder written by save_to_disk"):
        read_examples(str(tmp_path))


def test_unavailable_hub_data_set_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra peertune[data]")

    def fail(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetGenerationError(SECRET)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        ConfigError, match=r"no data set 'org/data' with a split 'test' \(DatasetGenerationError\)"
    ) as caught:
        read_examples("org/data:test")
    assert caught.value.__suppress_context__


def test_missing_extras_name_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    (tmp_path / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path in ("org/data", str(tmp_path), str(tmp_path / "x.parquet")):
        with pytest.raises(ConfigError, match=r"pip install 'peertune\[data\]'"):
            read_examples(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": SECRET}, "expected a field 'completion', found 'prompt'"),
        ({"completion": SECRET}, "expected the fields .*, found 'completion'"),
        ({"question": SECRET, "answer": SECRET}, "found 'question', 'answer'"),
        ({}, "found none"),
        ([SECRET], "expected an object .*, found a list"),
        (json.dumps(SECRET), "expected an object .*, found text"),
        ({"prompt": 3, "completion": SECRET}, "field 'prompt': expected text, found a number"),
        ({"prompt": SECRET, "completion": None}, "field 'completion': expected text, found null"),
        ({"prompt": SECRET, "completion": [SECRET]}, "field 'completion': expected text, found a list"),
        ({"prompt": SECRET, "completion": "  "}, "field 'completion': expected text to learn from, found none"),
        ({"text": ""}, "field 'text': expected text to learn from"),
        ({"text": SECRET, "category": True}, "field 'category': expected text, found true or false"),
        ({"text": SECRET + "\ud800"}, "field 'text': expected Unicode text"),
        ('{"text": "' + SECRET, r"expected JSON, found none that can be read, at column 10"),
        (f"{SECRET}", "expected JSON"),
    ],
)
def test_errors_name_the_place_and_never_the_text(write: Writer, row: Any, message: str) -> None:
    path = write([ROWS[0], "", row])
    with pytest.raises(ConfigError, match=message) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    error: BaseException | None = caught.value
    while error is not None:
        assert "4711" not in str(error).replace(path, "") and "4711" not in repr(vars(error))
        error = error.__cause__ or error.__context__


@given(
    st.recursive(
        st.none() | st.integers() | st.just(SECRET),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["prompt", "completion", "text", "messages", "category", "role", "content"]), inner
            )
        ),
    )
)
def test_any_json_gives_examples_or_a_config_error(row: Any) -> None:
    from peertune.tasks.records import _example

    for tokenizer in (None, CHAT):
        try:
            example = _example("f:1", row, tokenizer, True)
        except ConfigError as error:
            assert "4711" not in str(error)
        else:
            assert example.completion.strip()


def test_files_that_are_no_data(write: Writer, tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(json.dumps({"text": SECRET}).encode() + b"\xe9")
    (tmp_path / "one.json").write_text(json.dumps({"text": SECRET}))
    (tmp_path / "bad.json").write_text('[\n{"text": ' + SECRET)
    (tmp_path / "x.csv").write_text("prompt,completion")
    for path, message in {
        write([]): "found an empty data set",
        str(tmp_path / "latin.jsonl"): "expected UTF-8 text",
        str(tmp_path / "one.json"): "expected a JSON list of rows, found an object",
        str(tmp_path / "bad.json"): "at line 2, column 10",
        str(tmp_path / "x.csv"): "expected a .jsonl, .json or .parquet file, found .csv",
        str(tmp_path / "absent.jsonl"): "found no such file",
        "data/absent.jsonl": "found no such file",
    }.items():
        with pytest.raises(ConfigError, match=message) as caught:
            read_examples(path)
        assert "4711" not in str(caught.value) and path.split("/")[-1] in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("x.jsonl", "x.json"):
        (tmp_path / name).symlink_to("/proc/self/mem")  # its first page gives an I/O error
        with pytest.raises(ConfigError, match=rf"{name} cannot be read \(Input/output error\)"):
            read_examples(str(tmp_path / name))

    def fail(file: Path) -> None:
        raise PermissionError(errno.EACCES, f"Failed to open {SECRET}")

    monkeypatch.setattr(parquet, "read_table", fail)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"x.parquet cannot be read \(Permission denied\)"):
        read_examples(str(tmp_path / "x.parquet"))


CHAT = make_tokenizer(chat=True)
TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "add"},
    {"role": "assistant", "content": "a + b"},
]


def test_chat_is_rendered_with_loss_on_the_last_turn(write: Writer) -> None:
    (example,) = read_examples(write([{"messages": TURNS}]), CHAT)
    assert example.prompt == "<|eos|><|user|>hi<|assistant|>hello<|user|>add<|assistant|>"
    assert (example.completion, example.chat) == ("a + b", True)
    row = encode(CHAT, example.prompt, example.completion, 80, template=True)
    assert [token for token in row.ids if token < 4] == [0, 2, 3, 2, 3, 0]
    assert CHAT.decode(list(row.ids[row.prompt_length :])) == "a + b<|eos|>"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (SECRET, "expected a list of turns, found text"),
        ([], "expected a list of turns"),
        ([SECRET], "turn 1: expected an object, found text"),
        ([{"role": "user"}], "turn 1: expected a field 'content', found 'role'"),
        ([*TURNS[:1], {"role": "assistant", "content": None}], "turn 2: field 'content': expected text, found null"),
        (TURNS[:3], "expected the last turn to be the assistant's"),
    ],
)
def test_wrong_chats(write: Writer, messages: Any, message: str) -> None:
    path = write([{"messages": messages}])
    with pytest.raises(ConfigError, match=message) as caught:
        read_examples(path, CHAT)
    text = str(caught.value)
    assert text.startswith(f"{path}:1: field 'messages'") and "4711" not in text.removeprefix(path)


def test_chat_needs_a_template_that_fits(write: Writer) -> None:
    path = write([{"messages": [{"role": "user", "content": SECRET}, TURNS[1]]}])
    for tokenizer, message in ((None, "each model renders a chat"), (make_tokenizer(), "with a chat template")):
        with pytest.raises(ConfigError, match=message):
            read_examples(path, tokenizer)
    refusing, rewriting = make_tokenizer(), make_tokenizer()
    refusing.chat_template = "{{ raise_exception(messages[0]['content']) }}"
    rewriting.chat_template = "{{ messages | length }}{{ messages[0]['content'] }}"
    for tokenizer, message in ((refusing, "template refuses these turns"), (rewriting, "keeps the turns before")):
        with pytest.raises(ConfigError, match=message) as caught:
            read_examples(path, tokenizer)
        assert "4711" not in str(caught.value) and "4711" not in str(caught.value.__context__)


def test_records_task(write: Writer) -> None:
    test = write([ROWS[0], {"prompt": "9-9=", "completion": "0", "category": "difference"}], "test.jsonl")
    transfer = write([{"prompt": "1+1=", "category": "sum"}, ROWS[1]], "transfer.jsonl")
    task = Records(test, transfer)
    assert task.categories == ("difference", "sum")
    assert contents(task.examples("transfer")) == [("1+1=", "", "sum"), ("2*3=", "6", "")]
    examples = task.examples("test")
    assert task.grade(examples, [" 4\n", "0 0"]) == [1.0, 0.0]
    assert task.grade([Example("p", "a  b\nc")], ["a b c"]) == [1.0]
    for split in ("probe", "train"):
        with pytest.raises(ConfigError, match=f"no file for the split '{split}'; splits with a file: test, transfer"):
            task.examples(split)
    with pytest.raises(ConfigError, match="'transfer'; splits with a file: test"):
        Records(test, None).examples("transfer")


def test_equal_prompts_have_equal_keys_in_every_form(write: Writer) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2="}]
    rows = [
        {"prompt": "2+2=", "completion": "4"},
        {"prompt": " 2+2=\n", "completion": "four"},
        {"text": "2+2="},
        {"messages": [*turns[1:], {"role": "assistant", "content": "4"}]},
    ]
    assert len({example.key for example in read_examples(write(rows), CHAT)}) == 1
    others = [*rows[:1], {"messages": [*TURNS[:2], *turns[1:], TURNS[3]]}, {"prompt": "2+3=", "completion": "5"}]
    assert len({example.key for example in read_examples(write(others), CHAT)}) == 3


def test_import_needs_no_torch() -> None:
    import subprocess

    code = "import sys, peertune.tasks.records, peertune.lm.source, peertune.lm.settings; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
