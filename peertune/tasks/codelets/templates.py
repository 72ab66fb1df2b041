"""The 60 problem templates of codelets: five in each of twelve categories.

A template is two phrasings of a docstring and the expression that solves it. `{a}` and `{b}` are the
arguments, the other fields are slots for constants (`values.SLOTS`).
"""

import math
from dataclasses import dataclass
from functools import cache

from peertune.tasks.codelets.values import SLOTS, Constant

# Below a category's name, three lines a template: two phrasings, then argument kinds, slots and expression.
_TABLE = """
strings
    Return {a} in upper case repeated {k} times.
    Repeat the upper case version of {a} {k} times.
    S k {a}.upper() * {k}
    Return the first {k} characters of {a} reversed.
    Reverse the leading {k} characters of {a}.
    S k {a}[:{k}][::-1]
    Replace every '{c}' in {a} with '{e}'.
    Return {a} with each '{c}' changed to '{e}'.
    S ce {a}.replace('{c}', '{e}')
    Pad {a} on the left with '{c}' up to width {K}.
    Return {a} right aligned to width {K} using '{c}'.
    S cK {a}.rjust({K}, '{c}')
    Count how often '{c}' appears in {a} ignoring case.
    Return the number of '{c}' letters in {a}, any case.
    S c {a}.lower().count('{c}')
aggregate
    Return the sum of the squares of {a} plus {K}.
    Add {K} to the sum of squared values of {a}.
    L K sum(x * x for x in {a}) + {K}
    Return the spread between largest and smallest of {a} times {K}.
    Multiply the range of {a} by {K}.
    L K (max({a}) - min({a})) * {K}
    Count the elements of {a} divisible by {k}.
    How many values of {a} are multiples of {k}?
    L k sum(1 for x in {a} if x % {k} == 0)
    Return the sum of {a} taken in steps of {k}.
    Add up one element of {a} in every {k}.
    L k sum({a}[::{k}])
    Return the mean of {a}, or {K} when it is empty.
    Average {a}; an empty list gives {K}.
    L K sum({a}) / len({a}) if {a} else {K}
filter
    Keep the elements of {a} that exceed {K}.
    Return all values of {a} above {K}.
    L K [x for x in {a} if x > {K}]
    Keep values of {a} between {A} and {B} inclusive.
    Return the elements of {a} within {A} to {B}.
    L AB [x for x in {a} if {A} <= x <= {B}]
    Drop the multiples of {k} from {a}.
    Return {a} without values divisible by {k}.
    L k [x for x in {a} if x % {k} != 0]
    Keep the strings of {a} starting with '{c}'.
    Return those of {a} that begin with '{c}'.
    W c [w for w in {a} if w.startswith('{c}')]
    Keep the strings of {a} longer than {k}.
    Return those of {a} with more than {k} letters.
    W k [w for w in {a} if len(w) > {k}]
transform
    Scale each element of {a} by {K}.
    Multiply all values of {a} by {K}.
    L K [x * {K} for x in {a}]
    Cap each element of {a} at {K}.
    Limit all values of {a} to at most {K}.
    L K [min(x, {K}) for x in {a}]
    Rotate {a} to the left by {k}.
    Move the first {k} elements of {a} to the end.
    L k {a}[{k}:] + {a}[:{k}]
    Add {K} times its position to each element of {a}.
    Increase every element of {a} by its index times {K}.
    L K [x + i * {K} for i, x in enumerate({a})]
    Return the absolute distance of each element of {a} to {K}.
    Map {a} to distances from {K}.
    L K [abs(x - {K}) for x in {a}]
dicts
    List the keys of {a} whose value exceeds {K}.
    Return keys of {a} with a value above {K}.
    D K [k for k, v in {a}.items() if v > {K}]
    Increase all values of {a} by {K}.
    Return a copy of {a} with {K} added to each value.
    D K {{k: v + {K} for k, v in {a}.items()}}
    Look up '{w}' in {a}, defaulting to {K}.
    Return the entry '{w}' of {a} or {K} if missing.
    D wK {a}.get('{w}', {K})
    Total the values of {a} whose key starts with '{c}'.
    Sum entries of {a} with keys beginning with '{c}'.
    D c sum(v for k, v in {a}.items() if k.startswith('{c}'))
    Remove the entries of {a} with value below {K}.
    Keep the entries of {a} worth at least {K}.
    D K {{k: v for k, v in {a}.items() if v >= {K}}}
arithmetic
    Convert {a} hours to minutes and add {K}.
    Return the minutes in {a} hours plus {K}.
    I K {a} * 60 + {K}
    Return the price {a} after a discount of {K} percent.
    Reduce {a} by {K} percent.
    I K {a} * (100 - {K}) / 100
    Round {a} up to the next multiple of {K}.
    Return the smallest multiple of {K} not below {a}.
    I K -(-{a} // {K}) * {K}
    How many full boxes of {K} fit {a} items, and the rest?
    Split {a} into groups of {K} and the leftover.
    I K divmod({a}, {K})
    Return the gap between {a} and {b} modulo {K}.
    Compute the distance of {a} and {b} mod {K}.
    II K abs({a} - {b}) % {K}
numbers
    Does exactly one of {A} and {B} divide {a}?
    Tell whether just one of {A} and {B} divides {a}.
    I AB ({a} % {A} == 0) != ({a} % {B} == 0)
    Return the digit sum of {a} times {K}.
    Multiply the sum of digits of {a} by {K}.
    I K sum(int(c) for c in str({a})) * {K}
    List the divisors of {a} greater than {K}.
    Return all factors of {a} above {K}.
    I K [d for d in range(1, {a} + 1) if {a} % d == 0 and d > {K}]
    Raise {a} to the power {k} modulo {B}.
    Compute {a} to the power {k} and reduce it mod {B}.
    I kB pow({a}, {k}, {B})
    List the positive multiples of {K} below {a}.
    Return multiples of {K} smaller than {a}.
    I K list(range({K}, {a}, {K}))
sorting
    Return the {k} largest elements of {a}, biggest first.
    List the top {k} of {a} in descending order.
    L k sorted({a}, reverse=True)[:{k}]
    Order {a} by distance to {K}.
    Sort {a} by closeness to {K}.
    L K sorted({a}, key=lambda x: abs(x - {K}))
    Order {a} by remainder modulo {K}.
    Sort {a} by the value mod {K}.
    L K sorted({a}, key=lambda x: x % {K})
    Return the {k} shortest strings of {a}.
    Sort {a} by length and take {k}.
    W k sorted({a}, key=len)[:{k}]
    Order {a} by the number of '{c}' letters.
    Sort {a} by how many '{c}' each has.
    W c sorted({a}, key=lambda w: w.count('{c}'))
sets
    Return the number of distinct elements of {a} plus {K}.
    Count the unique values of {a} and add {K}.
    L K len(set({a})) + {K}
    Return the sorted union of {a}, {b} and {K}.
    Merge {a} and {b} with {K} without duplicates, in order.
    LL K sorted(set({a}) | set({b}) | {{{K}}})
    Does {a} have at least {k} elements missing from {b}?
    Are {k} or more values of {a} not in {b}?
    LL k len(set({a}) - set({b})) >= {k}
    List the shared elements of {a} and {b} above {K} in order.
    Return common values of {a} and {b} over {K}, sorted.
    LL K sorted(x for x in set({a}) & set({b}) if x > {K})
    Return the first {k} sorted values in just one of {a} and {b}.
    Take {k} of the ordered symmetric difference of {a} and {b}.
    LL k sorted(set({a}) ^ set({b}))[:{k}]
nested
    List {K} times i plus j for each j below i, for i under {a}.
    Return i times {K} plus j over all pairs j smaller than i under {a}.
    i K [i * {K} + j for i in range({a}) for j in range(i)]
    Return a grid of {a} rows and {k} columns of products.
    Build the multiplication table of {a} by {k}.
    i k [[i * j for j in range({k})] for i in range({a})]
    Flatten {a} keeping what is over {K}.
    List the entries of all rows of {a} above {K}.
    M K [x for row in {a} for x in row if x > {K}]
    Extract column {q} of {a}.
    Return the entry at {q} from each row of {a}.
    M q [row[{q}] for row in {a}]
    Return row totals of {a} scaled by {K}.
    List the sum of each row of {a} times {K}.
    M K [sum(row) * {K} for row in {a}]
conditions
    Say '{w}' when {a} is over {K}, otherwise '{v}'.
    Answer '{w}' if {a} exceeds {K} and else '{v}'.
    I wKv '{w}' if {a} > {K} else '{v}'
    Clamp {a} to the interval {A} to {B}.
    Force {a} into the bounds {A} and {B}.
    I AB max({A}, min({a}, {B}))
    Say '{w}' for multiples of {k}, otherwise {a} as text.
    Turn {a} into '{w}' if {k} divides it, else a string.
    I wk '{w}' if {a} % {k} == 0 else str({a})
    Grade {a}: under {A} is '{w}', under {B} is '{v}', else None.
    Label {a} '{w}' below {A}, '{v}' below {B}, or None.
    I AwBv '{w}' if {a} < {A} else '{v}' if {a} < {B} else None
    Is exactly one of {a} and {b} over {K}?
    Tell if only one of {a}, {b} exceeds {K}.
    II K ({a} > {K}) != ({b} > {K})
parsing
    Split {a} at '{p}' and take field {q}.
    Return part {q} of {a} separated by '{p}'.
    P pq {a}.split('{p}')[{q}]
    Sum the integers in {a} separated by '{p}'.
    Add the '{p}' separated numbers of {a}.
    Q p sum(int(t) for t in {a}.split('{p}'))
    Count the words in {a} longer than {k}.
    How many words of {a} have over {k} letters?
    S k sum(len(w) > {k} for w in {a}.split())
    Join the words of {a} with '{p}', shouting.
    Return the upper case words of {a} glued by '{p}'.
    S p '{p}'.join({a}.upper().split())
    Parse {a} into pairs split at '=' and '{p}' as a dict.
    Turn the '{p}' separated settings of {a} into a dict.
    E p dict(t.split('=') for t in {a}.split('{p}'))
"""


