"""The ledger: all or nothing, the same head for the same events, no unnoticed change, no lost commit."""

import json
import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peertune.errors import ConfigError, StorageError
from peertune.ledger import Event, Ledger, total_bytes

EMPTY_HEAD = "0" * 64


def fill(ledger: Ledger, rounds: int = 3) -> None:
    """A small run: four events and a fact in each round."""
    for t in range(1, rounds + 1):
        body = {"source": "a0", "destination": "a1", "payload": "texts", "bytes": 100 * t}
        ledger.append("knexa", t, "round", "transfer", body)
        ledger.append("knexa", t, "round", "metric", {"agent": "a0", "name": "train_loss", "value": 1 / t})
        ledger.append("knexa", t, "round", "failure", {"agent": "a1", "verb": "fit", "cause": "é«x»"})
        ledger.append("knexa", t, "checkpoint", "checkpoint", {"agents": {"a0": "00"}, "method": "11"})
        ledger.fact("call", {"seconds": 0.5})
        ledger.commit()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger.create(path)
    fill(ledger)
    ledger.close()
    return path


def contents(path: Path) -> tuple[str, list[Event]]:
    """Head and events of a ledger that must be whole."""
    ledger = Ledger.read(path)
    try:
        ledger.verify()
        return ledger.head, list(ledger.events())
    finally:
        ledger.close()


def change(path: Path, *statements: str) -> None:
    """Change the file behind the ledger's back."""
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


# Writing and reading


