"""YAML text -> plain data and its node tree, without surprises.

Of YAML 1.1's guesses only plain numbers, true, false and null are left: `5e-3` is a number, `010` is ten, `no` and
dates are text. A key that stands twice is an error, and tags construct nothing.
"""

import json
import re
from typing import Any

import yaml


def load(text: str) -> tuple[yaml.Node | None, Any]:
    """The node tree (None if the text is empty) and the data. Raises `yaml.YAMLError`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        return node, json.loads(json.dumps(yaml.load(text, Loader=_Loader)))  # what two aliases share is separated
    except (RecursionError, ValueError):
        raise yaml.MarkedYAMLError(problem="sections nested too deeply, or in themselves") from None


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {
        letter: [pair for pair in pairs if pair[0] in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")]
        for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        f"tag:yaml.org,2002:{name}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{name}"]
        for name in ("null", "bool", "str", "seq", "map")
    } | {None: yaml.SafeLoader.yaml_constructors[None]}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a name", problem_mark=key.start_mark)
            if key.value in seen:
                problem = f"the key {key.value!r} stands twice in one section"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = node.value.replace("_", "").lower()
        try:
            return int(text) if node.tag.endswith(":int") else float(text.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:  # of many thousand digits, or tagged by hand
            problem = f"{node.value[:40]!r} is not a number"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


_FLOAT = r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:e[-+]?[0-9]+)?|[0-9]+e[-+]?[0-9]+|\.inf)|\.nan"
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT})$", re.I), list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
