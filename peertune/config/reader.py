"""YAML file -> `Config`. Errors name the file, the line, the section, what was expected and the nearest key."""

import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from peertune.config.explain import explain
from peertune.config.loader import load
from peertune.config.schema import VERSION, Config
from peertune.errors import ConfigError

RECIPES = Path(__file__).parent.parent / "recipes"


def resolve_recipe(source: str) -> Path:
    """The file that `source` means: an existing path, or the name of a bundled recipe. Raises `ConfigError`."""
    for path in (Path(source), RECIPES / f"{source}.yaml"):
        if os.path.isfile(path):  # unlike Path.is_file, also false for names that no file system takes
            return path
    names = sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))
    near = difflib.get_close_matches(source, names, n=1)
    hint = f"did you mean the recipe {near[0]!r}?" if near else f"bundled recipes: {', '.join(names)}"
    raise ConfigError(f"no configuration at {source[:200]!r}: expected a YAML file or the name of a recipe; {hint}")


def read_config(source: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration, a file or (as text) the name of a recipe; `overrides` are `key.key=value` texts.

    Raises `ConfigError`, all errors in it.
    """
    path = source if isinstance(source, Path) else resolve_recipe(source)
    try:
        node, data = load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; a configuration is a YAML file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}:{_yaml_line(error)}: this is not valid YAML ({_yaml_problem(error)})") from None
    if node is None or not isinstance(data, dict):
        found = "an empty file" if data is None else "a list" if isinstance(data, list) else "a single value"
        raise ConfigError(f"{path}:1: expected sections such as `task:` and `agents:`, found {found}")
    _check_version(path, data)
    for override in overrides:
        _override(data, override)
    try:
        return Config.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ConfigError(explain(path, node, overrides, error)) from None


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
    try:
        _, parsed = load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: {value!r} is not a valid YAML value") from None
    *parents, last = key.split(".")
    place: Any = data
    for parent in parents:
        place = _child(place, parent, text)
    place[_index(place, last, text) if isinstance(place, list) else last] = parsed


def _child(place: dict[str, Any] | list[Any], key: str, text: str) -> dict[str, Any] | list[Any]:
    if isinstance(place, list):
        child = place[_index(place, key, text)]
    else:
        child = place.setdefault(key, {})
        if isinstance(child, str):  # `method: knexa` is short for `method: {type: knexa}`
            child = place[key] = {"type": child}
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {text!r}: {key!r} is a value, not a section")
    return child


def _index(place: list[Any], key: str, text: str) -> int:
    if not key.isdecimal() or int(key) >= len(place):
        raise ConfigError(f"--set {text!r}: {key!r} is not a place in a list of {len(place)} (counted from 0)")
    return int(key)


def _yaml_line(error: yaml.YAMLError) -> int:
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else 1


def _yaml_problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or "unreadable characters"
