"""Receipts on their way: from a site's drain through the coordinator to the outbox of who sent what they are for."""

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from parties import identities, seal_of
from toy import NAMES
from toy_sites import SESSION, Village

from peertune.engines import post, receipts
from peertune.engines.flare import FlareEngine
from peertune.engines.receipts import Bag
from peertune.engines.seal import Plain
from peertune.errors import StorageError
from peertune.federation import Federation, RoundLog
from peertune.guard import Departure, Identity, Outbox, Receipt, Seal, read_receipt
from peertune.guard.receipts import MAX_RECEIPT, digest_of, sign_receipt
from peertune.payloads import Verdicts, decode

pytest.register_assert_rewrite("contract")

from contract import *  # noqa: E402, F403
from contract import PICKS, transfers  # noqa: E402

PAIR = ("a0", "a1", "a2")
Change = Callable[[str, post.Clear], post.Clear]  # what whoever carries it makes of a question to a site


def sealed(folder: Path, names: tuple[str, ...] = PAIR, run: str = SESSION) -> dict[str, Seal]:
    """A seal for each name; the keys are made once."""
    made = {name: folder / name / "keys.json" for name in names}
    if not made[names[0]].exists():
        identities(folder, names)
    everyone = {name: Identity.read(path) for name, path in made.items()}
    return {
        name: seal_of(folder, me, [other for other in everyone.values() if other is not me], run)
        for name, me in everyone.items()
    }


def left(folder: Path, name: str = "a0") -> list[Departure]:
    box = Outbox(folder / name / "outbox")
    try:
        return box.departures()
    finally:
        box.close()


def confirmed(folder: Path, name: str = "a0") -> list[tuple[str, bool]]:
    """To whom, and is there a receipt?"""
    return [(departure.destination, departure.receipt is not None) for departure in left(folder, name)]


def open_messages(folder: Path, name: str) -> int:
    """How many messages the seen-set of a party holds."""
    seal = sealed(folder)[name]
    with seal._replay._store.transaction() as db:
        return db.execute("SELECT COUNT(*) FROM seen").fetchone()[0]


@dataclass
class Town:
    """A village with seals, and somebody on its lines who may change what is cleared."""

    village: Village
    folder: Path
    change: Change = lambda name, clear: clear

    def federation(self) -> Federation:
        lines = self.village.lines()
        return Federation(FlareEngine({name: self._line(name, lines) for name in lines}, SESSION, patience=0.5), PAIR)

    def _line(self, name: str, lines: Mapping[str, post.Line]) -> post.Line:
        def carry(verb: str, raw: bytes, seconds: float) -> bytes:
            if verb == "clear":
                raw = msgspec.msgpack.encode(self.change(name, msgspec.msgpack.decode(raw, type=post.Clear)))
            return lines[name](verb, raw, seconds)

        return carry


def pull(fed: Federation, *readers: str) -> RoundLog:
    """A round in which these agents pull texts of a0."""
    texts = fed["a0"].share(PICKS)
    for reader in readers:
        assert isinstance(fed.fetch(fed[reader].accept(PICKS, texts)), Verdicts)
    return fed.end_round()


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    village = Village(tmp_path, seal=sealed(tmp_path), names=PAIR)
    yield Town(village, tmp_path)
    village.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """The contract, sealed: at its end all that left anybody is confirmed, also by agents that died in between."""
    folder = tmp_path_factory.mktemp("toys")
    homes = folder / "homes"
    village = Village(folder, seal=sealed(homes, NAMES))
    yield village.engine, folder, [[name] for name in NAMES]
    village.engine.end_round()
    village.close()
    found = [pair for name in NAMES for pair in confirmed(homes, name)]
    assert len(found) > 20 and all(yes for _, yes in found)


# The way


def test_at_the_end_of_a_round_everybody_has_the_receipts_for_what_left(town: Town) -> None:
    fed = town.federation()
    texts = fed["a0"].share(PICKS)
    for reader in ("a1", "a2", "a1"):
        fed.fetch(fed[reader].accept(PICKS, texts))
    assert confirmed(town.folder) == [("a1", False), ("a2", False), ("a1", False)]
    fed.end_round()
    assert confirmed(town.folder) == [("a1", True), ("a2", True), ("a1", True)]
    one, two, three = left(town.folder)
    assert one.receipt == three.receipt != two.receipt  # one for all of a round
    box = Outbox(town.folder / "a0" / "outbox")
    card = Identity.read(town.folder / "a1" / "keys.json").card
    receipt = read_receipt(card, box.receipt(one) or b"")
    assert (receipt.run, receipt.round, receipt.source, receipt.destination) == (SESSION, 0, "a0", "a1")
    assert receipt.contents == {each.sequence: each.digest for each in (one, three)}
    assert decode(box.content(one)) == decode(box.content(three))


