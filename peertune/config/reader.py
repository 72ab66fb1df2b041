"""YAML file -> `Config`, with errors that name the file, the line, the section, what was expected and the nearest
key.
"""

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from peertune.config.schema import VERSION, Config
from peertune.errors import ConfigError

RECIPES = Path(__file__).parent.parent / "recipes"


def resolve_recipe(source: str) -> Path:
    """The file that `source` means: an existing path, or the name of a bundled recipe. Raises `ConfigError`."""
    path = Path(source)
    if path.is_file():
        return path
    bundled = RECIPES / f"{source}.yaml"
    if bundled.is_file():
        return bundled
    names = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
    near = difflib.get_close_matches(source, names, n=1)
    hint = f"did you mean the recipe {near[0]!r}?" if near else f"bundled recipes: {', '.join(names)}"
    raise ConfigError(f"no configuration at {source!r}: expected a YAML file or the name of a recipe; {hint}")


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration; `overrides` are `key.key=value` texts. Raises `ConfigError` listing every
    error.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; a configuration is a YAML file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}:{_yaml_line(error)}: this is not valid YAML ({_yaml_problem(error)})") from None
    if not isinstance(data, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: expected sections such as `task:` and `agents:`, found {type(data).__name__}")
    _check_version(path, data)
    for override in overrides:
        _override(data, override)
    try:
        return Config.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        lines = sorted({_describe(path, node, detail) for detail in error.errors()}, key=_natural)
        raise ConfigError("\n".join(lines)) from None


class _Loader(yaml.SafeLoader):
    """YAML without surprises: `5e-3` is a number, a date stays text, a repeated key is an error."""

    yaml_implicit_resolvers = {
        letter: [pair for pair in pairs if pair[0] not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float")]
        for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice in one section", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$",
        re.I,
    ),
    list("-+0123456789."),
)


def _check_version(path: Path, data: dict[str, Any]) -> None:
    version = data.get("version", VERSION)
    if isinstance(version, int) and version > VERSION:
        raise ConfigError(
            f"{path} has configuration version {version}, this peertune knows up to {VERSION}; upgrade peertune"
        )


def _override(data: dict[str, Any], text: str) -> None:
    """Apply `a.b=value` to the raw data; list places are numbers (`agents.0.model=...`)."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text!r}: expected key=value, such as budget.local_steps=4")
    *parents, last = key.split(".")
    place: Any = data
    for parent in parents:
        place = _child(place, parent, text)
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: {value!r} is not a valid YAML value") from None
    if isinstance(place, list):
        place[_index(place, last, text)] = parsed
    else:
        place[last] = parsed


def _child(place: Any, key: str, text: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, text)]
    child = place.setdefault(key, {})
    if isinstance(child, str):  # `method: knexa` is short for `method: {type: knexa}`
        child = place[key] = {"type": child}
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {text!r}: {key!r} is a value, not a section")
    return child


def _index(place: list[Any], key: str, text: str) -> int:
    if not key.isdigit() or int(key) >= len(place):
        raise ConfigError(f"--set {text!r}: {key!r} is not a place in a list of {len(place)} (counted from 0)")
    return int(key)


# From a pydantic error to a line that a person can act on.


def _describe(path: Path, root: yaml.MappingNode, error: ErrorDetails) -> str:
    line, section = _locate(root, error["loc"])
    where = f"{path}:{line}: [{'.'.join(section) or 'top'}]"
    key = str(error["loc"][-1]) if error["loc"] else ""
    match error["type"]:
        case "extra_forbidden":
            return f"{where} {_unknown_key(error['loc'])}"
        case "missing":
            return f"{where} the key {key!r} is missing; add it"
        case "union_tag_invalid":
            given, valid = (
                error.get("ctx", {}).get("tag", ""),
                re.findall(r"'(\w+)'", str(error.get("ctx", {}).get("expected_tags"))),
            )
            return f"{where} unknown type {given!r}{_hint(str(given), valid)}"
        case "union_tag_not_found":
            return f"{where} the key 'type' is missing, or this is not a section"
        case "value_error":
            return f"{path}: {error['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{where} expected {_expected(error['msg'])}, found {json.dumps(error['input'], default=str)[:80]}"


def _expected(message: str) -> str:
    text = message.removeprefix("Input should be ").removeprefix("a valid ")
    return text[0].lower() + text[1:]


def _locate(root: yaml.Node, loc: Sequence[int | str]) -> tuple[int, list[str]]:
    """Line (from 1) and section path of the deepest part of `loc` that stands in the file; union tags do not."""
    node, line, path = root, 1, []
    for part in loc:
        child = _child_node(node, part)
        if child is not None:
            line, node = child
            path.append(str(part))
    return line, path


def _child_node(node: yaml.Node, part: int | str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    return None


def _unknown_key(loc: Sequence[int | str]) -> str:
    key = str(loc[-1])
    models, siblings = _models_at(loc[:-1])
    valid = [name for model in models for name in model.model_fields]
    users = [_type_of(model) for model in siblings if key in model.model_fields]
    if users:
        return (
            f"{key!r} is not used by type {_type_of(models[0])!r}, only by {', '.join(users)}; remove "
            f"it or change the type"
        )
    return f"unknown key {key!r}{_hint(key, valid)}"


def _hint(given: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, valid, n=1)
    return f"; did you mean {near[0]!r}? (valid: {', '.join(valid)})" if near else f"; valid: {', '.join(valid)}"


def _models_at(loc: Sequence[int | str]) -> tuple[list[type[BaseModel]], list[type[BaseModel]]]:
    """The section models that can stand at `loc`, and the other members of their union."""
    models: list[type[BaseModel]] = [Config]
    siblings: list[type[BaseModel]] = []
    in_dict = False
    for part in loc:
        if in_dict:  # a name that the user chose, which may be the name of a type as well
            in_dict = False
            continue
        tagged = [model for model in models if "type" in model.model_fields and _type_of(model) == part]
        if tagged:
            siblings, models = [model for model in models if model not in tagged], tagged
            continue
        fields = [model.model_fields[str(part)] for model in models if str(part) in model.model_fields]
        if fields:
            models, siblings = [model for field in fields for model in _models_in(field.annotation)], []
            in_dict = any(get_origin(field.annotation) is dict for field in fields)
    return models, siblings


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
    annotation = model.model_fields["type"].annotation
    return get_args(annotation)[0] if get_origin(annotation) is Literal else ""


def _yaml_line(error: yaml.YAMLError) -> int:
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else 1


def _yaml_problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or "unreadable characters"


def _natural(line: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", line)]
