"""A user's own data: JSON Lines, JSON, Parquet, a folder saved by Hugging Face datasets, or a hub data set.

A row is `prompt` + `completion`, or `text`, or `messages` (a chat), each with an optional `category`. Private
text never appears in an error: only the place, names of fields and types.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from peertune.errors import ConfigError
from peertune.tasks.base import Example, Split, Task
from peertune.tasks.disjoint import text_key

FORMATS = "'prompt' and 'completion', or 'text', or 'messages'"
EXTRA = "install it with: pip install 'peertune[data]'"
KINDS = (".jsonl", ".json", ".parquet")
SAVED = ("dataset_info.json", "dataset_dict.json")  # what a folder of save_to_disk holds
Located = tuple[str, Any]  # where a row stands, as users count; the row


def read_examples(
    path: str, tokenizer: Any = None, completions: bool = True, kinds: tuple[str, ...] = KINDS
) -> list[Example]:
    """Read all rows of `path`, in order.

    `path`: a file of one of `kinds` (also ".csv"), a folder of `save_to_disk`, or a hub id "org/name"; the last two
    may name a split, "org/name:test", and else give "train". `tokenizer` renders the chats of `messages`: the
    prompt is the chat template up to the last assistant turn, the completion is the rest of it.
    `completions=False` also takes rows with a prompt only. Raises `ConfigError` for a row that does not fit,
    and for an empty data set.
    """
    examples = [_example(place, row, tokenizer, completions) for place, row in _rows(path, kinds)]
    if not examples:
        raise ConfigError(f"{path}: expected at least one row with {FORMATS}, found an empty data set.")
    return examples


class Records(Task):
    """Shared splits from a user's files. Agents' private data is not here: each reads its own. Final.

    A text is right if it equals the completion, white space aside.
    """

    name = "records"

    def __init__(self, test: str, transfer: str | None) -> None:
        self._splits: dict[str, list[Example]] = {"test": read_examples(test)}
        if transfer:
            self._splits["transfer"] = read_examples(transfer, completions=False)
        found = {example.category for examples in self._splits.values() for example in examples}
        self.categories = tuple(sorted(found - {""}))

    def examples(self, split: Split) -> list[Example]:
        if split not in self._splits:
            known = ", ".join(self._splits)
            raise ConfigError(f"task records: no file for the split {split!r}; splits with a file: {known}.")
        return list(self._splits[split])

    def clean(self, text: str) -> str:
        return text.strip()

    def grade(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        return exact_match(examples, texts)


def exact_match(examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    """1 where a text equals the completion, white space aside, else 0."""
    return [float(text.split() == example.completion.split()) for example, text in zip(examples, texts, strict=True)]


def locate(path: str, kinds: tuple[str, ...] = KINDS) -> Literal["file", "folder", "hub"]:
    """What `path` means; nothing is read or downloaded. Raises `ConfigError` if nothing is there to be read."""
    if os.path.isfile(os.path.expanduser(path)):  # unlike Path.is_file, also false where nobody may look
        if not path.endswith(kinds):
            found = Path(path).suffix or "no suffix"
            raise ConfigError(f"{path}: expected a {', '.join(kinds[:-1])} or {kinds[-1]} file, found {found}.")
        return "file"
    place = path.partition(":")[0]
    folder = os.path.expanduser(place)
    if os.path.isdir(folder):
        if not any(os.path.isfile(os.path.join(folder, name)) for name in SAVED):
            raise ConfigError(f"{path}: expected a file, or a folder written by save_to_disk, found another folder.")
        return "folder"
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", place) and not place.endswith(kinds):
        return "hub"
    raise ConfigError(f"{path}: expected a file, a folder or a hub id 'org/name', found no such file in {Path.cwd()}.")


def _rows(path: str, kinds: tuple[str, ...]) -> Iterator[Located]:
    place, _, split = path.partition(":")
    match locate(path, kinds):
        case "file":
            file = Path(os.path.expanduser(path))
            readers = {".jsonl": _json_lines, ".json": _json_list, ".parquet": _parquet, ".csv": _csv}
            return readers[file.suffix](file)
        case "folder":
            return _datasets_rows(path, _load_folder(path, Path(os.path.expanduser(place)), split or "train"))
        case "hub":
            return _datasets_rows(path, _load_hub(path, place, split or "train"))


def _json_lines(file: Path) -> Iterator[Located]:
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if line.strip():
            yield f"{file}:{number}", _parse(line, f"{file}:{number}", 0)


def _json_list(file: Path) -> Iterator[Located]:
    rows = _parse(_text(file), str(file), 1)
    if not isinstance(rows, list):
        raise ConfigError(f"{file}: expected a JSON list of rows, found {_kind(rows)}.")
    for number, row in enumerate(rows, start=1):
        yield f"{file}: row {number}", row


def _csv(file: Path) -> Iterator[Located]:
    """Rows by the names in the first line (RFC 4180)."""
    reader = csv.DictReader(io.StringIO(_text(file), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ConfigError(
                    f"{file}:{reader.line_num}: expected {len(reader.fieldnames or ())} fields as in the first line, "
                    "found another number; put fields that hold a comma in double quotes."
                )
            yield f"{file}:{reader.line_num}", row
    except csv.Error as error:
        raise ConfigError(
            f"{file}:{reader.reader.line_num}: expected CSV, found none that can be read ({error})."
        ) from None


def _parquet(file: Path) -> Iterator[Located]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise ConfigError(f"{file}: reading Parquet needs pyarrow; {EXTRA}") from error
    try:
        rows = parquet.read_table(file).to_pylist()
    except (OSError, ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise ConfigError(f"{file} cannot be read ({os.strerror(error.errno)}).") from None
        raise ConfigError(f"{file}: expected a Parquet file, found one that pyarrow cannot read.") from error
    for number, row in enumerate(rows, start=1):
        yield f"{file}: row {number}", row


def _load_folder(path: str, folder: Path, split: str) -> Any:
    datasets = _datasets(path)
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError):
        raise ConfigError(f"{path}: expected a folder written by save_to_disk, found another one.") from None
    if not isinstance(loaded, dict):
        return loaded
    if split not in loaded:
        raise ConfigError(f"{path}: no split {split!r}; name one of {', '.join(loaded)} as {folder}:SPLIT.")
    return loaded[split]


def _load_hub(path: str, name: str, split: str) -> Any:
    datasets = _datasets(path)
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            f"{path}: there is no such folder here, and the hub gave no data set {name!r} with a split {split!r} "
            f"({type(error).__name__}). "
            "Check the name and the network."
        ) from None  # the cause may quote rows


def _datasets(path: str) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]  an extra
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path}: reading this needs Hugging Face datasets; {EXTRA}") from error
    return datasets


def _datasets_rows(path: str, loaded: Any) -> Iterator[Located]:
    return ((f"{path}: row {number}", row) for number, row in enumerate(loaded, start=1))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        at = error.start
    raise ConfigError(f"{file}: expected UTF-8 text, found another byte at offset {at}; save it as UTF-8.")


def _parse(text: str, place: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:  # it holds the whole text: do not chain it
        line = f"line {error.lineno}, " if first_line else ""
        problem = f"{line}column {error.colno}"
    except (ValueError, RecursionError):
        problem = "a number of thousands of digits or very deep nesting"
    raise ConfigError(f"{place}: expected JSON, found none that can be read, at {problem}.")


def _example(place: str, row: Any, tokenizer: Any, completions: bool) -> Example:
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: expected an object with {FORMATS}, found {_kind(row)}.")
    category = "" if row.get("category") is None else _string(place, row, "category")
    if "messages" in row:
        prompt, completion = _chat(place, row["messages"], tokenizer)
        asked = "\n".join(turn["content"] for turn in row["messages"][:-1] if turn["role"] != "system")
        return Example(prompt, completion, category, key=text_key(asked or prompt), chat=True)
    if "prompt" in row:
        prompt = _string(place, row, "prompt")
        known = completions or row.get("completion") is not None
        completion = _string(place, row, "completion") if known else ""
    elif "text" in row:
        prompt, completion = "", _string(place, row, "text")
    else:
        raise ConfigError(f"{place}: expected the fields {FORMATS}, found {', '.join(map(repr, row)) or 'none'}.")
    if completions and not completion.strip():
        field = "completion" if "prompt" in row else "text"
        raise ConfigError(f"{place}: field {field!r}: expected text to learn from, found none.")
    return Example(prompt, completion, category, key=text_key(prompt or completion))


def _string(place: str, row: dict[str, Any], field: str) -> str:
    if field not in row:
        raise ConfigError(f"{place}: expected a field {field!r}, found {', '.join(map(repr, row)) or 'none'}.")
    value = row[field]
    if not isinstance(value, str):
        raise ConfigError(f"{place}: field {field!r}: expected text, found {_kind(value)}.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigError(f"{place}: field {field!r}: expected Unicode text, found half a surrogate pair.")
    return value


def _chat(place: str, messages: Any, tokenizer: Any) -> tuple[str, str]:
    """Prompt and completion of a chat whose last turn is the assistant's."""
    if tokenizer is None:
        raise ConfigError(
            f"{place}: field 'messages': each model renders a chat in its own way, and here all models share "
            "the text; expected 'prompt' and 'completion'."
        )
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"{place}: field 'messages': expected a tokenizer with a chat template, found one without; "
            "choose a chat model or write 'prompt' and 'completion'."
        )
    _check_turns(place, messages)
    prompt = _render(place, tokenizer, messages[:-1], True)
    whole = _render(place, tokenizer, messages, False)
    if not whole.startswith(prompt):
        raise ConfigError(
            f"{place}: field 'messages': expected a chat template that keeps the turns before an answer, "
            "found one that rewrites them; write 'prompt' and 'completion' for this model."
        )
    # the end token is added when rows are encoded
    return prompt, whole[len(prompt) :].rstrip("\n").removesuffix(str(tokenizer.eos_token))


def _check_turns(place: str, messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise ConfigError(f"{place}: field 'messages': expected a list of turns, found {_kind(messages)}.")
    for number, turn in enumerate(messages, start=1):
        if not isinstance(turn, dict):
            raise ConfigError(f"{place}: field 'messages': turn {number}: expected an object, found {_kind(turn)}.")
        for field in ("role", "content"):
            _string(f"{place}: field 'messages': turn {number}", turn, field)
    if messages[-1]["role"] != "assistant":
        raise ConfigError(f"{place}: field 'messages': expected the last turn to be the assistant's, found another.")


def _render(place: str, tokenizer: Any, messages: list[Any], add_generation_prompt: bool) -> str:
    from jinja2 import TemplateError  # here, because only chats need it

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except TemplateError:  # its text may quote a turn: do not chain it
        pass
    raise ConfigError(
        f"{place}: field 'messages': the model's chat template refuses these turns; "
        "most want user and assistant to alternate, beginning with user."
    )


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