def test_receipts_are_no_part_of_the_ledger(town: Town, tmp_path: Path) -> None:
    plain = Village(tmp_path / "plain", names=PAIR)
    (tmp_path / "plain").mkdir()
    try:
        logs = [pull(fed, "a1", "a2") for fed in (town.federation(), Federation(plain.engine, PAIR))]
    finally:
        plain.close()
    assert logs[0].rows == logs[1].rows and logs[0].lost == logs[1].lost == []
    assert [row[:3] for row in transfers(logs[0]) if row[0] == "a0"] == [("a0", "a1", "texts"), ("a0", "a2", "texts")]


def test_where_nothing_is_sealed_nothing_is_carried(tmp_path: Path) -> None:
    village = Village(tmp_path, names=PAIR)
    said: list[bytes] = []

    def line(name: str) -> post.Line:
        def carry(verb: str, raw: bytes, seconds: float) -> bytes:
            said.extend([raw, answer := village.lines()[name](verb, raw, seconds)])
            return answer

        return carry

    try:
        pull(Federation(FlareEngine({name: line(name) for name in PAIR}, SESSION, patience=0.5), PAIR), "a1")
    finally:
        village.close()
    assert not any(b"receipts" in raw for raw in said)
    assert msgspec.msgpack.encode(post.Clear(SESSION, 0)) in said


def test_who_carries_a_receipt_cannot_find_out_what_it_is_for(town: Town) -> None:
    """Not even with the content itself to try: the salt never leaves the two parties."""
    carried: list[bytes] = []
    town.change = lambda name, clear: (carried.extend(raw for _, raw in clear.receipts), clear)[1]
    fed = town.federation()
    for _ in range(2):
        pull(fed, "a1")
    box = Outbox(town.folder / "a0" / "outbox")
    raws = [box.content(departure) for departure in box.departures()]
    assert raws[0] == raws[1] and len(carried) == 2
    card = Identity.read(town.folder / "a1" / "keys.json").card
    signed = [digest for raw in carried for digest in read_receipt(card, raw).contents.values()]
    assert len(set(signed)) == 2  # the same content, twice: nobody can see that it is the same
    content = hashlib.sha256(raws[0])
    assert not {content.digest(), hashlib.sha256(content.digest()).digest()} & set(signed)
    assert signed == [digest_of(departure.salt, content.digest()) for departure in box.departures()]
    assert not any(departure.salt in raw for departure in box.departures() for raw in carried)


# What is not right


def forged(raw: bytes) -> bytes:
    return raw[:10] + bytes([raw[10] ^ 1]) + raw[11:]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda raws, key: [("a1", forged(raws[0][1])), *raws[1:]],
            "a receipt is not signed by the key that is pinned",
        ),
        (lambda raws, key: [("a2", raws[0][1]), *raws[1:]], "a receipt is not signed by the key that is pinned"),
        (lambda raws, key: [("stranger", raws[0][1]), *raws[1:]], "pins no key of 'a stranger'"),
        (lambda raws, key: [("a1", bytes(MAX_RECEIPT + 1)), *raws[1:]], f"these {MAX_RECEIPT + 1} bytes are not"),
        (lambda raws, key: [("a1", key("a2")), *raws[1:]], "a receipt of a1 is for a2"),
        (lambda raws, key: [("a1", key("a0")), *raws[1:]], "names message 7, which did not leave with that"),
        (lambda raws, key: [("a1", b""), ("a1", b"x"), *raws[1:]], "refuses 2 receipts of a1"),
        (lambda raws, key: raws[1:], ""),
    ],
    ids=["changed", "of another", "of a stranger", "too large", "for another", "for nothing", "junk", "missing"],
)
def test_a_receipt_that_is_not_right_is_refused_and_nothing_else_is_lost(
    town: Town, caplog: pytest.LogCaptureFixture, change: Callable, line: str
) -> None:
    """That of a1 is not right, that of a2 comes through, and so does the next round's of both."""
    me = Identity.read(town.folder / "a1" / "keys.json")
    changes = itertools.chain([change], itertools.repeat(lambda raws, key: raws))

    def key(source: str) -> bytes:
        return sign_receipt(me, Receipt(SESSION, 0, source, "a1", {7: bytes(32)}))

    def carry(name: str, clear: post.Clear) -> post.Clear:
        if name != "a0":
            return clear
        return msgspec.structs.replace(clear, receipts=next(changes)(clear.receipts, key))

    town.change = carry
    fed = town.federation()
    with caplog.at_level(logging.WARNING, receipts.__name__):
        pull(fed, "a1", "a2")
    assert confirmed(town.folder) == [("a1", False), ("a2", True)]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == bool(line) and all(each.startswith("a0 refuses ") and line in each for each in told)
    pull(fed, "a1", "a2")
    assert confirmed(town.folder)[2:] == [("a1", True), ("a2", True)]


