"""What the tasks that run code share: reading published problem files, cutting a completion, grading it."""

import gzip
import importlib
import json
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peertune.errors import ConfigError
from peertune.tasks.base import Example
from peertune.tasks.sandbox import Program, Sandbox

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILE_KINDS = (".jsonl", ".jsonl.gz", ".json")


def read_rows(path: str | Path, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a .jsonl, .jsonl.gz or .json file, or of all splits of a data set on the hub.

    Raises `ConfigError` if it cannot be read or a row has no string under one of the names in `texts`.
    """
    name = str(path)
    if name.endswith(FILE_KINDS):
        rows = _from_file(Path(path))
    elif HUB_NAME.fullmatch(name) and not os.path.exists(path):
        rows = _from_hub(name)
    else:
        raise ConfigError(f"{name}: expected a {', '.join(FILE_KINDS)} file or the name of a data set, owner/name")
    for number, row in enumerate(rows, 1):
        missing = [text for text in texts if not (isinstance(row, dict) and isinstance(row.get(text), str))]
        if missing:
            raise ConfigError(
                f"{name}, row {number}: expected text under {', '.join(missing)}; is it another data set?"
            )
    return rows


def _from_file(path: Path) -> list[Any]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode()
        if path.suffix == ".json":
            rows = json.loads(text)
            return rows if isinstance(rows, list) else [rows]
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "damaged gzip data"
        raise ConfigError(f"{path} cannot be read ({reason})") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected JSON, one problem a line in a .jsonl file: {error}") from error


def _from_hub(name: str) -> list[Any]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(
            f"{name} is on the Hugging Face hub: install `peertune[data]` to load it, or give a local file"
        ) from error
    try:
        splits = datasets.load_dataset(name)
    except OSError as error:
        raise ConfigError(
            f"{name} was not loaded ({type(error).__name__}): check the name, or give a local file"
        ) from error
    return [dict(row) for split in splits.values() for row in split]


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops`."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def grade_programs(
    sandbox: Sandbox | None, examples: Sequence[Example], completions: Sequence[str], timeout: float
) -> list[float]:
    """1.0 where prompt + completion + tests, one program, runs to its end; equal programs run once."""
    if sandbox is None:
        raise ConfigError("this task runs programs that models wrote: it grades only with a sandbox, and got none")
    programs = [
        Program("\n".join([example.prompt + completion, *example.tests]), timeout)
        for example, completion in zip(examples, completions, strict=True)
    ]
    unique = list(dict.fromkeys(programs))
    verdicts = dict(zip(unique, sandbox.run(unique), strict=True))
    return [float(verdicts[program].passed) for program in programs]
