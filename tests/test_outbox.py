"""The outbox: everything that left, exactly, and what its receivers signed."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parties import RUN, identities, seal_of, seals

from peertune import cli, sent
from peertune.errors import ConfigError, DamagedError, SealError, StorageError
from peertune.guard import OUTBOX, Departure, Identity, Outbox, Receipt, Seal, read_receipt
from peertune.guard.receipts import sign_receipt
from peertune.payloads import Texts, Weights, encode

NAMES = ("clinic", "lab")
TEXTS = [encode(Texts([text])) for text in ("def add(a, b): return a + b", "Das Maß ist voll")]
WEIGHTS = encode(Weights({"layer": np.zeros((2, 3), np.float32)}, 4))


@pytest.fixture
def party(tmp_path: Path) -> dict[str, Seal]:
    return seals(tmp_path, NAMES)


@pytest.fixture
def box(tmp_path: Path, party: dict[str, Seal]) -> Outbox:
    return Outbox(tmp_path / "clinic" / "outbox")


def exchange(party: dict[str, Seal], raws: list[bytes], round: int = 1) -> None:
    for call, raw in enumerate(raws):
        assert party["lab"].open("clinic", round, party["clinic"].close("lab", round, raw, call, "clean"), call) == raw


def receipt_of(seal: Seal) -> bytes:
    """The one that it has signed."""
    ((_, raw),) = seal.receipts()
    return raw


# What left


def test_everything_that_left_is_there_exactly(party: dict[str, Seal], box: Outbox) -> None:
    raws = [*TEXTS, WEIGHTS, b"", b"no payload"]
    exchange(party, raws)
    found = box.departures()
    assert [box.content(departure) for departure in found] == raws
    assert [departure.kind for departure in found] == ["texts", "texts", "weights", "other", "other"]
    assert [departure.size for departure in found] == [len(raw) for raw in raws]
    assert [departure.call for departure in found] == list(range(5))
    assert {(d.run, d.round, d.source, d.destination, d.verdict) for d in found} == {(RUN, 1, "clinic", "lab", "clean")}
    assert [departure.time for departure in found] == sorted(departure.time for departure in found)


def test_it_is_written_before_it_leaves(party: dict[str, Seal], box: Outbox, tmp_path: Path) -> None:
    """An outbox that cannot be written lets nothing go."""
    (tmp_path / "clinic" / "outbox" / "contents").rmdir()
    (tmp_path / "clinic" / "outbox" / "contents").write_text("in the way")
    with pytest.raises(StorageError, match="free space or check the rights"):
        party["clinic"].close("lab", 1, TEXTS[0])
    assert box.departures() == []


def test_a_content_that_leaves_often_is_kept_once(party: dict[str, Seal], box: Outbox) -> None:
    exchange(party, [WEIGHTS] * 3)
    assert len(box.departures()) == 3
    assert [path.read_bytes() for path in (box.folder / "contents").iterdir()] == [WEIGHTS]


def test_a_content_that_a_power_cut_emptied_is_written_again(party: dict[str, Seal], box: Outbox) -> None:
    exchange(party, [WEIGHTS])
    (departure,) = box.departures()
    (box.folder / "contents" / departure.content).write_bytes(b"")
    with pytest.raises(DamagedError, match="was changed since it left"):
        box.content(departure)
    exchange(party, [WEIGHTS], round=2)
    assert box.content(departure) == WEIGHTS


def test_contents_that_were_changed_or_deleted_are_noticed(party: dict[str, Seal], box: Outbox) -> None:
    exchange(party, [TEXTS[0]])
    (departure,) = box.departures()
    path = box.folder / "contents" / departure.content
    path.write_bytes(path.read_bytes().replace(b"a + b", b"a - b"))
    for read in (lambda: box.content(departure), lambda: box.departures(find="add")):
        with pytest.raises(DamagedError, match="was changed since it left as departure 1"):
            read()
    path.unlink()
    with pytest.raises(DamagedError, match="is missing"):
        box.content(departure)


def test_it_is_searched_by_party_kind_and_text(tmp_path: Path) -> None:
    party = seals(tmp_path, ("clinic", "lab", "ward"))
    for destination in ("lab", "ward"):
        for raw in (*TEXTS, WEIGHTS):
            party["clinic"].close(destination, 1, raw)
    box = Outbox(tmp_path / "clinic" / "outbox")
    assert [d.number for d in box.departures()] == [1, 2, 3, 4, 5, 6]
    assert [d.number for d in box.departures(to="ward")] == [4, 5, 6]
    assert [d.number for d in box.departures(kind="texts")] == [1, 2, 4, 5]
    assert [d.number for d in box.departures(find="DEF ADD(")] == [1, 4]
    assert [d.number for d in box.departures("lab", "texts", "Maß")] == [2]
    assert box.departures(find="nowhere") == box.departures(to="nobody") == []


def test_two_processes_write_to_one_outbox(tmp_path: Path, party: dict[str, Seal], box: Outbox) -> None:
    script = """
