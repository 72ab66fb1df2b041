"""Random one-line Python expressions over a named argument, for the pretraining corpus."""

import random

from peertune.tasks.codelets.values import (
    DICT_NAMES,
    GRID_NAMES,
    LETTERS,
    LIST_NAMES,
    NUMBER_NAMES,
    SEPARATORS,
    STRING_NAMES,
    WORD_LIST_NAMES,
    WORDS,
)

_OPERATORS = ("+", "-", "*", "//", "%")
_COMPARISONS = (">", "<", ">=", "<=", "==", "!=")


def integer(rng: random.Random) -> int:
    return rng.randint(2, 60)


def arithmetic(rng: random.Random, name: str) -> str:
    """A number made from `name`."""
    draw = rng.random()
    if draw < 0.35:
        return name
    if draw < 0.75:
        return f"{name} {rng.choice(_OPERATORS)} {integer(rng)}"
    if draw < 0.85:
        return f"abs({name} - {integer(rng)})"
    if draw < 0.92:
        return f"{rng.choice(('min', 'max'))}({name}, {integer(rng)})"
    return f"({name} {rng.choice('+-*')} {integer(rng)}) {rng.choice(_OPERATORS)} {integer(rng)}"


def condition(rng: random.Random, name: str) -> str:
    """A truth value made from the number `name`."""
    draw = rng.random()
    if draw < 0.5:
        return f"{name} {rng.choice(_COMPARISONS)} {integer(rng)}"
    if draw < 0.7:
        return f"{name} % {rng.randint(2, 9)} {rng.choice(('==', '!='))} {rng.randint(0, 3)}"
    if draw < 0.8:
        return f"{rng.randint(1, 15)} <= {name} <= {rng.randint(16, 60)}"
    first = f"{name} {rng.choice(_COMPARISONS)} {integer(rng)}"
    return f"{first} {rng.choice(('and', 'or'))} {name} {rng.choice(_COMPARISONS)} {integer(rng)}"


def _word_condition(rng: random.Random, name: str) -> str:
    options = (
        f"{name}.startswith('{rng.choice(LETTERS)}')",
        f"{name}.endswith('{rng.choice(LETTERS)}')",
        f"len({name}) {rng.choice(_COMPARISONS)} {rng.randint(1, 12)}",
        f"'{rng.choice(LETTERS)}' in {name}",
        f"{name} != '{rng.choice(WORDS)}'",
    )
    return rng.choice(options)


def _slice(rng: random.Random) -> str:
    k = rng.randint(1, 12)
    return rng.choice((f"[:{k}]", f"[{k}:]", f"[::{k}]", f"[-{k}:]", "[::-1]", f"[:-{k}]"))


def _maybe_slice(rng: random.Random) -> str:
    return _slice(rng) if rng.random() < 0.5 else ""


def _list_to_list(rng: random.Random, a: str) -> str:
    x = rng.choice("xveyt")
    options = (
        f"[{arithmetic(rng, x)} for {x} in {a}]",
        f"[{x} for {x} in {a} if {condition(rng, x)}]",
        f"[{arithmetic(rng, x)} for {x} in {a} if {condition(rng, x)}]",
        f"{a}{_slice(rng)}",
        f"sorted({a}){_maybe_slice(rng)}",
        f"sorted({a}, reverse={rng.choice(('True', 'False'))}){_maybe_slice(rng)}",
        f"sorted({a}, key=lambda {x}: {arithmetic(rng, x)})",
        f"{a}{_slice(rng)} + {a}{_slice(rng)}",
        f"[{arithmetic(rng, x)} + i for i, {x} in enumerate({a})]",
        f"[{x} {rng.choice('+-')} i * {integer(rng)} for i, {x} in enumerate({a})]",
        f"sorted(set({a}))",
        f"list(range({integer(rng)}, {integer(rng)}, {rng.randint(1, 9)}))",
        f"{a} + [{integer(rng)}]",
    )
    return rng.choice(options)


