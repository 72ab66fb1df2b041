"""`peertune align`: what it shows of two tokenizers, and what it refuses."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_align_tokens import sentencepiece_like
from tiny import make_word_tokenizer

from peertune import aligning, cli, terminal

Rows = list[list[str]]
Show = Callable[..., dict[str, Rows]]
ONE, OTHER = "bundled/gpt2", "bundled/bloom"
TEXT = "return words of ten"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command with these arguments: exit code, output, error output."""

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["peertune", "align", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code if isinstance(end.value.code, int) else 0, out, err

    return call


@pytest.fixture
def show(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> Show:
    """The tables that it prints for these arguments, by title."""

    def call(*args: object) -> dict[str, Rows]:
        tables: dict[str, Rows] = {}
        monkeypatch.setattr(terminal, "print_rows", lambda title, columns, rows: tables.update({title: rows}))
        assert run(*args) == (0, "", "")
        return tables

    return call


def lines(tables: dict[str, Rows]) -> list[list[str]]:
    """The text as both have it, line by line."""
    found = next(rows for title, rows in tables.items() if "correspond" in title)
    return [row[2].split("\n") for row in found]


# Vocabularies


def test_it_counts_what_becomes_of_a_vocabulary(show: Show) -> None:
    first, *shares, last = show(ONE, OTHER)["Vocabularies"]
    assert (first, last) == (["gpt2", "896", "100.0"], ["bloom", "640", ""])
    kinds = {row[0].removeprefix("in bloom: "): row[1:] for row in shares}
    assert list(kinds) == ["same bytes", "same role", "nearest", "none"]
    assert sum(int(count) for count, _ in kinds.values()) == 896
    assert all(float(share) == round(100 * int(count) / 896, 1) for count, share in kinds.values())
    assert kinds["same role"] == ["2", "0.2"]  # the end, which also begins, and padding


def test_a_rule_says_what_stands_for_a_token_that_the_other_lacks(show: Show) -> None:
    first, exact = (show(ONE, OTHER, TEXT, "--rule", rule) for rule in ("first_piece", "exact"))
    end = ["<eos>", "<eos>", "same role"]
    assert first["Of its 7 tokens those with other bytes"] == [["␣words", "␣word", "first piece"], end]
    assert exact["Of its 7 tokens those with other bytes"] == [["␣words", "", "none"], end]
    counts = [dict(row[:2] for row in tables["Vocabularies"]) for tables in (first, exact)]
    assert counts[0]["in bloom: first piece"] == counts[1]["in bloom: none"] != "0"
    assert len(counts[1]) == len(counts[0]) - 1


# A text


def test_a_text_stands_in_both_tokenizations_between_the_boundaries_of_both(show: Show) -> None:
    assert show(ONE, OTHER, TEXT)["7 of 8 positions of bloom correspond to one of gpt2"] == [
        ["0", "gpt2\nbloom", "│r│eturn│␣words │␣of│␣te│n│<eos>\n│r│eturn│␣word s│␣of│␣te│n│<eos>"]
    ]


def test_a_tokenizer_has_everything_in_common_with_itself(show: Show) -> None:
    tables = show(ONE, ONE, "return words")
    assert tables["4 of 4 positions of B: gpt2 correspond to one of A: gpt2"] == [
        ["0", "A: gpt2\nB: gpt2", "│r│eturn│␣words│<eos>\n│r│eturn│␣words│<eos>"]
    ]
    assert tables["Of its 4 tokens those with other bytes"] == [["<eos>", "<eos>", "same role"]]


def test_long_texts_take_several_lines_that_fit_in_a_terminal(show: Show) -> None:
    found = lines(show(ONE, OTHER, "the sum of all numbers, " * 12 + "東京 🙂"))
    assert len(found) > 3
    for pair in found:
        marks = [[aligning._cells(line[:n]) for n, char in enumerate(line) if char == "│"] for line in pair]
        assert marks[0] == marks[1] and aligning._cells(pair[0]) == aligning._cells(pair[1]) <= aligning.ROOM


def test_the_tables_are_printed_in_full(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run(ONE, OTHER, TEXT)
    assert (code, err) == (0, "")
    assert "│ 0    │ gpt2  │ │r│eturn│␣words │␣of│␣te│n│<eos> │\n" in out
    assert "│      │ bloom │ │r│eturn│␣word s│␣of│␣te│n│<eos> │\n" in out


def test_a_letter_of_two_columns_counts_as_two() -> None:
    assert [aligning._cells(text) for text in ("ab", "東", "é", "e\u0301", "🙂x", "")] == [2, 2, 1, 1, 3, 0]


def test_a_space_that_one_tokenizer_put_in_front_is_no_boundary_of_both(show: Show, tmp_path: Path) -> None:
    sentencepiece_like().save_pretrained(tmp_path / "pieces")
    ((one, other),) = lines(show(tmp_path / "pieces", ONE, "the\x07"))
    assert one == " ␣│t│h e│\\x07│<eos>"
    assert other == "  │t│he │\\x07│<eos>"


def test_a_space_that_both_put_in_front_is_at_the_beginning(show: Show, tmp_path: Path) -> None:
    sentencepiece_like().save_pretrained(tmp_path / "pieces")
    ((byte, _, text),) = show(*[tmp_path / "pieces"] * 2, "the")[
        "5 of 5 positions of B: pieces correspond to one of A: pieces"
    ]
    assert byte == "0" and text.splitlines() == ["│␣│t│h│e│<eos>"] * 2


def test_no_text_is_a_text(show: Show) -> None:
    assert show(ONE, OTHER, "")["1 of 1 positions of bloom correspond to one of gpt2"] == [
        ["0", "gpt2\nbloom", "│<eos>\n│<eos>"]
    ]


# What it refuses, and does without


def test_bad_input_is_one_line(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    (tmp_path / "empty").mkdir()
    make_word_tokenizer().save_pretrained(tmp_path / "words")
    for args, message in {
        (ONE, "bundled/blom"): "no bundled model 'bundled/blom'; nearest: bundled/bloom",
        (ONE, "nowhere"): "model 'nowhere': expected a folder",
        (tmp_path / "empty", ONE): "expected config.json",
        (tmp_path / "broken", ONE): "expected a tokenizer (tokenizer.json) that can be read",
        (ONE, tmp_path / "words"): "expected a decoder that keeps every byte",
        (ONE, OTHER, "--rule", "near"): "there is no rule 'near'; expected mined, first_piece or exact",
        (ONE, OTHER, "\udce9"): "TEXT: expected UTF-8",
    }.items():
        code, out, err = run(*args)
        assert (code, out) == (2, "") and err.count("\n") == 1 and message in err, err


def test_it_needs_no_torch() -> None:
    """In a process of its own, which takes a second or two to import transformers."""
    code = (
        "import sys; from peertune.aligning import align; align('bundled/gpt2', 'bundled/bloom'); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