def test_new_ledger_is_empty(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    assert (ledger.seq, ledger.head, list(ledger.events()), list(ledger.facts())) == (0, EMPTY_HEAD, [], [])
    ledger.verify()
    ledger.close()


def test_nothing_is_visible_before_commit_and_everything_after(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    ledger.append("local", 1, "round", "metric", {"value": 1})
    ledger.fact("call", {"seconds": 2.0})
    assert list(ledger.events()) == [] and list(ledger.facts()) == [] and ledger.head == EMPTY_HEAD
    ledger.commit()
    assert list(ledger.events()) == [Event(1, "local", 1, "round", "metric", {"value": 1})]
    assert [(fact.seq, fact.kind, fact.body) for fact in ledger.facts()] == [(1, "call", {"seconds": 2.0})]
    assert ledger.seq == 1
    ledger.commit()
    assert ledger.seq == 1
    ledger.close()


def test_discarded_events_never_come_back(path: Path) -> None:
    before = contents(path)
    ledger = Ledger.open(path)
    ledger.append("local", 1, "round", "metric", {})
    ledger.fact("call", {})
    ledger.discard()
    ledger.commit()
    ledger.close()
    assert contents(path) == before


def test_events_and_facts_by_kind_and_arm(path: Path) -> None:
    ledger = Ledger.open(path)
    ledger.append("local", 1, "round", "transfer", {"bytes": 5})
    ledger.commit()
    assert [event.seq for event in ledger.events("transfer")] == [1, 5, 9, 13]
    assert [event.seq for event in ledger.events("transfer", "knexa")] == [1, 5, 9]
    assert [event.seq for event in ledger.events(arm="local")] == [13]
    assert list(ledger.events("done")) == []
    assert len(list(ledger.facts("call"))) == 3 and list(ledger.facts("session")) == []
    assert total_bytes(ledger.events()) == 605
    ledger.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_refused_at_once(tmp_path: Path, value: float) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    with pytest.raises(ValueError):
        ledger.append("local", 1, "round", "metric", {"value": value})
    with pytest.raises(ValueError):
        ledger.fact("call", {"seconds": [value]})
    ledger.commit()
    assert ledger.seq == 0
    ledger.close()


def test_text_that_utf8_cannot_hold_is_kept(tmp_path: Path) -> None:
    """A file name that is not UTF-8 reaches Python with lone surrogates, and can stand in a failure's cause."""
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    ledger.append("local", 1, "round", "failure", {"cause": "data/\udce9.jsonl"})
    ledger.commit()
    assert next(ledger.events()).body == {"cause": "data/\udce9.jsonl"}
    ledger.verify()
    ledger.export(tmp_path / "ledger.jsonl")
    ledger.close()


def test_export(path: Path, tmp_path: Path) -> None:
    ledger = Ledger.read(path)
    ledger.export(tmp_path / "ledger.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 15
    assert rows[2] == {
        "seq": 3,
        "arm": "knexa",
        "round": 1,
        "phase": "round",
        "kind": "failure",
        "body": {"agent": "a1", "verb": "fit", "cause": "é«x»"},
    }
    assert rows[12].keys() == {"seq", "time", "kind", "body"}
    with pytest.raises(StorageError, match="missing"):
        ledger.export(tmp_path / "missing" / "ledger.jsonl")
    ledger.close()


# The chain


def test_head_depends_on_events_only(tmp_path: Path) -> None:
    """Neither facts, nor time, nor how events were grouped into commits, nor the order of keys in a body."""
    first, second = Ledger.create(tmp_path / "one.sqlite"), Ledger.create(tmp_path / "two.sqlite")
    fill(first)
    for event in list(first.events()):
        body = dict(reversed(event.body.items()))
        second.append(event.arm, event.round, event.phase, event.kind, body)  # pyright: ignore[reportArgumentType]
        second.fact("session", {"pid": event.seq})
    second.commit()
    assert first.head == second.head != EMPTY_HEAD
    first.close()
    second.close()


def test_head_is_a_fixed_function(tmp_path: Path) -> None:
    """Old runs stay verifiable: this value may only change together with the ledger's version."""
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    ledger.append("local", 1, "round", "metric", {"value": 0.5, "name": "é"})
    ledger.commit()
    assert ledger.head == "3f5da6ea062cf67758feecd6ff03f92adb0068c4dea37ed5be07879783cba9c9"
    ledger.close()


def test_reopened_ledger_continues_the_chain(tmp_path: Path) -> None:
    whole = Ledger.create(tmp_path / "whole.sqlite")
    fill(whole, rounds=4)
    part = Ledger.create(tmp_path / "part.sqlite")
    fill(part, rounds=4)
    part.rewind(8)
    assert (part.seq, len(list(part.events()))) == (8, 8)
    part.close()
    part = Ledger.open(tmp_path / "part.sqlite")
    for event in list(whole.events())[8:]:
        part.append(event.arm, event.round, event.phase, event.kind, event.body)  # pyright: ignore[reportArgumentType]
    part.commit()
    assert (part.seq, part.head) == (whole.seq, whole.head)
    part.verify()
    part.rewind(0)
    assert (part.seq, part.head) == (0, EMPTY_HEAD)
    part.close()
    whole.close()


COLUMNS = {
    "arm": ["'local'", "''"],
    "round": ["7", "-1"],
    "phase": ["'init'"],
    "kind": ["'pair'"],
    "body": ["'{}'", "'not JSON'", "body || ' '", "replace(body, '1', '2')", "CAST(x'ff' AS TEXT)"],
    "hash": [f"'{EMPTY_HEAD}'", "upper(hash) || 'x'"],
    "seq": ["seq + 100", "-seq"],
}
TAMPERING = st.one_of(
    st.tuples(st.integers(1, 12), st.sampled_from([(c, v) for c, values in COLUMNS.items() for v in values])).map(
        lambda pick: [f"UPDATE events SET {pick[1][0]} = {pick[1][1]} WHERE seq = {pick[0]}"]
    ),
    st.integers(1, 11).map(lambda seq: [f"DELETE FROM events WHERE seq = {seq}"]),
    st.integers(1, 11).map(
        lambda seq: [f"DELETE FROM events WHERE seq = {seq}", f"UPDATE events SET seq = seq - 1 WHERE seq > {seq}"]
    ),
    st.tuples(st.integers(1, 12), st.integers(1, 12))
    .filter(lambda pair: pair[0] < pair[1])
    .map(
        lambda pair: [
            f"UPDATE events SET seq = -1 WHERE seq = {pair[0]}",
            f"UPDATE events SET seq = {pair[0]} WHERE seq = {pair[1]}",
            f"UPDATE events SET seq = {pair[1]} WHERE seq = -1",
        ]
    ),
    st.just([f"INSERT INTO events VALUES (13, 'knexa', 3, 'round', 'done', '{{}}', '{'a' * 64}')"]),
    st.just(["INSERT INTO events SELECT 13, arm, round, phase, kind, body, hash FROM events WHERE seq = 12"]),
    st.just(["INSERT INTO events SELECT 0, arm, round, phase, kind, body, hash FROM events WHERE seq = 1"]),
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TAMPERING)
def test_any_change_is_found(path: Path, statements: list[str]) -> None:
    original = contents(path)
    copy = path.with_name("copy.sqlite")
    shutil.copy(path, copy)
    change(copy, *statements)
    if sqlite_rows(copy) == sqlite_rows(path):  # such as a replacement that replaced nothing
        assert contents(copy) == original
        return
    with pytest.raises(ConfigError, match="copy.sqlite"):
        contents(copy)


def sqlite_rows(path: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT seq, arm, round, phase, kind, CAST(body AS BLOB), hash FROM events").fetchall()
    connection.close()
    return rows


def test_a_cut_tail_shows_in_the_head(path: Path) -> None:
    """A chain cannot know that it was longer; whoever noted the head can."""
    head, _ = contents(path)
    change(path, "DELETE FROM events WHERE seq = 12")
    assert contents(path)[0] != head


def test_facts_are_not_part_of_the_chain(path: Path) -> None:
    before = contents(path)
    change(path, "DELETE FROM facts")
    assert contents(path) == before


def test_events_that_are_no_json_are_an_error_of_ours(path: Path) -> None:
    """`peertune ls` and `show` read without verifying."""
    change(path, "UPDATE events SET body = '{' WHERE seq = 2", "UPDATE facts SET body = '[' WHERE id = 1")
    ledger = Ledger.read(path)
    with pytest.raises(ConfigError, match="event 2"):
        list(ledger.events())
    with pytest.raises(ConfigError, match="fact"):
        list(ledger.facts())
    ledger.close()


# Others at the same file


def test_readers_see_the_last_commit_while_another_writes(path: Path) -> None:
    before = contents(path)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE events SET body = '{}'")
    assert contents(path) == before
    writer.execute("ROLLBACK")
    writer.close()


def test_a_slow_reader_does_not_stop_the_run(path: Path) -> None:
    reader, writer = Ledger.read(path), Ledger.open(path)
    events = reader.events()
    next(events)
    writer.append("knexa", 4, "round", "metric", {})
    writer.commit()
    assert len(list(events)) == 11
    assert len(list(reader.events())) == 13
    reader.close()
    writer.close()


def test_a_reader_cannot_write(path: Path) -> None:
    before = contents(path)
    reader = Ledger.read(path)
    reader.append("knexa", 4, "round", "metric", {})
    with pytest.raises(StorageError, match="ledger.sqlite"):
        reader.commit()
    reader.close()
    assert contents(path) == before


@pytest.mark.parametrize("reopen", [Ledger.open, Ledger.read])
def test_after_a_kill_in_the_middle_of_a_commit(path: Path, tmp_path: Path, reopen: Callable[[Path], Ledger]) -> None:
    """The state on disk at such a moment: pages of the next commit in the file, the old ones in the journal."""
    before = contents(path)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = TRUNCATE")
    writer.execute("PRAGMA cache_size = 2")
    writer.execute("BEGIN IMMEDIATE")
    for _ in range(200):
        writer.execute(
            "INSERT INTO events SELECT max(seq) + 1, 'knexa', 9, 'round', 'metric', hex(zeroblob(500)), '' FROM events"
        )
    writer.execute("UPDATE events SET body = '{}'")
    dead = tmp_path / "dead.sqlite"
    shutil.copy(path, dead)
    shutil.copy(f"{path}-journal", f"{dead}-journal")
    writer.execute("ROLLBACK")
    writer.close()
    assert dead.stat().st_size > path.stat().st_size  # else nothing had been written
    ledger = reopen(dead)
    ledger.verify()
    assert (ledger.head, list(ledger.events())) == before
    ledger.close()


# The disk


def test_full_database_keeps_the_last_commit(path: Path) -> None:
    before = contents(path)
    ledger = Ledger.open(path)
    pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    for index in range(100):
        ledger.append("knexa", 4, "round", "metric", {"index": index, "text": "x" * 500})
    with pytest.raises(StorageError, match=r"ledger\.sqlite: .*full.*; free space"):
        ledger.commit()
    assert (ledger.head, list(ledger.events())) == before
    ledger._db.execute("PRAGMA max_page_count = 100000")
    ledger.commit()  # there is space again: nothing appended was lost
    ledger.verify()
    assert ledger.seq == 112
    ledger.close()


def test_file_size_limit_keeps_the_last_commit(path: Path) -> None:
    before = contents(path)
    code = f"""
        import resource
        from pathlib import Path
        from peertune.errors import StorageError
        from peertune.ledger import Ledger
        ledger = Ledger.open(Path({str(path)!r}))
        resource.setrlimit(resource.RLIMIT_FSIZE, ({path.stat().st_size + 5000},) * 2)
        for index in range(100):
            ledger.append("knexa", 4, "round", "metric", {{"index": index, "text": "x" * 500}})
        try:
            ledger.commit()
        except StorageError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert str(path) in done.stdout and "free space" in done.stdout
    assert contents(path) == before


@pytest.mark.parametrize("make", [Ledger.create, Ledger.open, Ledger.read])
def test_paths_that_cannot_be(tmp_path: Path, make: Callable[[Path], Ledger]) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "ledger.sqlite", tmp_path / "missing" / "ledger.sqlite", tmp_path):
        with pytest.raises(ConfigError) as error:
            make(path)
        assert str(path) in str(error.value)


def test_create_does_not_touch_an_existing_ledger(path: Path) -> None:
    before = contents(path)
    with pytest.raises(StorageError, match="already exists"):
        Ledger.create(path)
    assert contents(path) == before


def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "a b?mode=memory#c%20é"
    folder.mkdir()
    ledger = Ledger.create(folder / "ledger.sqlite")
    fill(ledger, 1)
    ledger.close()
    assert len(contents(folder / "ledger.sqlite")[1]) == 4


def test_another_version_is_refused(path: Path) -> None:
    change(path, "PRAGMA user_version = 2")
    with pytest.raises(ConfigError, match="version 2, this peertune reads 1; use the version that wrote it"):
        Ledger.open(path)


@pytest.mark.parametrize("content", [b"", b"not a database, but some text of a hundred bytes" * 40, bytes(4096)])
def test_files_that_are_no_ledger(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    for make in (Ledger.open, Ledger.read):
        with pytest.raises(ConfigError, match="ledger.sqlite"):
            make(path)
    assert path.read_bytes() == content


def survives(path: Path, raw: bytes, original: list[Event]) -> bool:
    """Is a damaged ledger refused with a `ConfigError`, or does it still give exactly the original events?"""
    path.write_bytes(raw)
    try:
        ledger = Ledger.read(path)
    except ConfigError as error:
        return str(path) in str(error)
    try:
        ledger.verify()
        list(ledger.facts())
        by_kind = sorted((event for kind in KINDS for event in ledger.events(kind)), key=lambda event: event.seq)
        return list(ledger.events()) == by_kind == original
    except ConfigError as error:
        return str(path) in str(error)
    finally:
        ledger.close()


KINDS = ("transfer", "metric", "failure", "checkpoint")


def test_flipped_bits_and_cut_files(path: Path) -> None:
    _, original = contents(path)
    whole = path.read_bytes()
    assert survives(path, whole, original)
    dice = random.Random("peertune|ledger")
    used = [place for place, byte in enumerate(whole) if byte]
    for place in used * 4:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << dice.randrange(8)
        assert survives(path, bytes(damaged), original), place
    for size in [*range(0, len(whole), 1500), len(whole) - 1]:
        assert survives(path, whole[:size], original), size


def test_any_text_can_be_written(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    cause = "a lone surrogate \ud800, a null \x00, an ä and a 𝄞"
    ledger.append("knexa", 1, "round", "failure", {"agent": "a0", "verb": "fit", "cause": cause})
    ledger.commit()
    ledger.verify()
    assert [event.body["cause"] for event in ledger.events("failure")] == [cause]
    ledger.close()
