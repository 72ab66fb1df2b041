"""The seen-set: one opening for each message, across threads, processes and `kill -9`."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from parties import seals

from peertune.errors import SealError, StorageError
from peertune.guard import Replay

DIGEST = bytes(32)
TAKE = """
import os, signal, sys
from pathlib import Path
from peertune.guard import Replay
replay, name, count = Replay(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
sys.stdin.readline()
taken = [n for n in range(count) if replay.first("run", "clinic", n, 1, bytes(32))]
print(*taken, flush=True)
if name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def taker(path: Path, name: str, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", TAKE, str(path), name, str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_message_is_first_once(tmp_path: Path) -> None:
    replay = Replay(tmp_path / "replay.sqlite")
    assert replay.first("run", "clinic", 7, 1, DIGEST)
    for round in (1, 2):
        assert not replay.first("run", "clinic", 7, round, DIGEST)
    assert replay.first("run", "clinic", 8, 1, DIGEST)
    assert replay.first("run", "lab", 7, 1, DIGEST)
    assert replay.first("run-2", "clinic", 7, 1, DIGEST)


def test_what_was_received_in_a_round_is_known(tmp_path: Path) -> None:
    replay = Replay(tmp_path / "replay.sqlite")
    for source, sequence, round in (("clinic", 2**63 - 1, 1), ("clinic", 4, 1), ("lab", 4, 1), ("lab", 5, 2)):
        assert replay.first("run", source, sequence, round, bytes([sequence % 256]) * 32)
    assert replay.received("run") == {
        ("run", 1, "clinic"): {4: b"\4" * 32, 2**63 - 1: b"\xff" * 32},
        ("run", 1, "lab"): {4: b"\4" * 32},
        ("run", 2, "lab"): {5: b"\5" * 32},
    }
    assert replay.received("other") == {}


def test_what_is_settled_is_forgotten_and_never_first_again(tmp_path: Path) -> None:
    replay = Replay(tmp_path / "replay.sqlite")
    replay.begin("run/1")
    for round in (0, 1, 2):
        assert replay.first("run/1", "clinic", round, round, DIGEST)
    replay.settle("run/1", 1)
    assert list(replay.received("run/1")) == [("run/1", 2, "clinic")]
    assert not any(replay.first("run/1", "clinic", sequence, round, DIGEST) for sequence in (0, 9) for round in (0, 1))
    assert not replay.first("run/1", "clinic", 2, 2, DIGEST) and replay.first("run/1", "clinic", 9, 2, DIGEST)
    replay.settle("run/1", 0)  # late, or again
    assert not replay.first("run/1", "clinic", 10, 1, DIGEST)


def test_a_start_ends_the_earlier_ones_of_its_run_and_of_no_other(tmp_path: Path) -> None:
    """What they opened waits for its receipt, and what they did not opens no more, whoever asks again."""
    replay = Replay(tmp_path / "replay.sqlite")
    for run in ("run/1", "run-2/1", "run", "other/1"):
        replay.begin(run)
        assert replay.first(run, "clinic", 1, 5, DIGEST)
    replay.begin("run/2")
    assert [replay.first(run, "clinic", 2, 5, DIGEST) for run in ("run/1", "run-2/1", "run", "other/1", "run/2")] == [
        *(False, True, True, True, True)
    ]
    assert list(replay.received("run/2")) == [("run/1", 5, "clinic"), ("run/2", 5, "clinic")]
    replay.begin("run/1")  # somebody starts it under its old name
    assert not replay.first("run/1", "clinic", 3, 0, DIGEST)
    replay.settle("run/2", 5)
    assert replay.received("run/2") == replay.received("run/1") == {}
    assert len(replay.received("run-2/1")) == len(replay.received("run")) == len(replay.received("other/1")) == 1


def test_an_ended_start_that_is_late_settles_nothing_of_the_one_that_ended_it(tmp_path: Path) -> None:
    replay = Replay(tmp_path / "replay.sqlite")
    for run in ("run/1", "run/2"):
        replay.begin(run)
        assert replay.first(run, "clinic", 1, 0, DIGEST)
    replay.settle("run/1", 7)
    assert list(replay.received("run/2")) == [("run/2", 0, "clinic")]
    assert replay.first("run/2", "clinic", 2, 0, DIGEST)


def test_a_run_of_many_rounds_leaves_one_row(tmp_path: Path) -> None:
    replay = Replay(tmp_path / "replay.sqlite")
    for start in ("run/1", "run/2"):
        replay.begin(start)
        for round in range(50):
            for sequence in range(20):
                assert replay.first(start, "clinic", 100 * round + sequence, round, DIGEST)
            replay.settle(start, round)
    with replay._store.transaction() as db:
        assert db.execute("SELECT COUNT(*) FROM seen").fetchone() == (0,)
        assert db.execute("SELECT * FROM starts ORDER BY run").fetchall() == [("run/1", 2**63 - 1), ("run/2", 50)]
    replay.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1 << 15


def test_a_set_of_an_earlier_peertune_is_taken_over(tmp_path: Path) -> None:
    """One from before rounds were settled: the same version, a table less."""
    path = tmp_path / "replay.sqlite"
    replay = Replay(path)
    assert replay.first("run", "clinic", 1, 1, DIGEST)
    replay._store._db.execute("DROP TABLE starts")
    replay.close()
    again = Replay(path)
    again.begin("run")
    assert not again.first("run", "clinic", 1, 1, DIGEST) and again.first("run", "clinic", 2, 1, DIGEST)


def test_the_set_is_there_after_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    process = taker(path, "killed", 20)
    out, _ = process.communicate("\n", timeout=60)
    assert process.returncode == -signal.SIGKILL and out.split() == [str(n) for n in range(20)]
    replay = Replay(path)
    assert [n for n in range(25) if replay.first("run", "clinic", n, 1, DIGEST)] == [20, 21, 22, 23, 24]


def test_two_processes_on_one_file_share_the_messages_out(tmp_path: Path) -> None:
    """Both ask for all of 3 000: each goes to exactly one, and the file is whole."""
    processes = [taker(tmp_path / "replay.sqlite", name, 3000) for name in ("one", "two")]
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    taken = [[int(word) for word in process.communicate(timeout=120)[0].split()] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(taken[0] + taken[1]) == list(range(3000))
    replay = Replay(tmp_path / "replay.sqlite")
    with replay._store.transaction() as db:
        assert db.execute("SELECT * FROM pragma_integrity_check").fetchall() == [("ok",)]
    assert len(replay.received("run")["run", 1, "clinic"]) == 3000


def test_a_process_that_leaves_does_not_take_the_log_of_one_that_stays(tmp_path: Path) -> None:
    """Two connections here, one there: when it closes, the write-ahead log is not its to fold back and delete."""
    path = tmp_path / "replay.sqlite"
    replays = [Replay(path), Replay(path)]
    assert replays[0].first("run", "lab", 1, 1, DIGEST)
    process = taker(path, "other", 50)
    process.communicate("\n", timeout=60)
    assert path.with_name("replay.sqlite-wal").exists()
    for replay in replays:
        opened = {source: len(seen) for (_, _, source), seen in replay.received("run").items()}
        assert opened == {"clinic": 50, "lab": 1}
        assert not replay.first("run", "clinic", 49, 1, DIGEST)
        replay.close()
    assert not path.with_name("replay.sqlite-wal").exists()


def test_threads_share_the_messages_out(tmp_path: Path) -> None:
    replay = Replay(tmp_path / "replay.sqlite")
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda n: replay.first("run", "clinic", n % 200, 1, DIGEST), range(1600)))
    assert sum(first) == 200


def test_one_message_in_many_threads_opens_once(tmp_path: Path) -> None:
    party = seals(tmp_path, ("clinic", "lab"))
    sealed = party["clinic"].close("lab", 1, b"raw")

    def opened(_: int) -> bytes | None:
        try:
            return party["lab"].open("clinic", 1, sealed)
        except SealError:
            return None

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(opened, range(40)))
    assert results.count(b"raw") == 1 and results.count(None) == 39


def test_a_file_that_is_no_seen_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite"
    path.write_bytes(os.urandom(8192))
    with pytest.raises(StorageError, match=r"replay\.sqlite.*move it away and start a run under a new name"):
        Replay(path)


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    replay = Replay(tmp_path / "replay.sqlite")
    replay._store._db.execute("PRAGMA user_version = 2")
    replay.close()
    with pytest.raises(StorageError, match="version 2, this peertune reads 1"):
        Replay(tmp_path / "replay.sqlite")
