"""Write the file of a task of type `answers`: questions in twelve categories, one right answer each, as JSON Lines.

`lists`: questions about short lists of numbers, computed, in the manner of Super-NaturalInstructions' tasks about lists
(Wang et al. 2022, arXiv:2204.07705; task079_conala_concat_strings, task095_conala_max_absolute_value,
task096_conala_list_index_subtraction, ...; those with large numbers are beyond models of 0.4M parameters).

`intents`: 24 of the 77 intents of BANKING77 (Casanueva et al. 2020, arXiv:2003.04807; CC BY 4.0), two in each category,
from a folder with banking77_train.csv and banking77_test.csv (train.csv and test.csv of `banking_data` in
github.com/PolyAI-LDN/task-specific-datasets; columns `text` and `category`).

`questions`: a published file of questions: CommonsenseQA (Talmor et al. 2019, arXiv:1811.00937; JSON Lines), one of
ARC-Easy, ARC-Challenge and boolq of github.com/AGI-Edgerunners/LLM-Adapters (Hu et al. 2023, arXiv:2304.01933), or a
task of Super-NaturalInstructions. Categories are the answers, where there are few; rare ones are left out.

Prompts are docstrings and answers are the lines that return them: the form that the bundled models know.
"""

import argparse
import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peertune.errors import ConfigError

Numbers = list[int]
Row = tuple[str, str, str]  # category, question, answer

EACH = 400  # questions of a category about lists
FEW = 8  # answers that are categories, unless one is
RARE = 0.02  # of all
LISTS: dict[str, tuple[str, Callable[[Numbers], object]]] = {  # category -> (question, answer)
    "first": ("first number of {}", lambda numbers: numbers[0]),
    "last": ("last number of {}", lambda numbers: numbers[-1]),
    "count": ("how many numbers in {}", len),
    "largest": ("largest number in {}", max),
    "rest": ("all but the first of {}", lambda numbers: numbers[1:]),
    "front": ("all but the last of {}", lambda numbers: numbers[:-1]),
    "alternate": ("every second of {}", lambda numbers: numbers[::2]),
    "negate": ("negate all of {}", lambda numbers: [-number for number in numbers]),
    "absolute": ("without signs: {}", lambda numbers: [abs(number) for number in numbers]),
    "tenfold": ("ten times all of {}", lambda numbers: [10 * number for number in numbers]),
    "prepend": ("put 0 in front of {}", lambda numbers: [0, *numbers]),
    "concat": ("written together: {}", lambda numbers: "".join(map(str, numbers))),
}
INTENTS: dict[str, tuple[str, str]] = {
    "account": ("age_limit", "terminate_account"),
    "atm": ("atm_support", "card_swallowed"),
    "brands": ("apple_pay_or_google_pay", "visa_or_mastercard"),
    "cards": ("activate_my_card", "card_about_to_expire"),
    "checks": ("verify_source_of_funds", "why_verify_identity"),
    "codes": ("change_pin", "passcode_forgotten"),
    "exchange": ("exchange_rate", "exchange_via_app"),
    "profile": ("country_support", "edit_personal_details"),
    "security": ("compromised_card", "lost_or_stolen_phone"),
    "top_up": ("automatic_top_up", "top_up_by_cash_or_cheque"),
    "transfer": ("cancel_transfer", "transfer_timing"),
    "virtual": ("disposable_card_limits", "getting_virtual_card"),
}


def list_rows(seed: int) -> Iterator[Row]:
    """`EACH` different questions of every category: lists of 3 to 6 numbers below 10, with signs where it matters."""
    for category, (question, answer) in LISTS.items():
        draw = random.Random(f"{seed}|{category}")
        low = -9 if category == "absolute" else 0
        seen: set[tuple[int, ...]] = set()
        while len(seen) < EACH:
            numbers = [draw.randint(low, 9) for _ in range(draw.randint(3, 6))]
            if tuple(numbers) not in seen:
                seen.add(tuple(numbers))
                yield category, question.format(numbers), str(answer(numbers))


def intent_rows(folder: Path) -> Iterator[Row]:
    """The messages of the chosen intents, in the order of the files. Raises `ConfigError` if one is not there."""
    categories = {intent: category for category, intents in INTENTS.items() for intent in intents}
    for path in (folder / "banking77_train.csv", folder / "banking77_test.csv"):
        if not path.is_file():
            raise ConfigError(f"{path}: expected a file of BANKING77, found none; see {Path(__file__).name}")
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if missing := {"text", "category"}.difference(reader.fieldnames or ()):
                raise ConfigError(f"{path}: expected the columns text and category, found no {sorted(missing)[0]}")
            for row in reader:
                if row["category"] in categories:
                    yield categories[row["category"]], " ".join(row["text"].split()), row["category"]


def question_rows(path: Path, longest: int) -> Iterator[Row]:
    """The questions of a published file that have no more than `longest` characters.

    Raises `ConfigError` if the file has none of the three forms.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
        pairs = [(" ".join(question.split()), answer) for question, answer in map(_question, _items(found))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: expected CommonsenseQA, a file of LLM-Adapters or a task of Super-NaturalInstructions; "
            f"it is none ({type(error).__name__})"
        ) from None
    kept = [(question, answer) for question, answer in pairs if len(question) <= longest and '"' not in question]
    counts = Counter(answer for _, answer in kept)
    few = len(counts) <= FEW
    for question, answer in kept:
        if not few or counts[answer] >= RARE * len(kept):
            yield answer if few else "all", question, answer


def _items(found: Any) -> list[dict[str, Any]]:
    return found["Instances"] if isinstance(found, dict) else found


def _question(item: dict[str, Any]) -> tuple[str, str]:
    """One question and its answer."""
    if "answerKey" in item:  # CommonsenseQA
        choices = " ".join(f"{choice['label']}: {choice['text']}" for choice in item["question"]["choices"])
        return f"{item['question']['stem']} {choices}", item["answerKey"]
    if "instruction" in item:  # LLM-Adapters
        _, _, asked = item["instruction"].partition("question: ")
        return asked.partition("Answer format")[0], item["answer"]
    return item["input"], item["output"][0]


def record(row: Row) -> str:
    category, question, answer = row
    fields = {"prompt": f'"""{question}"""', "completion": f"\n    return {answer}", "category": category}
    return json.dumps(fields)


def _rows(arguments: argparse.Namespace) -> Iterator[Row]:
    if arguments.kind == "lists":
        return list_rows(arguments.seed)
    if arguments.kind == "intents":
        return intent_rows(arguments.folder)
    return question_rows(arguments.file, arguments.longest)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    lists = kinds.add_parser("lists", help="questions about lists; needs no other data")
    lists.add_argument("--seed", type=int, default=0)
    intents = kinds.add_parser("intents", help="messages to a bank and what they are about, from BANKING77")
    intents.add_argument("folder", type=Path, help="holds banking77_train.csv and banking77_test.csv")
    questions = kinds.add_parser("questions", help="a published file of CommonsenseQA, ARC, BoolQ or SuperNI")
    questions.add_argument("file", type=Path)
    questions.add_argument("--longest", type=int, default=240, help="of a question, in characters; 240 by default")
    for each in (lists, intents, questions):
        each.add_argument("out", type=Path, help="the .jsonl file to write")
    arguments = parser.parse_args()
    try:
        rows = list(_rows(arguments))
    except ConfigError as error:
        parser.error(str(error))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("".join(record(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{arguments.out}: {len(rows)} questions in {len({row[0] for row in rows})} categories")


if __name__ == "__main__":
    main()
