"""The public corpus that the bundled models are pretrained on: short Python functions, none a codelet.

Three kinds: documented simple tasks, random idioms whose docstring says nothing, and functions whose
docstring spells the expression out (these teach copying). A model trained on it writes Python, but must still
learn what the benchmark's docstrings mean.
"""

import random

from peertune.tasks.codelets.expressions import condition, from_number, integer, random_expression
from peertune.tasks.codelets.values import (
    ARGUMENT_NAMES,
    FUNCTION_NAMES,
    LETTERS,
    NUMBER_NAMES,
    WORDS,
)

# (argument kind, two phrasings, statements)
_SIMPLE = (
    ("I", "Return {a} plus {K}.", "Add {K} to {a}.", "return {a} + {K}"),
    ("I", "Return {a} minus {K}.", "Subtract {K} from {a}.", "return {a} - {K}"),
    ("I", "Return {K} times {a}.", "Return the product of {a} and {K}.", "return {a} * {K}"),
    ("I", "Is {a} equal to {K}?", "Tell whether {a} is {K}.", "return {a} == {K}"),
    ("I", "Is {a} smaller than {K}?", "Check that {a} is under {K}.", "return {a} < {K}"),
    ("I", "Return a list of {a} and {K}.", "Put {a} and {K} in a list.", "return [{a}, {K}]"),
    ("I", "Return the remainder of {a} by {K}.", "Divide {a} by {K} and give the rest.", "return {a} % {K}"),
    ("I", "Return '{w}' and ignore {a}.", "Always answer '{w}'.", "return '{w}'"),
    ("I", "Print {a} and return {K}.", "Show {a}, then give {K}.", "print({a})\n    return {K}"),
    ("L", "Return the first {k} elements of {a}.", "Take {k} items from {a}.", "return {a}[:{k}]"),
    ("L", "Skip the first {k} elements of {a}.", "Return {a} from position {k} on.", "return {a}[{k}:]"),
    ("L", "Append {K} to {a}.", "Return {a} with {K} at the end.", "return {a} + [{K}]"),
    ("L", "Return the length of {a} plus {K}.", "Add {K} to the size of {a}.", "return len({a}) + {K}"),
    ("L", "Is {K} in {a}?", "Tell whether {a} contains {K}.", "return {K} in {a}"),
    ("L", "Count {K} in {a}.", "Return how often {K} occurs in {a}.", "return {a}.count({K})"),
    ("L", "Return {a} repeated {k} times.", "Repeat {a} {k} times.", "return {a} * {k}"),
    ("L", "Return the last {k} of {a}.", "Take {k} items from the end of {a}.", "return {a}[-{k}:]"),
    ("S", "Does {a} contain '{c}'?", "Tell whether '{c}' is in {a}.", "return '{c}' in {a}"),
    ("S", "Append '{w}' to {a}.", "Return {a} followed by '{w}'.", "return {a} + '{w}'"),
    ("S", "Put '{w}' before {a}.", "Return '{w}' and then {a}.", "return '{w}' + {a}"),
    ("S", "Is {a} the word '{w}'?", "Check if {a} equals '{w}'.", "return {a} == '{w}'"),
    ("S", "Return the index of '{c}' in {a}.", "Find where '{c}' is in {a}.", "return {a}.find('{c}')"),
    ("S", "Return character {q} of {a}.", "Pick the letter of {a} at {q}.", "return {a}[{q}]"),
    ("S", "Remove '{c}' at the ends of {a}.", "Strip '{c}' from {a}.", "return {a}.strip('{c}')"),
    ("D", "Set '{w}' to {K} in {a}.", "Store {K} under '{w}' in {a}.", "{a}['{w}'] = {K}\n    return {a}"),
    ("D", "Is '{w}' a key of {a}?", "Tell if {a} has '{w}'.", "return '{w}' in {a}"),
    ("D", "Return the size of {a} plus {K}.", "Add {K} to the entry count of {a}.", "return len({a}) + {K}"),
    ("W", "Return string {q} of {a}.", "Pick element {q} from {a}.", "return {a}[{q}]"),
    ("W", "Is '{w}' among {a}?", "Tell whether {a} has '{w}'.", "return '{w}' in {a}"),
    ("M", "Return row {q} of {a}.", "Pick the row {q} from {a}.", "return {a}[{q}]"),
)

