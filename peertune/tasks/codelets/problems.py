"""From a template and its constants to a problem whose tests tell right from nearly right."""

import random
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from peertune.tasks.base import Example
from peertune.tasks.codelets.templates import Template
from peertune.tasks.codelets.values import ARGUMENT_NAMES, FUNCTION_NAMES, SLOTS, Constant, random_input

TESTS = 5
_FEWEST, _MOST = 30, 600  # candidates for the tests of one problem
_TRIES = 50

# One wrong operator: each occurrence on the left becomes what stands on the right.
_SWAPS = (
    (" > ", " >= "),
    (" >= ", " > "),
    (" < ", " <= "),
    (" <= ", " < "),
    (" == ", " != "),
    (" != ", " == "),
    (" + ", " - "),
    (" - ", " + "),
    (" * ", " + "),
    (" and ", " or "),
    (" | ", " & "),
    (" & ", " | "),
    (" ^ ", " | "),
    ("min(", "max("),
    ("max(", "min("),
    ("upper()", "lower()"),
    ("lower()", "upper()"),
    ("True", "False"),
)
_WRONG = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A possible test: literal arguments, the right output, and the wrong expressions that it tells apart."""

    arguments: str
    output: object
    kills: frozenset[int]


def problem(
    template: Template, constants: Mapping[str, Constant], rng: random.Random, taken: Set[str] = frozenset()
) -> Example:
    """One problem: random names and phrasing, `TESTS` asserts on random inputs.

    The prompt is not among `taken`, unless that could not be had in `_TRIES` draws.
    """
    function, fields, prompt = _wording(template, constants, rng)
    tries = 1
    while prompt in taken and tries < _TRIES:
        function, fields, prompt = _wording(template, constants, rng)
        tries += 1
    return Example(
        prompt=prompt,
        completion=f"\n    return {template.expression.format(**fields)}\n",
        category=template.category,
        tests=_tests(template, constants, function, rng),
        key=" ".join([template.key, *(f"{slot}={value}" for slot, value in constants.items())]),
    )


def _wording(
    template: Template, constants: Mapping[str, Constant], rng: random.Random
) -> tuple[str, dict[str, Constant], str]:
    """The function's name, what stands for the template's fields, and the prompt."""
    names = rng.sample(ARGUMENT_NAMES[template.kinds[0]], len(template.kinds))
    function = rng.choice(FUNCTION_NAMES)
    fields = dict(zip("ab", names, strict=False)) | dict(constants)
    docstring = rng.choice(template.phrasings).format(**fields)
    return function, fields, f'def {function}({", ".join(names)}):\n    """{docstring}"""'


def wrong_expressions(template: Template, constants: Mapping[str, Constant]) -> list[str]:
    """Expressions over `a` and `b` that differ from the right one in one operator or one constant."""
    names = {"a": "a", "b": "b"}
    changed = [names | dict(constants) | {slot: other} for slot in constants for other in _others(slot, constants)]
    wrong = [template.expression.format(**fields) for fields in changed]
    right = template.expression.format(**names, **constants)
    for old, new in _SWAPS:
        pieces = right.split(old)
        for i in range(1, len(pieces)):
            wrong.append(old.join(pieces[:i]) + new + old.join(pieces[i:]))
    return wrong


def _others(slot: str, constants: Mapping[str, Constant]) -> list[Constant]:
    """Wrong values: one less, one more, half and double; or the next letter, word or separator."""
    value, pool = constants[slot], SLOTS[slot]
    if isinstance(value, int):
        return [other for other in (value - 1, value + 1, value // 2, value * 2) if other != value]
    return [pool[(pool.index(value) + 1) % len(pool)]]


def _function(template: Template, expression: str) -> Callable[..., object]:
    """`expression` as a function of the template's arguments.

    The text comes from this package's own templates and constants, never from a model, a file or a user, so
    running it here is as safe as running the package.
    """
    namespace: dict[str, Callable[..., object]] = {}
    exec(f"def f({', '.join('ab'[: len(template.kinds)])}):\n    return {expression}", namespace)
    return namespace["f"]


def _same(function: Callable[..., object], arguments: list[object], output: object) -> bool:
    try:
        return function(*arguments) == output
    except _WRONG:
        return False


def _arguments(template: Template, constants: Mapping[str, Constant], rng: random.Random) -> list[object]:
    arguments = [random_input(rng, kind, constants) for kind in template.kinds]
    match arguments:
        case [list(first), list(second)]:  # random lists hardly meet; these share elements
            shared = rng.sample(first, rng.randint(0, len(first)))
            return [first, rng.sample(shared + second, len(shared + second))[:15]]
    return arguments


def _candidates(template: Template, constants: Mapping[str, Constant], rng: random.Random) -> list[_Candidate]:
    """Random inputs on which the right expression gives an answer, until each wrong one is told apart."""
    right = _function(template, template.expression.format(a="a", b="b", **constants))
    wrong = [_function(template, expression) for expression in wrong_expressions(template, constants)]
    found: list[_Candidate] = []
    alive = set(range(len(wrong)))
    while len(found) < _FEWEST or (alive and len(found) < _MOST):
        arguments = _arguments(template, constants, rng)
        try:
            output = right(*arguments)
        except (LookupError, ValueError):
            continue  # such as the largest element of an empty list: no problem asks for it
        kills = frozenset(i for i, other in enumerate(wrong) if not _same(other, arguments, output))
        alive -= kills
        found.append(_Candidate(", ".join(map(repr, arguments)), output, kills))
    return found


def _tests(template: Template, constants: Mapping[str, Constant], function: str, rng: random.Random) -> tuple[str, ...]:
    """Asserts that together tell apart as many wrong expressions as five of the candidates can."""
    candidates = _candidates(template, constants, rng)
    killed: frozenset[int] = frozenset()
    outputs: list[object] = []
    tests: list[str] = []
    while len(tests) < TESTS:
        best = max(candidates, key=lambda one: (len(one.kills - killed), one.output not in outputs))
        candidates.remove(best)
        killed |= best.kills
        outputs.append(best.output)
        tests.append(_assert(f"{function}({best.arguments})", best.output))
    return tuple(tests)


def _assert(call: str, output: object) -> str:
    """Floats may differ in their last digits: the same mean can be computed in several ways."""
    if isinstance(output, float):
        return f"assert abs({call} - {output!r}) < 1e-6"
    return f"assert {call} == {output!r}"
