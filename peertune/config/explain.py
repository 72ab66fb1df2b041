"""From pydantic's errors to lines that a person can act on: where, what was expected and found, the nearest key."""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from peertune.config.schema import Config

_PLAIN = {
    "Input should be ": "",
    "String should match pattern": "text that matches",
    "greater than": "a number greater than",
    "less than": "a number less than",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "an object": "a section of `key: value`",
    "a valid dictionary": "a section of `key: value`",
    "a valid array": "a list",
}


def explain(path: Path, root: yaml.Node, overrides: Sequence[str], error: ValidationError) -> str:
    """One line an error, in the order of the file. `overrides` are the `--set` texts, which a value may come from."""
    errors = [each for each in error.errors() if not (each["type"] == "too_short" and each["input"])]
    groups = [list(same) for _, same in groupby(errors, _alternatives)]
    return "\n".join(sorted({_describe(path, root, overrides, same) for same in groups}, key=_natural))


def _alternatives(error: ErrorDetails) -> tuple[object, ...]:
    """The same for the errors of one value against each member of a union: it may be either."""
    of_union = error["type"] == "literal_error" or error["type"].endswith("_type")
    return (of_union, *(_walk(error["loc"])[0] if of_union else (*error["loc"], error["type"])))


def _describe(path: Path, root: yaml.Node, overrides: Sequence[str], errors: Sequence[ErrorDetails]) -> str:
    error = errors[0]
    if error["type"] == "value_error":
        return f"{path}: {error['msg'].removeprefix('Value error, ')}"
    extra = [str(part) for part in error["loc"][-1:] if error["type"] == "extra_forbidden"]
    keys, models, siblings = _walk(error["loc"][: len(error["loc"]) - len(extra)])
    keys += extra
    place = _overridden(keys, overrides) or f"{path}:{_line(root, keys)}"
    where = f"{place}: [{'.'.join(keys) or 'top'}]"
    parent = f"{place}: [{'.'.join(keys[:-1]) or 'top'}]"
    types = [_type_of(model) for model in models]
    match error["type"]:
        case "extra_forbidden":
            return f"{parent} {_unknown_key(keys[-1], models, siblings)}"
        case "missing" if keys[-1].isdecimal():
            return f"{parent} expected a list of more than {keys[-1]}, found no more"
        case "missing":
            return f"{parent} the key {keys[-1]!r} is missing; add it"
        case "too_short":
            return f"{where} expected a list of at least 1, found an empty list"
        case "union_tag_invalid":
            given = str(error.get("ctx", {}).get("tag", ""))
            return f"{where} unknown type {given!r}{_hint(given, types)}"
        case "union_tag_not_found":
            return f"{where} the key 'type' is missing; valid: {', '.join(types)}"
        case _:
            expected = dict.fromkeys(_expected(each["msg"]) for each in errors)
            return f"{where} expected {' or '.join(expected)}, found {json.dumps(error['input'])[:80]}"


def _expected(message: str) -> str:
    for jargon, plain in _PLAIN.items():
        message = message.replace(jargon, plain)
    return message[0].lower() + message[1:]


def _overridden(keys: Sequence[str], overrides: Sequence[str]) -> str:
    """The last `--set` that gave the value at `keys`, a part of it, or what it is a part of."""
    for override in reversed(overrides):
        given = override.partition("=")[0].split(".")
        if keys and all(key == other for key, other in zip(keys, given, strict=False)):
            return f"--set {override!r}"
    return ""


def _line(root: yaml.Node, keys: Sequence[str]) -> int:
    """The line (from 1) of the deepest of `keys` that stands in the file."""
    node, line = root, 1
    for key in keys:
        child = _child_node(node, key)
        if child is None:
            break
        line, node = child
    return line


def _child_node(node: yaml.Node, part: str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
        return node.value[int(part)].start_mark.line + 1, node.value[int(part)]
    return None


def _unknown_key(key: str, models: Sequence[type[BaseModel]], siblings: Sequence[type[BaseModel]]) -> str:
    users = [_type_of(model) for model in siblings if key in model.model_fields]
    if users:
        return (
            f"{key!r} is not used by type {_type_of(models[0])!r}, only by {', '.join(users)}; "
            f"remove it or change the type"
        )
    return f"unknown key {key!r}{_hint(key, [name for model in models for name in model.model_fields])}"


def _hint(given: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, valid, n=1)
    return f"; did you mean {near[0]!r}? (valid: {', '.join(valid)})" if near else f"; valid: {', '.join(valid)}"


Models = list[type[BaseModel]]


def _walk(loc: Sequence[int | str]) -> tuple[list[str], Models, Models]:
    """Pydantic's place -> the keys as they stand in the file, the sections that can be there, and the other members of
    their union.
    """
    keys: list[str] = []
    models: Models = [Config]
    siblings: Models = []
    named_by_user = False  # such a name may be the name of a type as well
    for part in map(str, loc):
        if named_by_user:
            keys.append(part)
            named_by_user = False
            continue
        tagged = [model for model in models if _type_of(model) == part]
        if tagged:
            siblings, models = [model for model in models if model not in tagged], tagged
            continue
        if re.search(r"[-\[]", part):  # how pydantic calls a member of a union without types, or a key
            continue
        keys.append(part)
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models, siblings = [model for field in fields for model in _models_in(field.annotation)], []
            named_by_user = any(get_origin(field.annotation) is dict for field in fields)
    return keys, models, siblings


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The section models inside a type annotation, through unions, tuples, dicts and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from _models_in(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType, tuple, dict):
        for part in get_args(annotation):
            yield from _models_in(part)


def _type_of(model: type[BaseModel]) -> str:
    field = model.model_fields.get("type")
    return get_args(field.annotation)[0] if field and get_origin(field.annotation) is Literal else ""


def _natural(line: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", line)]