def _list_to_number(rng: random.Random, a: str) -> str:
    x = rng.choice("xveyt")
    operator = rng.choice(_OPERATORS)
    options = (
        f"sum({arithmetic(rng, x)} for {x} in {a})",
        f"sum({x} * {x} for {x} in {a}) {operator} {integer(rng)}",
        f"sum({a}{_slice(rng)})",
        f"sum({a}) {operator} {integer(rng)}",
        f"max({a}) {operator} {integer(rng)}",
        f"len({a}) {operator} {integer(rng)}",
        f"sum(1 for {x} in {a} if {condition(rng, x)})",
        f"len(set({a})) {operator} {integer(rng)}",
        f"any({condition(rng, x)} for {x} in {a})",
        f"all({condition(rng, x)} for {x} in {a})",
        f"sum({a}) / len({a}) if {a} else {integer(rng)}",
        f"(max({a}) {rng.choice('+-')} min({a})) {operator} {integer(rng)}",
    )
    return rng.choice(options)


def _text(rng: random.Random, a: str) -> str:
    c, e, p = rng.choice(LETTERS), rng.choice(LETTERS), rng.choice(SEPARATORS)
    case = rng.choice(("upper", "lower"))
    options = (
        f"{a}.{rng.choice(('upper', 'lower', 'title', 'strip'))}()",
        f"{a}{_slice(rng)}",
        f"{a}{_slice(rng)}{_slice(rng)}",
        f"{a} * {rng.randint(1, 12)}",
        f"{a}.{case}() * {rng.randint(1, 12)}",
        f"{a}.replace('{c}', '{e}')",
        f"{a}.{rng.choice(('rjust', 'ljust'))}({integer(rng)}, '{c}')",
        f"{a}.count('{c}')",
        f"{a}.{case}().count('{c}')",
        f"{a}.split('{p}')",
        f"{a}.split('{p}')[{rng.randint(0, 9)}]",
        f"{a}.split()[{rng.randint(0, 9)}]",
        f"'{p}'.join({a}.split())",
        f"'{p}'.join({a}.{case}().split())",
        f"len({a}.split()) {rng.choice(_OPERATORS)} {integer(rng)}",
        f"{a} + '{rng.choice(WORDS)}'",
        f"sum(int(t) for t in {a}.split('{p}'))",
        f"[w for w in {a}.split() if {_word_condition(rng, 'w')}]",
        f"sum({_word_condition(rng, 'w')} for w in {a}.split())",
    )
    return rng.choice(options)


def _table(rng: random.Random, a: str) -> str:
    options = (
        f"{a}.get('{rng.choice(WORDS)}', {integer(rng)})",
        f"[k for k, v in {a}.items() if {condition(rng, 'v')}]",
        f"{{k: {arithmetic(rng, 'v')} for k, v in {a}.items()}}",
        f"{{k: v for k, v in {a}.items() if {condition(rng, 'v')}}}",
        f"sum({a}.values()) {rng.choice(_OPERATORS)} {integer(rng)}",
        f"sorted({a}.keys())",
        f"sum(v for k, v in {a}.items() if {_word_condition(rng, 'k')})",
        f"len({a}) {rng.choice(_COMPARISONS)} {integer(rng)}",
        f"dict(t.split('=') for t in {a})",
        f"dict(t.split('{rng.choice(SEPARATORS)}') for t in {a})",
    )
    return rng.choice(options)


def _inner_limit(rng: random.Random) -> str:
    return rng.choice(("i", str(rng.randint(2, 9))))