def test_a_receipt_that_comes_again_changes_nothing(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    old: list[tuple[str, bytes]] = []

    def carry(name: str, clear: post.Clear) -> post.Clear:
        old.extend(clear.receipts)
        return msgspec.structs.replace(clear, receipts=old * 2) if name == "a0" else clear

    town.change = carry
    fed = town.federation()
    for _ in range(3):
        pull(fed, "a1")
    assert [departure.receipt for departure in left(town.folder)] == [1, 2, 3]
    assert not caplog.records


def test_a_seal_that_has_no_use_for_receipts_says_so(caplog: pytest.LogCaptureFixture) -> None:
    receipts.settle(Plain(), "a0", 3, [("a1", b"one"), ("a1", b"two")], ["a1"])
    assert [record.getMessage() for record in caplog.records] == [
        "a0 refuses 2 receipts of a1, the first because: nothing is sealed here, so nothing can be confirmed"
    ]


def test_a_disk_that_refuses_costs_the_receipts_and_not_the_run(
    town: Town, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> list[tuple[str, bytes]]:
        raise StorageError("seen.sqlite: no space left on device; free space or check the rights")

    fed = town.federation()
    with monkeypatch.context() as patch:
        for verb in ("receipts", "settle"):
            patch.setattr(Seal, verb, full)
        assert pull(fed, "a1").lost == []
    assert confirmed(town.folder) == [("a1", False)]
    told = [record.getMessage() for record in caplog.records]
    assert sum("hands out no receipts now: seen.sqlite: no space" in line for line in told) == 3
    assert sum("cannot forget what it opened: seen.sqlite: no space" in line for line in told) == 3
    pull(fed, "a1")
    assert confirmed(town.folder) == [("a1", True), ("a1", True)]  # it is handed out as long as it is not settled


# Who is away, and who starts again


def test_a_source_that_was_away_gets_its_receipts_later(town: Town) -> None:
    away = True

    def carry(name: str, clear: post.Clear) -> post.Clear:
        if away and name == "a0":
            raise ConnectionError("no route")
        return clear

    town.change = carry
    fed = town.federation()
    pull(fed, "a1")
    assert confirmed(town.folder) == [("a1", False)]
    away = False
    fed.fetch(fed["a2"].profile())
    fed.end_round()
    assert confirmed(town.folder) == [("a1", True)]


def test_after_a_start_that_broke_off_the_next_one_brings_its_receipts(town: Town) -> None:
    """The coordinator dies in the middle of a round; everybody begins anew, under another session."""
    fed = town.federation()
    fed.fetch(fed["a1"].accept(PICKS, fed["a0"].share(PICKS)))
    town.village.close()
    assert confirmed(town.folder) == [("a1", False)]
    again = sealed(town.folder, run="toys/2")
    ((party, raw),) = again["a1"].receipts()
    assert party == "a0" and again["a1"].receipts() == [(party, raw)]
    receipts.settle(again["a0"], "a0", 0, [("a1", raw)], PAIR)
    assert confirmed(town.folder) == [("a1", True)]
    receipts.settle(again["a1"], "a1", 0, [], PAIR)
    assert again["a1"].receipts() == [] and open_messages(town.folder, "a1") == 0


def test_a_settled_round_leaves_nothing_behind(town: Town) -> None:
    fed = town.federation()
    for _ in range(3):
        pull(fed, "a1", "a2")
        assert [open_messages(town.folder, name) for name in PAIR] == [0, 0, 0]


# At the coordinator


def test_the_coordinator_passes_on_what_is_for_somebody_else_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    bag = Bag(PAIR)
    bag.put("a1", [("a0", b"one"), ("a1", b"itself"), ("nobody", b"x"), ("a0", b"two"), ("a2", b"three")])
    bag.put("a2", [("a0", b"four")])
    assert bag.of("a0") == [("a1", b"one"), ("a1", b"two"), ("a2", b"four")]
    assert bag.of("a1") == [] and bag.of("a2") == [("a1", b"three")]
    assert [record.getMessage()[:27] for record in caplog.records] == ["dropped 2 receipts of a1: e"]
    bag.handed("a0")
    assert bag.of("a0") == [] and bag.of("a2") == [("a1", b"three")]


def test_what_the_coordinator_keeps_for_others_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Who hands out too much loses its own; empty ones count, too."""
    bag = Bag(PAIR)
    half = [("a0", bytes(receipts.MOST // 2 - 64))]
    bag.put("a1", half)
    bag.put("a1", half)
    bag.put("a1", [("a0", b"")])
    bag.put("a2", [("a0", b"")] * (receipts.MOST // 64 + 1))
    bag.put("a2", [("a0", b"right")])
    assert bag.of("a0") == [*[("a1", half[0][1])] * 2, ("a2", b"right")]
    assert [record.getMessage()[:17] for record in caplog.records] == ["dropped 1 receipt", "dropped 262145 re"]
