"""Names, constants and random inputs that codelets and the pretraining corpus are made of."""

import random
import string
from collections.abc import Mapping, Sequence

Constant = int | str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


LIST_NAMES = _words("xs nums values data arr items numbers seq lst vals")
STRING_NAMES = _words("s text word name line msg string label")
NUMBER_NAMES = _words("n x num value count total m size")
DICT_NAMES = _words("d table mapping scores counts index prices")
WORD_LIST_NAMES = _words("words names tokens parts labels terms")
GRID_NAMES = _words("rows grid matrix board")
FUNCTION_NAMES = _words(
    "solve compute task process helper func run get_result answer calc work make build find check convert "
    "handle evaluate apply main"
)
WORDS = _words(
    "low high small big yes no red blue green hot cold old new fast slow up down left right good bad "
    "even odd cat dog sun moon tree one two"
)
LETTERS = string.ascii_lowercase
SEPARATORS = ",;:-|/#+*_~@"

# What a slot of a template may hold; two slots of one template never hold the same value.
SLOTS: Mapping[str, Sequence[Constant]] = {
    "K": range(2, 41),
    "k": range(2, 13),
    "q": range(10),
    "A": range(2, 16),
    "B": range(16, 41),
    "c": LETTERS,
    "e": LETTERS,
    "p": SEPARATORS,
    "w": WORDS,
    "v": WORDS,
}

# Argument kinds: list, string, list of words, dict, number, small number, grid; and strings of words, of
# numbers and of settings, with a separator between them.
ARGUMENT_NAMES: Mapping[str, Sequence[str]] = {
    "L": LIST_NAMES,
    "S": STRING_NAMES,
    "W": WORD_LIST_NAMES,
    "D": DICT_NAMES,
    "I": NUMBER_NAMES,
    "i": NUMBER_NAMES,
    "M": GRID_NAMES,
    "P": STRING_NAMES,
    "Q": STRING_NAMES,
    "E": STRING_NAMES,
}


def random_input(rng: random.Random, kind: str, constants: Mapping[str, Constant]) -> object:
    """A value of kind `kind` (a key of `ARGUMENT_NAMES`), often at an edge that `constants` define."""
    numbers = [value for value in constants.values() if isinstance(value, int)] or [5]
    letter = str(constants.get("c", "a"))
    separator = str(constants.get("p", ","))
    match kind:
        case "L":
            edge = min(16, rng.choice(numbers) + rng.randint(0, 3))
            return _numbers(rng, numbers, rng.choice((0, rng.randint(1, 16), edge)))
        case "S":
            return _text(rng, letter, numbers)
        case "W":
            return _word_list(rng, letter, numbers)
        case "D":
            return _table(rng, constants, numbers)
        case "I":
            return _number(rng, numbers)
        case "i":
            return rng.randint(1, 6)
        case "M":
            longest = 10 if "q" not in constants else max(numbers) + 3
            return [_numbers(rng, numbers, rng.randint(longest - 3, longest)) for _ in range(rng.randint(1, 4))]
        case _:
            return separator.join(_fields(rng, kind))


def _near(rng: random.Random, numbers: Sequence[int]) -> int:
    """One of `numbers`, its neighbours, its half or a multiple."""
    number = rng.choice(numbers)
    return rng.choice((number - 1, number, number + 1, number // 2, number * rng.randint(2, 4)))


def _numbers(rng: random.Random, numbers: Sequence[int], length: int) -> list[int]:
    return [_near(rng, numbers) if rng.random() < 0.4 else rng.randint(-20, 50) for _ in range(length)]


def _number(rng: random.Random, numbers: Sequence[int]) -> int:
    edge = rng.choice(numbers) + rng.randint(-1, 1)
    return rng.choice((rng.randint(1, 120), edge, edge, _near(rng, numbers), numbers[0] * numbers[-1]))


def _word(rng: random.Random, longest: int = 9) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, longest)))


def _edge_word(rng: random.Random, numbers: Sequence[int]) -> str:
    """A word that is often as long as one of `numbers`, or one letter longer or shorter."""
    length = rng.choice(numbers) + rng.randint(-1, 1)
    return "".join(rng.choice(LETTERS) for _ in range(min(length, 14))) if rng.random() < 0.5 else _word(rng)


def _text(rng: random.Random, letter: str, numbers: Sequence[int]) -> str:
    if rng.random() < 0.3:
        return " ".join(_edge_word(rng, numbers) for _ in range(4)).title()
    characters = rng.choices(LETTERS + "     ", k=rng.randint(1, 16))
    either = (letter, letter.upper())
    return "".join(rng.choice(either) if rng.random() < 0.2 else char for char in characters)


def _word_list(rng: random.Random, letter: str, numbers: Sequence[int]) -> list[str]:
    starts = [rng.choice(("", "", letter, letter * 2)) for _ in range(rng.randint(2, 14))]
    return [start + _edge_word(rng, numbers) for start in starts]


def _table(rng: random.Random, constants: Mapping[str, Constant], numbers: Sequence[int]) -> dict[str, int]:
    table = {_word(rng, 4): rng.randint(-10, 40) for _ in range(rng.randint(1, 8))}
    if "w" in constants and rng.random() < 0.6:
        table[str(constants["w"])] = rng.randint(1, 50)
    if "c" in constants:
        table[str(constants["c"]) + "x"] = rng.randint(1, 50)
    for key in ("kk", "kl"):
        table[key] = _near(rng, numbers)
    return table


def _fields(rng: random.Random, kind: str) -> list[str]:
    """Fields for `P` (words), `Q` (numbers) and `E` (settings); none holds a separator."""
    if kind == "P":
        return [_word(rng) for _ in range(rng.randint(1, 12))]
    if kind == "Q":
        return [str(rng.randint(0, 30)) for _ in range(rng.randint(1, 5))]
    return [f"{_word(rng, 3)}={rng.randint(0, 9)}" for _ in range(rng.randint(1, 4))]