def from_number(rng: random.Random, a: str) -> str:
    """Any value made from the number `a`."""
    sign, w, v = rng.choice("+-*"), rng.choice(WORDS), rng.choice(WORDS)
    options = (
        arithmetic(rng, a),
        f"{a} {rng.choice(_OPERATORS)} {integer(rng)} {rng.choice('+-')} {integer(rng)}",
        condition(rng, a),
        f"'{w}' if {condition(rng, a)} else '{v}'",
        f"'{w}' if {condition(rng, a)} else str({a})",
        f"'{w}' if {condition(rng, a)} else '{v}' if {condition(rng, a)} else None",
        f"max({integer(rng)}, min({a}, {integer(rng)}))",
        f"divmod({a}, {integer(rng)})",
        f"pow({a}, {rng.randint(2, 12)}, {integer(rng)})",
        f"str({a} {rng.choice(_OPERATORS)} {integer(rng)})",
        f"sum(int(c) for c in str({a})) {rng.choice(_OPERATORS)} {integer(rng)}",
        f"[d for d in range(1, {a} + 1) if {a} % d == {rng.randint(0, 2)} and {condition(rng, 'd')}]",
        f"list(range({integer(rng)}, {a}, {integer(rng)}))",
        f"[i {sign} {integer(rng)} for i in range({a})]",
        f"[i {sign} {integer(rng)} for i in range({a}) for j in range({_inner_limit(rng)})]",
        f"[[i {sign} j for j in range({rng.randint(2, 12)})] for i in range({a})]",
        f"-(-{a} // {integer(rng)}) {rng.choice('+-*')} {integer(rng)}",
        f"{a} * ({integer(rng)} {rng.choice('+-')} {integer(rng)}) / 100",
    )
    return rng.choice(options)


def _two_numbers(rng: random.Random, a: str, b: str) -> str:
    operator = rng.choice(_OPERATORS)
    options = (
        f"{a} {operator} {b} {rng.choice('+-')} {integer(rng)}",
        f"abs({a} - {b}) {operator} {integer(rng)}",
        f"({condition(rng, a)}) != ({condition(rng, b)})",
        f"max({a}, {b}) {operator} {integer(rng)}",
    )
    return rng.choice(options)


def _grid(rng: random.Random, a: str) -> str:
    options = (
        f"[row[{rng.randint(0, 9)}] for row in {a}]",
        f"[x for row in {a} for x in row if {condition(rng, 'x')}]",
        f"[sum(row) {rng.choice(_OPERATORS)} {integer(rng)} for row in {a}]",
        f"[len(row) for row in {a}]",
        f"[max(row) {rng.choice(_OPERATORS)} {integer(rng)} for row in {a}]",
    )
    return rng.choice(options)


def _word_list(rng: random.Random, a: str) -> str:
    options = (
        f"[w for w in {a} if {_word_condition(rng, 'w')}]",
        f"sorted({a}, key=len){_maybe_slice(rng)}",
        f"sorted({a}, key=lambda w: w.count('{rng.choice(LETTERS)}'))",
        f"'{rng.choice(SEPARATORS)}'.join({a})",
        f"[w.upper() for w in {a}]",
        f"[len(w) for w in {a}]",
        f"sum({_word_condition(rng, 'w')} for w in {a})",
    )
    return rng.choice(options)


def _two_lists(rng: random.Random, a: str, b: str) -> str:
    both = f"set({a}) {rng.choice('&|^-')} set({b})"
    options = (
        f"sorted({both}){_maybe_slice(rng)}",
        f"len({both}) {rng.choice(_COMPARISONS)} {rng.randint(1, 12)}",
        f"sorted({both} | {{{integer(rng)}}})",
        f"len({both}) + {integer(rng)}",
        f"sorted(x for x in {both} if {condition(rng, 'x')})",
    )
    return rng.choice(options)


def random_expression(rng: random.Random) -> tuple[list[str], str]:
    """Argument names and an expression over them."""
    match rng.randrange(9):
        case 0:
            return [name := rng.choice(LIST_NAMES)], _list_to_list(rng, name)
        case 1:
            return [name := rng.choice(LIST_NAMES)], _list_to_number(rng, name)
        case 2:
            return [name := rng.choice(STRING_NAMES)], _text(rng, name)
        case 3:
            return [name := rng.choice(DICT_NAMES)], _table(rng, name)
        case 4:
            return [name := rng.choice(NUMBER_NAMES)], from_number(rng, name)
        case 5:
            return [name := rng.choice(GRID_NAMES)], _grid(rng, name)
        case 6:
            return [name := rng.choice(WORD_LIST_NAMES)], _word_list(rng, name)
        case 7:
            names = rng.sample(NUMBER_NAMES, 2)
            return names, _two_numbers(rng, *names)
        case _:
            names = rng.sample(LIST_NAMES, 2)
            return names, _two_lists(rng, *names)