_VAGUE = (
    "Helper function.",
    "Do the {t} work for {a}.",
    "Utility used by the caller of the {t} {u}.",
    "Internal routine on {a} for {t} and {u}.",
    "See the notes on {t} {u}.",
    "Compute a result from {a} for the {u}.",
    "Legacy {t} code for {a}.",
    "Used in tests of {t} {u}.",
)
# Words that vague docstrings use without meaning, so that the tokenizers know common programming English.
_TOPICS = (
    "above absolute all answer average below between biggest both bounds bigger cap case cells character "
    "clamp column common convert copy default descending difference digit discount distance distinct "
    "divisible divisor each element empty entry every exactly exceed extract factor field flatten gap "
    "glued grade grid group inclusive index integer interval item key label largest leftover letters "
    "limit longer longest lookup lower many map mean merge minutes missing multiple multiply nested order "
    "otherwise pad pair part percent position power price product range rank reduce remainder repeat "
    "replace reverse rotate round rows scale separated settings shared shortest size smallest sort split "
    "spread square starting strings sum symmetric text threshold times total union unique upper value "
    "width without"
)


def documents(seed: int, n: int) -> list[str]:
    """`n` functions, each a whole Python source that ends with a newline."""
    rng = random.Random(f"{seed}|corpus")
    makers = rng.choices((simple_task, undocumented_idiom, spelled_out), weights=(35, 35, 30), k=n)
    return [make(rng) for make in makers]


def simple_task(rng: random.Random) -> str:
    """A documented task that is not one of the benchmark's."""
    kind, *phrasings, statements = rng.choice(_SIMPLE)
    name = rng.choice(ARGUMENT_NAMES[kind])
    constants = {
        "K": integer(rng),
        "k": rng.randint(2, 12),
        "q": rng.randint(0, 9),
        "c": rng.choice(LETTERS),
        "w": rng.choice(WORDS),
    }
    docstring = rng.choice(phrasings).format(a=name, **constants)
    return _function(rng, [name], docstring, statements.format(a=name, **constants))


def undocumented_idiom(rng: random.Random) -> str:
    """Random code whose docstring, if any, tells nothing."""
    names, expression = random_expression(rng)
    docstring = ""
    if rng.random() < 0.7:
        topics = rng.sample(_TOPICS.split(), 2)
        docstring = rng.choice(_VAGUE).format(a=names[0], t=topics[0], u=topics[1])
    return _function(rng, names, docstring, _statements(rng, names[0], expression))


def spelled_out(rng: random.Random) -> str:
    """A function whose docstring holds the expression that it returns."""
    names, expression = random_expression(rng)
    forms = ("Return {}.", "Compute {}.", "Evaluate {} and return it.", "The result is {}.")
    return _function(rng, names, rng.choice(forms).format(expression), f"return {expression}")


def _statements(rng: random.Random, name: str, expression: str) -> str:
    draw = rng.random()
    if draw < 0.55:
        return f"return {expression}"
    if draw < 0.7:
        return f"result = {expression}\n    return result"
    if draw < 0.85:
        test = condition(rng, name) if name in NUMBER_NAMES else f"not {name}"
        early = rng.choice(("None", "[]", "0", "1", repr(rng.choice(WORDS))))
        return f"if {test}:\n        return {early}\n    return {expression}"
    step = from_number(rng, "i")
    return f"out = []\n    for i in range({integer(rng)}):\n        out.append({step})\n    return out"


def _function(rng: random.Random, names: list[str], docstring: str, statements: str) -> str:
    head = f"def {rng.choice(FUNCTION_NAMES)}({', '.join(names)}):\n"
    quoted = f'    """{docstring}"""\n' if docstring else ""
    return f"{head}{quoted}    {statements}\n"
