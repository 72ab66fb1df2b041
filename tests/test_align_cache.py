"""Vocabulary maps on disk: made once, made again when damaged, never of other vocabularies or another rule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peertune.align import Vocabulary, cache
from peertune.align.cache import cached_map
from peertune.align.vocabulary import Rule, Tie, vocabulary_map
from peertune.errors import StorageError

SOURCE = Vocabulary((b"", b"cats", b"total", b"x"), {"eos": 0})
TARGET = Vocabulary((b"cat", b"bats", b"total", b""), {"eos": 3})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The rules of the maps that are worked out."""
    calls: list[tuple[Any, ...]] = []

    def counted(source: Vocabulary, target: Vocabulary, rule: Rule, tie: Tie) -> np.ndarray:
        calls.append((rule, tie))
        return vocabulary_map(source, target, rule, tie)

    monkeypatch.setattr(cache, "vocabulary_map", counted)
    return calls


def test_a_map_is_made_once(tmp_path: Path, made: list[tuple[Any, ...]]) -> None:
    first = cached_map(SOURCE, TARGET, "mined", "lex", tmp_path / "maps" / "deep")
    second = cached_map(SOURCE, TARGET, "mined", "lex", tmp_path / "maps" / "deep")
    assert first.tolist() == second.tolist() == [3, 1, 2, 0]
    assert second.dtype == np.int32 and second.flags.writeable
    assert made == [("mined", "lex")]
    assert [path.suffix for path in (tmp_path / "maps" / "deep").iterdir()] == [".map"]


def test_another_rule_tie_target_or_version_is_another_map(
    tmp_path: Path, made: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_map(SOURCE, TARGET, "mined", "lex", tmp_path)
    assert cached_map(SOURCE, TARGET, "mined", "id", tmp_path).tolist() == [3, 0, 2, 0]
    assert cached_map(SOURCE, TARGET, "exact", "lex", tmp_path).tolist() == [3, -1, 2, -1]
    spared = Vocabulary(TARGET.tokens, TARGET.roles, frozenset({1}))
    assert cached_map(SOURCE, spared, "mined", "lex", tmp_path).tolist() == [3, 0, 2, 0]
    assert cached_map(TARGET, SOURCE, "mined", "lex", tmp_path).tolist() == [1, 1, 2, 0]
    monkeypatch.setattr(cache, "_VERSION", 2)
    cached_map(SOURCE, TARGET, "mined", "lex", tmp_path)
    assert len(made) == len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("damage", ["empty", "short", "long", "flipped"])
def test_a_damaged_file_is_made_again(tmp_path: Path, made: list[tuple[Any, ...]], damage: str) -> None:
    expected = cached_map(SOURCE, TARGET, "mined", "lex", tmp_path).tolist()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    wrong = {"empty": b"", "short": whole[:-4], "long": whole + whole, "flipped": whole[:-4] + b"\1\0\0\0"}
    assert wrong[damage] != whole
    path.write_bytes(wrong[damage])
    assert cached_map(SOURCE, TARGET, "mined", "lex", tmp_path).tolist() == expected
    assert path.read_bytes() == whole and len(made) == 2


def test_a_disk_that_refuses_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    with pytest.raises(StorageError, match=r"vocabulary map .* cannot be read or written \(No space left on device\)"):
        cached_map(SOURCE, TARGET, "mined", "lex", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("")
    with pytest.raises(StorageError):
        cached_map(SOURCE, TARGET, "mined", "lex", tmp_path / "maps")