import sys
import time
from pathlib import Path
from peertune.guard import *
home = Path(sys.argv[1])
seal = Seal(Identity.read(home / "keys.json"), Peers.read(home / "peers.toml"), "run-1",
            Replay(home / "replay.sqlite"), Outbox(home / "outbox"))
for call in range(100):
    seal.close("lab", 1, sys.argv[2].encode() + bytes([call]), call)
"""
    home = str(tmp_path / "clinic")
    processes = [subprocess.Popen([sys.executable, "-c", script, home, name]) for name in ("one", "two")]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    found = box.departures()
    assert [departure.number for departure in found] == list(range(1, 201))
    assert {box.content(d) for d in found} == {name + bytes([n]) for name in (b"one", b"two") for n in range(100)}
    assert len({departure.sequence for departure in found}) == 200


# Receipts


def test_a_receipt_is_put_to_what_left(party: dict[str, Seal], box: Outbox, tmp_path: Path) -> None:
    exchange(party, TEXTS)
    party["clinic"].close("lab", 1, WEIGHTS, 9)  # on its way for ever
    assert [departure.receipt for departure in box.departures()] == [None] * 3
    ((source, raw),) = party["lab"].receipts()
    assert source == "clinic"
    receipt = party["clinic"].confirm("lab", raw)
    assert (receipt.run, receipt.round, receipt.source, receipt.destination) == (RUN, 1, "clinic", "lab")
    assert [departure.receipt for departure in box.departures()] == [1, 1, None]
    party["clinic"].confirm("lab", raw)  # twice is once
    assert [departure.receipt for departure in box.departures()] == [1, 1, None]
    assert box.receipt(box.departures()[0]) == raw and box.receipt(box.departures()[2]) is None


def test_a_third_party_can_check_a_receipt_against_a_content(
    party: dict[str, Seal], box: Outbox, tmp_path: Path
) -> None:
    """With the content, the salt and the receiver's card alone."""
    exchange(party, TEXTS)
    party["clinic"].confirm("lab", receipt_of(party["lab"]))
    card = Identity.read(tmp_path / "lab" / "keys.json").card
    for departure, raw in zip(box.departures(), TEXTS, strict=True):
        signed = read_receipt(card, box.receipt(departure) or b"").contents[departure.sequence]
        assert signed == hashlib.sha256(departure.salt + hashlib.sha256(raw).digest()).digest()
        assert signed != hashlib.sha256(departure.salt + hashlib.sha256(raw + b" ").digest()).digest()
        assert signed != hashlib.sha256(raw).digest()  # or the hub could find out what a short content was


def test_a_receipt_that_was_changed_is_refused(party: dict[str, Seal], box: Outbox) -> None:
    exchange(party, TEXTS)
    raw = receipt_of(party["lab"])
    for place in range(len(raw)):
        with pytest.raises(SealError):
            party["clinic"].confirm("lab", raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(SealError):
            party["clinic"].confirm("lab", raw[:place])
    assert [departure.receipt for departure in box.departures()] == [None, None]


def test_a_receipt_binds_run_round_parties_and_content(tmp_path: Path) -> None:
    """Even the receiver's own key cannot sign for what did not leave."""
    everyone = identities(tmp_path, NAMES)
    clinic, lab = (seal_of(tmp_path, everyone[me], [everyone[other]]) for me, other in (NAMES, NAMES[::-1]))
    exchange({"clinic": clinic, "lab": lab}, TEXTS)
    right = read_receipt(everyone["lab"].card, receipt_of(lab))
    sequence, digest = next(iter(right.contents.items()))
    wrong: list[tuple[str, Receipt]] = [
        ("did not leave", msgspec.structs.replace(right, run="run-2")),
        ("did not leave", msgspec.structs.replace(right, round=2)),
        ("is for lab", msgspec.structs.replace(right, source="lab")),
        ("is signed by lab", msgspec.structs.replace(right, destination="ward")),
        ("did not leave", msgspec.structs.replace(right, contents={sequence: bytes(32)})),
        ("did not leave", msgspec.structs.replace(right, contents={**right.contents, 5: digest})),
    ]
    for message, receipt in wrong:
        with pytest.raises(SealError, match=message):
            clinic.confirm("lab", sign_receipt(everyone["lab"], receipt))
    with pytest.raises(SealError, match="not signed by the key that is pinned for lab"):
        clinic.confirm("lab", sign_receipt(everyone["clinic"], right))
    box = Outbox(tmp_path / "clinic" / "outbox")
    assert [departure.receipt for departure in box.departures()] == [None, None]
    with box._store.transaction() as db:
        assert db.execute("SELECT COUNT(*) FROM receipts").fetchone() == (0,)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda tail: b"PTR\x01" + tail)))