@dataclass(frozen=True, slots=True)
class Template:
    """`kinds` is a letter an argument (`values.ARGUMENT_NAMES`), `slots` one a constant (`values.SLOTS`)."""

    key: str
    category: str
    phrasings: tuple[str, str]
    kinds: str
    slots: str
    expression: str

    @property
    def size(self) -> int:
        """How many choices of constants there are, those of `constants_at` that are None included."""
        return math.prod(len(SLOTS[slot]) for slot in self.slots)

    def constants_at(self, index: int) -> dict[str, Constant] | None:
        """Choice number `index` of `size`; None where two slots would hold the same value."""
        constants: dict[str, Constant] = {}
        for slot in self.slots:
            index, position = divmod(index, len(SLOTS[slot]))
            constants[slot] = SLOTS[slot][position]
        return constants if len(set(constants.values())) == len(constants) else None


@cache
def templates() -> tuple[Template, ...]:
    """All templates, category by category."""
    found: list[Template] = []
    category, lines = "", []
    for line in _TABLE.strip().splitlines():
        if not line.startswith(" "):
            category = line
            continue
        lines.append(line.strip())
        if len(lines) == 3:
            first, second, rest = lines
            kinds, slots, expression = rest.split(" ", 2)
            key = f"{category}{len(found) % 5}"
            found.append(Template(key, category, (first, second), kinds, slots, expression))
            lines = []
    return tuple(found)
