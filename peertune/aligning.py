"""The command `align`: two tokenizers side by side. Heavy imports happen inside it; torch is not needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from unicodedata import category, combining, east_asian_width

import typer

from peertune.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from peertune.align import Vocabulary

    Side = tuple[Vocabulary, list[int]]
    Stretch = tuple[str, str, str]

SAMPLE = "Naïve tokenizers disagree about 1024 rarely written words,\n\tand agree about spaces."
ROOM = 60  # columns of a terminal of 80 for a name and a line of tokens
BOUNDARY, SAME = "│", "same bytes"
HOW = {"mined": "nearest", "first_piece": "first piece", "exact": ""}
PLACE = "A folder with tokenizer.json, bundled/NAME, or a hub id."


def align(
    a: Annotated[str, typer.Argument(help=f"The source. {PLACE}")],
    b: Annotated[str, typer.Argument(help="The target, likewise.")],
    text: Annotated[str, typer.Argument(help="What to cut with both.", show_default=False)] = SAMPLE,
    rule: Annotated[
        str,
        typer.Option(
            help="What stands for a token that B lacks: mined (the nearest by edits), first_piece, exact (none)."
        ),
    ] = "mined",
) -> None:
    """Compare two tokenizers: which tokens of A have a counterpart in B, and where both cut a text.

    What the vocabulary of A becomes in that of B; the text in both, with the boundaries that they share: what one model
    expects there the other can learn; and the counterparts of its tokens. `␣` is a space.
    """
    if rule not in ("mined", "first_piece", "exact"):
        raise ConfigError(f"there is no rule {rule!r}; expected mined, first_piece or exact")
    if any(category(char) == "Cs" for char in text):
        raise ConfigError("TEXT: expected UTF-8, found other bytes")

    from peertune.align.vocabulary import vocabulary_map
    from peertune.terminal import print_rows

    (source, ids), (target, others) = (_cut(place, text) for place in (a, b))
    table = vocabulary_map(source, target, rule)
    names = _names(a, b)
    print_rows("Vocabularies", ["Tokens", "Count", "%"], _coverage(names, (source, target), table, rule))
    shared, stretches = _stretches((source, ids), (target, others), text)
    title = f"{shared} of {len(others)} positions of {names[1]} correspond to one of {names[0]}"
    print_rows(title, ["Byte", "", f"{BOUNDARY} = a boundary of both"], _lines(names, stretches))
    pairs = [_pair(source, target, id, int(table[id]), rule) for id in dict.fromkeys(ids)]
    if changed := [pair for pair in pairs if pair[2] != SAME]:
        print_rows(f"Of its {len(pairs)} tokens those with other bytes", [*names, "How"], changed)


def _cut(place: str, text: str) -> "Side":
    """A tokenizer's vocabulary, and the text in its tokens, with an end if it has one. Raises `ConfigError`."""
    from peertune.align import Vocabulary

    tokenizer = _tokenizer(place)
    vocabulary = Vocabulary.of(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return vocabulary, [*ids, vocabulary.roles["eos"]] if "eos" in vocabulary.roles else ids


def _tokenizer(place: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    from peertune.lm.quiet import quiet
    from peertune.lm.source import description

    folder = Path(place).expanduser()
    if not (folder / "tokenizer.json").is_file():
        folder = description(place)
    try:
        with quiet():
            return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ConfigError(
            f"{place}: expected a tokenizer (tokenizer.json) that can be read, found none in {folder} "
            f"({type(error).__name__}); save it there with save_pretrained of transformers"
        ) from error


def _names(a: str, b: str) -> tuple[str, str]:
    """Short names for columns, unless they are the same."""
    short = Path(a).name, Path(b).name
    return short if short[0] != short[1] else (f"A: {short[0]}", f"B: {short[1]}")


def _coverage(
    names: tuple[str, str], vocabularies: tuple["Vocabulary", "Vocabulary"], table: "np.ndarray", rule: str
) -> list[list[str]]:
    source, target = vocabularies
    kinds = [_how(source, target, id, place, rule) for id, place in enumerate(table.tolist())]
    rows = [(f"in {names[1]}: {kind}", kinds.count(kind)) for kind in (SAME, "same role", HOW[rule], "none") if kind]
    shares = [[what, str(count), f"{100 * count / len(kinds):.1f}"] for what, count in rows]
    return [[names[0], str(len(kinds)), "100.0"], *shares, [names[1], str(len(target.tokens)), ""]]


def _how(source: "Vocabulary", target: "Vocabulary", id: int, place: int, rule: str) -> str:
    if place < 0:
        return "none"
    if not source.tokens[id]:
        return "same role"
    return SAME if source.tokens[id] == target.tokens[place] else HOW[rule]


def _stretches(source: "Side", target: "Side", text: str) -> tuple[int, list["Stretch"]]:
    """How many boundaries are shared; and what both have from each to the next, with the byte where it begins.

    What comes before the first, such as a space that only one tokenizer puts in front, begins at no byte.
    """
    from peertune.align.positions import Positions, match

    sides = [Positions.of(vocabulary, [(ids, text)]) for vocabulary, ids in (source, target)]
    first, second = (rows.tolist() for rows in match(*sides))
    edges = zip([0, *first], [*first, None], [0, *second], [*second, None], strict=True)
    parts = [(_words(source, a, b), _words(target, c, d)) for a, b, c, d in edges]
    starts = ["", *(str(max(0, start)) for start in sides[0].starts[first])]
    return len(first), [(start, *part) for start, part in zip(starts, parts, strict=True) if any(part)]


def _lines(names: tuple[str, str], stretches: list["Stretch"]) -> list[list[str]]:
    """Both tokenizations one above the other, and the byte where each line begins; `BOUNDARY` before what is shared."""
    lines: list[list[str]] = []
    room = 0
    for byte, *parts in stretches:
        width = max(map(_cells, parts))
        if width >= room:
            lines.append([byte, "\n".join(names), "\n"])
            room = ROOM - max(map(len, names))
        mark = BOUNDARY if byte else " "
        above = zip(lines[-1][2].split("\n"), parts, strict=True)
        lines[-1][2] = "\n".join(f"{line}{mark}{part}{' ' * (width - _cells(part))}" for line, part in above)
        room -= width + 1
    return lines


def _words(side: "Side", start: int, end: int | None) -> str:
    vocabulary, ids = side
    return " ".join(_word(vocabulary, id) for id in ids[start:end])


def _cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def _pair(source: "Vocabulary", target: "Vocabulary", id: int, place: int, rule: str) -> list[str]:
    other = _word(target, place) if place >= 0 else ""
    return [_word(source, id), other, _how(source, target, id, place, rule)]


def _word(vocabulary: "Vocabulary", id: int) -> str:
    """A token as one printable word."""
    if not vocabulary.tokens[id]:
        return f"<{next((role for role, other in vocabulary.roles.items() if other == id), 'special')}>"
    text = vocabulary.tokens[id].decode(errors="backslashreplace").replace(" ", "␣")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
