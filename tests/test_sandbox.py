"""The sandbox: hostile programs do not pass and leave nothing behind; good ones pass right after them."""

import contextlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peertune.errors import ConfigError
from peertune.tasks import sandbox as sandbox_module
from peertune.tasks.sandbox import Program, Sandbox, Verdict, probe

WORKS, WHY = probe()
needs_bubblewrap = pytest.mark.skipif(not WORKS, reason=WHY)
GOOD = Program("def add(a, b):\n    return a + b\n\nassert add(2, 3) == 5\n")
PASSED = Verdict(True, "passed")
CTYPES = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
CALL = CTYPES + "done = libc.syscall({})\nassert done != -1, ctypes.get_errno()\n"

# Programs that must not pass, with the reasons that are right for them.
HOSTILE = {
    # leaving early, or saying that all is well
    "os._exit": ("import os\nos._exit(0)", {"vanished"}),
    "sys.exit": ("import sys\nsys.exit(0)", {"exit"}),
    "raise SystemExit": ("raise SystemExit", {"exit"}),
    "libc exit": (CTYPES + "libc.exit(0)", {"vanished"}),
    "libc _exit in a thread": (
        "import threading, os\nt = threading.Thread(target=os._exit, args=(0,))\nt.start()\nwhile True: pass",
        {"vanished"},
    ),
    "print the verdict": ("print('passed')\nprint('\\1\\0\\6passed')\nassert False", {"assertion"}),
    "forge an answer on stdout": (
        "import os, struct\nos.write(1, struct.pack('!?H', True, 6) + b'passed')\nassert False",
        {"assertion"},
    ),
    "forge an answer on every descriptor": (
        "import os, struct\nfor fd in range(1024):\n    for text in (b'passed', bytes(32) + b'passed',"
        " struct.pack('!?H', True, 6) + b'passed'):\n        try:\n            os.write(fd, text)\n"
        "        except OSError:\n            pass\nos._exit(0)",
        {"tampered"},
    ),
    "noise on every descriptor, then an honest end": (
        "import os\nfor fd in range(1024):\n    try: os.write(fd, b'x')\n    except OSError: pass",
        {"tampered"},
    ),
    "close every descriptor": ("import os\nos.closerange(0, 1024)\nassert False", {"vanished"}),
    "read every descriptor for the token": (
        "import os\nfor fd in range(1024):\n    try:\n        os.set_blocking(fd, False)\n"
        "        os.write(fd, os.read(fd, 1000) + b'passed')\n    except OSError:\n        pass\nos._exit(0)",
        {"vanished", "tampered"},
    ),
    # altering the interpreter
    "patch builtins": (
        "import builtins\nbuiltins.AssertionError = Warning\nbuiltins.BaseException = int\n"
        "builtins.isinstance = lambda *a: True\nbuiltins.next = lambda *a: 'passed'\nassert False",
        {"assertion", "vanished", "tampered"},
    ),
    "patch os and sys": (
        "import os, sys\nos.write = os._exit = lambda *a: None\nsys.excepthook = print\nassert False",
        {"assertion"},
    ),
    "fake main": (
        "import sys\nsys.modules['__main__'].judge = lambda *a: 'passed'\nassert False",
        {"assertion"},
    ),
    "patch imported modules": ("import struct, random\nstruct.pack = None\nassert False", {"assertion"}),
    "exception that calls itself passed": (
        "class passed(Exception):\n    __str__ = __repr__ = lambda self: 'passed'\nraise passed",
        {"error: Exception"},
    ),
    "exception with a lying class": (
        "class Meta(type):\n    @property\n    def __name__(cls): return 'passed'\n"
        "class E(ValueError, metaclass=Meta): pass\nraise E",
        {"error: ValueError"},
    ),
    # processes
    "fork": ("import os\nos.fork()", {"error: PermissionError"}),
    "fork bomb": ("import os\nwhile True:\n    os.fork()", {"error: PermissionError"}),
    "fork bomb that does not give up": (
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        {"timeout"},
    ),
    "daemon by double fork": (
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n        time.sleep(60)",
        {"error: PermissionError"},
    ),
    "subprocess": ("import subprocess\nsubprocess.run(['/bin/true'])", {"error: PermissionError"}),
    "system": ("import os\nassert os.system('true') == 0", {"assertion"}),
    "exec": ("import os, sys\nos.execv(sys.executable, ['x', '-c', ''])", {"error: PermissionError"}),
    "raw clone": (CALL.format("56, 17, 0, 0, 0, 0"), {"assertion"}),
    "raw clone3": (CALL.format("435, ctypes.create_string_buffer(88), 88"), {"assertion"}),
    "32-bit numbers": (CALL.format("0x40000000 + 57"), {"assertion"}),
    "kill the judge": ("import os\nos.kill(os.getppid(), 9)", {"error: PermissionError"}),
    "kill everybody": ("import os\nos.kill(-1, 9)", {"error: PermissionError"}),
    "kill the group": ("import os\nos.killpg(0, 9)", {"error: PermissionError"}),
    "stop the judge": ("import os\nos.kill(os.getppid(), 19)", {"error: PermissionError"}),
    "kill itself": ("import os\nos.kill(os.getpid(), 9)", {"killed"}),
    "crash": ("import ctypes\nctypes.string_at(0)", {"killed"}),
    "ignore signals": (
        "import signal\nfor s in range(1, 65):\n    try:\n        signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True: pass",
        {"timeout"},
    ),
    "limit the judge": (
        "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
        {"error: PermissionError"},
    ),
    "trace the judge": (CALL.format("101, 16, os.getppid(), 0, 0"), {"assertion"}),
    "read the judge's memory": (
        "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
        {"error: FileNotFoundError", "error: PermissionError"},
    ),
    # the network and the kernel
    "network": ("import socket\nsocket.create_connection(('127.0.0.1', 22), 1)", {"error: PermissionError"}),
    "name lookup": ("import socket\nsocket.gethostbyname('example.org')", {"error: OSError"}),
    "new namespace": (CALL.format("272, 0x10000000"), {"assertion"}),
    "mount": (CTYPES + "assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0", {"assertion"}),
    "bpf": (CALL.format("321, 0, 0, 0"), {"assertion"}),
    "io_uring": (CALL.format("425, 1, 0"), {"assertion"}),
    "memory file": ("import os\nos.memfd_create('x')", {"error: PermissionError"}),
    "shared memory": (CALL.format("29, 0, 4096, 0o1666"), {"assertion"}),
    # time and memory
    "endless loop": ("while True: pass", {"timeout"}),
    "sleep": ("import time\ntime.sleep(1000)", {"timeout"}),
    "loop that catches everything": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        {"timeout"},
    ),
    "10 GB": ("x = bytearray(10 ** 10)", {"memory"}),
    "10 GB in small steps": ("x = []\nwhile True:\n    x.append(bytes(10 ** 6))", {"memory", "timeout"}),
    "recursion": ("def f(): return f()\nf()", {"error: RecursionError"}),
    "recursion without limit": (
        "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(n): return [f(n + 1)]\nf(0)",
        {"killed", "memory", "timeout"},
    ),
    "regular expression": ("import re\nre.match(r'(a+)+$', 'a' * 64 + 'b')", {"timeout"}),
    "huge integer": ("x = 7 ** 10 ** 9\nassert False", {"timeout", "memory"}),
    "huge string": ("x = 'a' * 10 ** 11", {"memory"}),
    "compiler bomb": ("(" * 100_000, {"error: SyntaxError", "memory", "error: RecursionError"}),
    "thread bomb": (
        "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,)).start()",
        {"error: RuntimeError", "memory", "timeout"},
    ),
    "flood of stdout": ("while True:\n    print('x' * 10 ** 6)", {"timeout"}),
    "input": ("input()", {"error: EOFError"}),
    # files
    "/etc/passwd": ("open('/etc/passwd').read()", {"error: FileNotFoundError"}),
    "write to /usr": ("open('/usr/lib/x', 'w')", {"error: OSError", "error: PermissionError"}),
    "write to the root": ("open('/x', 'w')", {"error: OSError"}),
    "alter the judge": ("open('/judge.py', 'a')", {"error: OSError", "error: PermissionError"}),
    "delete the judge": ("import os\nos.remove('/judge.py')", {"error: OSError"}),
    "delete everything": (
        "import os\nfor path in ('/judge.py', '/usr/lib', '/lib'):\n    os.rename(path, '/tmp/x')",
        {"error: OSError"},
    ),
    "fill the disk with one file": (
        "with open('/tmp/x', 'wb') as f:\n    while True:\n        f.write(bytes(10 ** 6))",
        {"error: OSError", "killed", "timeout"},
    ),
    "fill the disk with many files": (
        "i = 0\nwhile True:\n    i += 1\n    with open(f'/tmp/{i}', 'wb') as f: f.write(bytes(10 ** 6))",
        {"error: OSError", "timeout"},
    ),
    "lock the folder": ("import os\nos.chmod('/tmp', 0)\nassert False", {"assertion"}),
    "deep folders": (
        "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')",
        {"timeout", "error: OSError"},
    ),
    # text that is no program
    "no program": ("def f(:", {"error: SyntaxError"}),
    "not UTF-8": ("x = '\ud800'", {"error: UnicodeDecodeError"}),
    "zero byte": ("x = 1\0", {"error: SyntaxError", "error: ValueError"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def descendants(pid: int) -> set[int]:
    children: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
            if int(parent) == pid and state != "Z":
                children.add(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return children.union(*(descendants(child) for child in children))


@needs_bubblewrap
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_does_not_pass_and_leaves_nothing(sandbox: Sandbox, name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.write_text("untouched")
    code, reasons = HOSTILE[name]
    sandbox.run([GOOD])
    before = len(descendants(os.getpid()))
    verdict = sandbox.run([Program(code, timeout=1.0)])[0]
    assert not verdict.passed
    assert verdict.reason in reasons
    assert sandbox.run([GOOD] * 3) == [PASSED] * 3
    assert len(descendants(os.getpid())) <= before + 3 * len(os.sched_getaffinity(0))
    assert marker.read_text() == "untouched"


@needs_bubblewrap
def test_nothing_of_the_users_can_be_seen_or_changed(sandbox: Sandbox, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.write_text("secret")
    for path in (
        marker,
        Path(__file__),
        Path.home() / ".bashrc",
        sandbox_module.JUDGE,
        Path("/etc/hostname"),
    ):
        assert sandbox.run([Program(f"open({str(path)!r})")])[0].reason == "error: FileNotFoundError"
        assert not sandbox.run([Program(f"open({str(path)!r}, 'w')")])[0].passed
    assert marker.read_text() == "secret"
    os.environ["PEERTUNE_SECRET"] = "x"
    try:
        with Sandbox() as fresh:
            seen = "import os\nassert 'PEERTUNE_SECRET' not in os.environ\nassert os.getuid() == 65534\n"
            assert fresh.run([Program(seen + "assert os.listdir('.') == []")]) == [PASSED]
    finally:
        del os.environ["PEERTUNE_SECRET"]


@needs_bubblewrap
def test_no_process_outlives_its_program_or_the_sandbox() -> None:
    before = descendants(os.getpid())
    with Sandbox() as sandbox:
        threads = "import threading, time\nfor _ in '12345': threading.Thread(target=time.sleep, args=[9]).start()"
        assert sandbox.run([Program(threads)]) == [PASSED]
        judges = descendants(os.getpid()) - before
        assert sandbox.run([Program("while True: pass", 0.2)])[0].reason == "timeout"
        assert descendants(os.getpid()) - before == judges
    assert descendants(os.getpid()) - before == set()


@needs_bubblewrap
def test_a_program_sees_nothing_of_an_earlier_one(sandbox: Sandbox) -> None:
    writes = [
        "open('/tmp/x', 'w').write('x')",
        "import os\nos.mkdir('/tmp/x')\nos.chmod('/tmp/x', 0)",
        "import os\nos.chmod('/tmp', 0o500)",
        "import math, builtins\nmath.pi = 3\nbuiltins.abs = None",
        "import sys, types\nsys.modules['json'] = types.ModuleType('json')\nsys.setrecursionlimit(50)",
    ]
    look = "import os, math, json\nassert not os.listdir('.') and math.pi > 3.1 and abs(-1) and json.dumps\n"
    look += "open('y', 'w').write('y')\nassert os.listdir('.') == ['y']"
    for code in writes:
        assert sandbox.run([Program(code)]) == [PASSED]
        assert sandbox.run([Program(look)] * 3) == [PASSED] * 3


@needs_bubblewrap
@pytest.mark.parametrize(
    "code",
    [
        "",
        "print('x' * 10 ** 6)\nimport sys\nsys.stderr.write('x')",
        "if __name__ == '__main__':\n    done = True\nassert done",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 1\nassert A().x == 1",
        "import pickle\nclass A: pass\nassert isinstance(pickle.loads(pickle.dumps(A())), A)",
        "import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1",
        "import concurrent.futures as c\nwith c.ThreadPoolExecutor() as p: assert [*p.map(abs, [0])] == [0]",
        "import tempfile\nwith tempfile.TemporaryFile() as f:\n    f.write(b'x')",
        "import hashlib, random, datetime\nhashlib.md5(b'')\nrandom.random()\ndatetime.datetime.now()",
        "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)\nsignal.alarm(1)",
        "import os\ntry:\n    os.fork()\nexcept OSError:\n    pass",
        "def f(n): return n and f(n - 1)\nassert f(900) == 0",
        "x = 'é'\nassert len(x) == 1",
    ],
)  # fmt: skip
def test_a_good_program_passes(sandbox: Sandbox, code: str) -> None:
    assert sandbox.run([Program(code)]) == [PASSED]


@needs_bubblewrap
def test_verdicts_come_in_order_from_many_programs_and_threads(sandbox: Sandbox) -> None:
    programs = [Program(f"assert {i} % 3 == 0") for i in range(60)]
    expected = [PASSED if i % 3 == 0 else Verdict(False, "assertion") for i in range(60)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(sandbox.run, [programs] * 3)) == [expected] * 3
    assert sandbox.run([]) == []


@needs_bubblewrap
def test_the_same_program_gets_the_same_verdict_in_every_judge() -> None:
    order = "import sys\nassert list({'a', 'b', 'c', 'd', 'e', 'f'})[0] == 'a'"
    verdicts: set[Verdict] = set()
    for _ in range(4):
        with Sandbox() as sandbox:
            verdicts |= set(sandbox.run([Program(order)]))
    assert len(verdicts) == 1


@needs_bubblewrap
def test_a_judge_that_dies_or_falls_silent_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox() as sandbox:
        sandbox.run([GOOD] * 8)
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):  # it went with its parent
                os.kill(pid, 9)
        assert sandbox.run([GOOD] * 8) == [PASSED] * 8
        monkeypatch.setattr(sandbox_module, "PATIENCE", -0.9)  # the watchdog fires before the judge's own clock
        assert sandbox.run([Program("while True: pass", 1.0)]) == [Verdict(False, "timeout")]
        monkeypatch.undo()
        assert sandbox.run([GOOD] * 8) == [PASSED] * 8


@needs_bubblewrap
def test_a_sandbox_works_in_a_thread_after_the_one_that_first_used_it_has_gone(sandbox: Sandbox) -> None:
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(sandbox.run, [GOOD]).result() == [PASSED]


def test_without_bubblewrap_construction_says_the_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe() == (False, "bubblewrap is not installed")
    with pytest.raises(ConfigError, match="bubblewrap is not installed. Install bubblewrap .* `sandbox: unsafe`"):
        Sandbox()


def test_a_bubblewrap_that_does_not_work_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    works, why = probe()
    assert not works
    assert why.endswith("does not work here: bwrap: No permissions to create new namespace")


@pytest.mark.skipif(sys.platform != "linux", reason="the system-call filter is Linux's")
def test_unsafe_mode_keeps_limits_and_filter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    before = descendants(os.getpid())
    with Sandbox(allow_unsafe=True) as sandbox:
        assert sandbox.isolation == "rlimits only (unsafe)"
        for name in (
            "os._exit",
            "fork",
            "kill the judge",
            "network",
            "10 GB",
            "endless loop",
            "print the verdict",
        ):
            code, reasons = HOSTILE[name]
            assert sandbox.run([Program(code, 1.0)])[0].reason in reasons, name
            assert sandbox.run([GOOD]) == [PASSED]
        assert sandbox.run([Program("open('x', 'w').write('x')")] * 2) == [PASSED] * 2
        assert sandbox.run([Program("import os\nassert os.listdir('.') == []")] * 3) == [PASSED] * 3
    assert descendants(os.getpid()) == before