def test_any_bytes_for_a_receipt_end_in_a_seal_error(party: dict[str, Seal], raw: bytes) -> None:
    with pytest.raises(SealError):
        party["clinic"].confirm("lab", raw)


# The command


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["peertune", "outbox", *map(str, args)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_the_command_lists_and_never_shows_contents(
    party: dict[str, Seal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exchange(party, TEXTS[:1])
    party["clinic"].confirm("lab", receipt_of(party["lab"]))
    party["clinic"].close("lab", 2, WEIGHTS, verdict="2 e-mail addresses removed")
    code, out, _ = command(monkeypatch, capsys, tmp_path / "clinic")
    assert code == 0 and "def add" not in out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [[row[0], *row[2:]] for row in rows] == [
        ["1", RUN, "1", "lab", "texts", str(len(TEXTS[0])), "clean", "yes"],
        ["2", RUN, "2", "lab", "weights", str(len(WEIGHTS)), "2 e-mail addresses removed", "no"],
    ]
    assert "│ 2 " not in command(monkeypatch, capsys, tmp_path / "clinic", "--find", "def add")[1]
    monkeypatch.setenv("PEERTUNE_RUNS", str(tmp_path))  # the name of a run
    assert "removed" in command(monkeypatch, capsys, "clinic", "--kind", "weights")[1]


def test_the_command_exports_what_left(party: dict[str, Seal], tmp_path: Path) -> None:
    exchange(party, [TEXTS[1], WEIGHTS, b"no payload"])
    receipt = receipt_of(party["lab"])
    party["clinic"].confirm("lab", receipt)
    target = tmp_path / "export"
    sent.outbox(str(tmp_path / "clinic"), export=target)
    lines = [json.loads(line) for line in (target / "outbox.jsonl").read_text().splitlines()]
    assert [line["payload"] for line in lines] == [
        {"items": ["Das Maß ist voll"]},
        {"layer": ["float32", 2, 3]},
        None,
    ]
    assert set(lines[0]) == {*Departure.__struct_fields__, "payload"}
    contents = [(target / "contents" / line["content"]).read_bytes() for line in lines]
    assert contents == [TEXTS[1], WEIGHTS, b"no payload"]
    assert [(target / "receipts" / str(line["receipt"])).read_bytes() for line in lines] == [receipt] * 3
    for line, raw in zip(lines, contents, strict=True):
        salted = bytes.fromhex(line["salt"]) + hashlib.sha256(raw).digest()
        assert hashlib.sha256(salted).hexdigest() == line["digest"]
    for path in (target, *target.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    with pytest.raises(ConfigError, match="exists and is not overwritten"):
        sent.outbox(str(tmp_path / "clinic"), export=target)


# What its owner prunes


DAY = 86_400.0


def aged(box: Outbox, days: dict[int, float]) -> None:
    """Make departures older: by number, in days before now."""
    with box._store.transaction() as db:
        for number, age in days.items():
            db.execute("UPDATE departures SET time = time - ? WHERE number = ?", (age * DAY, number))


def stored(folder: Path) -> set[str]:
    return {path.name for path in (folder / "clinic" / "outbox" / "contents").iterdir()}


def test_nothing_is_deleted_but_what_its_owner_prunes(party: dict[str, Seal], box: Outbox, tmp_path: Path) -> None:
    """Old rows go, and with them the contents and receipts that nothing else names; the rest is as it was."""
    for round, raws in enumerate(([TEXTS[0], WEIGHTS], [TEXTS[0]]), 1):
        exchange(party, raws, round)
        party["clinic"].confirm("lab", party["lab"].receipts()[-1][1])
    aged(box, {1: 40, 2: 40, 3: 20})
    before = box.departures()
    now = before[0].time + 40 * DAY
    assert box.prune(now - 50 * DAY) == (0, 0) and box.departures() == before
    assert box.prune(now - 30 * DAY) == (2, len(WEIGHTS))
    assert box.departures() == before[2:] and box.content(before[2]) == TEXTS[0]
    assert stored(tmp_path) == {hashlib.sha256(TEXTS[0]).hexdigest()}
    assert box.receipt(before[2]) is not None
    with box._store.transaction() as db:
        assert db.execute("SELECT id FROM receipts").fetchall() == [(before[2].receipt,)]
    exchange(party, [WEIGHTS], 3)  # a content that was pruned may leave again
    assert box.content(box.departures()[-1]) == WEIGHTS
    assert box.prune(now + DAY) == (2, len(TEXTS[0]) + len(WEIGHTS)) and not stored(tmp_path)
    exchange(party, [WEIGHTS], 4)
    assert [departure.number for departure in box.departures()] == [5]  # no number comes twice


def test_what_a_kill_left_is_pruned_too(party: dict[str, Seal], box: Outbox, tmp_path: Path) -> None:
    """A content without a row, and half of one."""
    exchange(party, [TEXTS[0]])
    for name in ("0" * 64, f".{'1' * 64}.4711.1"):
        (box.folder / "contents" / name).write_bytes(b"12345")
    assert box.prune(0.0) == (0, 10)
    assert stored(tmp_path) == {hashlib.sha256(TEXTS[0]).hexdigest()}


def test_pruning_while_another_process_seals_loses_no_content(
    tmp_path: Path, party: dict[str, Seal], box: Outbox
) -> None:
    """The same contents again and again, each deleted as soon as nothing names it, and named again."""
    script = """
import sys
import time
from pathlib import Path
from peertune.guard import *
home = Path(sys.argv[1])
seal = Seal(Identity.read(home / "keys.json"), Peers.read(home / "peers.toml"), "run-1",
            Replay(home / "replay.sqlite"), Outbox(home / "outbox"))
for call in range(300):
    seal.close("lab", 1, bytes([call % 3]), call)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "clinic")])
    pruned = 0
    while process.poll() is None:
        if found := box.departures():
            box.content(found[-1])
            pruned += box.prune(found[-1].time)[0]
    assert process.wait() == 0 and pruned > 0
    assert pruned + len(box.departures()) == 300
    assert {box.content(departure) for departure in box.departures()} <= {b"\0", b"\1", b"\2"}


def test_the_command_prunes_one_outbox_before_a_day(
    party: dict[str, Seal], box: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    exchange(party, [TEXTS[0], WEIGHTS])
    aged(box, {1: 3})
    today = time.strftime("%Y-%m-%d", time.localtime(box.departures()[1].time))
    code, out, _ = command(monkeypatch, capsys, tmp_path / "clinic", "--prune-before", today)
    assert (code, out.replace("\n", "")) == (
        0,
        f"{box.folder}: 1 departures from before {today} deleted, {len(TEXTS[0])} bytes of contents",
    )
    assert [departure.number for departure in box.departures()] == [2]
    assert command(monkeypatch, capsys, tmp_path / "clinic", "--prune-before", "yesterday")[0] == 2
    code, _, err = command(monkeypatch, capsys, tmp_path / "clinic", "--prune-before", today, "--to", "lab")
    assert code == 2 and "give no other option with it" in err
    code, _, err = command(monkeypatch, capsys, tmp_path, "--prune-before", today)
    assert code == 2 and "holds 2 outboxes; prune one" in " ".join(err.split())
    assert len(box.departures()) == 1


def test_where_there_is_none_or_more_than_one_the_command_says_so(party: dict[str, Seal], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no outbox in .*empty"):
        sent.outbox(str(tmp_path / "empty"))
    assert not list((tmp_path / "empty").iterdir())
    with pytest.raises(ConfigError, match="holds 2 outboxes; export one: .*clinic.*lab"):
        sent.outbox(str(tmp_path), export=tmp_path / "export")
    assert len(list(tmp_path.rglob(OUTBOX))) == 2 and not (tmp_path / "export").exists()
