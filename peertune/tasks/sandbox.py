"""Runs programs that a model wrote, where they can do no harm, and tells which of them ran to their end.

Each program runs in a process of its own, forked by a judge (`judge.py`) that stays alive inside bubblewrap:
no network, no files but a read-only Python and 16 MB in memory, no other processes, no output, limits on time
and memory, and a system-call filter. A judge whose files a program has touched is replaced.

What a verdict is worth. A program that leaves early (`os._exit`, `sys.exit`, a signal), prints a verdict or
writes to every descriptor does not pass: passing takes a random token, sent when the program is over. But the
token, like the asserts of a test, lies in the memory of the process that runs the answer. A program written
to search the interpreter's frames for it, or to return objects that equal everything, is contained and still
passes. A pass is good evidence about an answer, no proof against an adversary who is paid by the pass.
"""

import contextlib
import functools
import os
import queue
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from peertune.errors import ConfigError, PeertuneError

JUDGE = Path(__file__).with_name("judge.py")
PATIENCE = 15.0  # seconds beyond a program's own time after which a silent judge is killed
ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "/usr/bin", "PYTHONHASHSEED": "0"}


@dataclass(frozen=True, slots=True)
class Program:
    """A whole program; it passes if it reaches its end without an exception in `timeout` seconds (wall)."""

    code: str
    timeout: float = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the program passed, and why not; never text of the program.

    `reason` is "passed", "assertion", "memory", "exit" (SystemExit), "error: " and the nearest built-in
    exception, "timeout", "killed" (by a signal), "vanished" (ended without a word) or "tampered".
    """

    passed: bool
    reason: str


def _python() -> list[str]:
    """The interpreter alone, without site-packages. Not -I: it would ignore the fixed PYTHONHASHSEED."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [os.path.join(sys.base_prefix, "bin", name), "-P", "-s", "-S", "-B"]


def _bubblewrap() -> list[str]:
    """The command that runs the judge inside bubblewrap: no /proc, and nothing but /tmp can be written."""
    command = [
        "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534",
        "--cap-drop", "ALL", "--new-session", "--die-with-parent", "--hostname", "sandbox",
        "--dev-bind", "/dev/null", "/dev/null", "--dev-bind", "/dev/urandom", "/dev/urandom",
    ]  # fmt: skip
    python = _python()[0] if sys.base_prefix == "/usr" else sys.base_prefix
    for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", python):
        command += ["--ro-bind-try", path, path]
    command += ["--ro-bind", str(JUDGE), "/judge.py", "--size", str(16 << 20), "--tmpfs", "/tmp"]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", *_python(), "/judge.py", "/tmp"]


@functools.cache
def _trial(bwrap: str) -> tuple[bool, str]:
    command = [bwrap, *_bubblewrap()[1:]]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=ENVIRONMENT, timeout=60)
    except subprocess.TimeoutExpired:
        return False, "bubblewrap did not answer within 60 s"
    if done.returncode == 0 and done.stdout.endswith(b"ready"):
        return True, "bubblewrap works"
    lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
    return False, f"bubblewrap (0.8 or later is needed) is installed but does not work here: {lines[-1]}"


def probe() -> tuple[bool, str]:
    """Whether programs can be run under bubblewrap on this machine, and one line that says so or why not."""
    bwrap = shutil.which("bwrap")
    return _trial(bwrap) if bwrap else (False, "bubblewrap is not installed")


class _JudgeDied(Exception):
    """The judge ended without an answer."""


class _Judge:
    """One judge process; started when needed, again after it has died, was stopped or is no longer clean."""

    def __init__(self, bubblewrap: bool, starter: ThreadPoolExecutor) -> None:
        self._bubblewrap, self._starter = bubblewrap, starter
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: str | None = None

    def ask(self, program: Program) -> Verdict:
        """A judge that dies is asked once more: it may be the machine's fault, not the program's."""
        for _ in range(2):
            try:
                return self._ask(program)
            except _JudgeDied:
                self.stop()
            except TimeoutError:
                self.stop()
                return Verdict(False, "timeout")
        return Verdict(False, "killed")

    def _ask(self, program: Program) -> Verdict:
        process = self._process or self._start()
        source = program.code.encode("utf-8", "surrogatepass")
        assert process.stdin
        try:
            process.stdin.write(struct.pack("!dI", program.timeout, len(source)) + source)
            process.stdin.flush()
        except BrokenPipeError as error:
            raise _JudgeDied from error
        clean, reason = self._answer(process, program.timeout + PATIENCE)
        if not clean:
            self.stop()
        return Verdict(reason == "passed", reason)

    def _start(self) -> subprocess.Popen[bytes]:
        self._folder = None if self._bubblewrap else tempfile.mkdtemp(prefix="peertune-")
        command = _bubblewrap() if self._folder is None else [*_python(), str(JUDGE), self._folder]
        # The kernel ends bubblewrap with the *thread* that started it: a thread that outlives runs starts it.
        self._process = self._starter.submit(
            subprocess.Popen,
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            start_new_session=True,
        ).result()
        try:
            self._answer(self._process, 60.0)
        except (_JudgeDied, TimeoutError) as error:
            self.stop()
            raise PeertuneError("a sandbox that worked does not start any more; `peertune doctor` tests it") from error
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], seconds: float) -> tuple[bool, str]:
        assert process.stdout
        pipe, deadline, data = process.stdout.fileno(), time.monotonic() + seconds, b""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while len(data) < 3 or len(data) < 3 + struct.unpack_from("!?H", data)[1]:
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            if not (more := os.read(pipe, 4096)):
                raise _JudgeDied
            data += more
        return struct.unpack_from("!?H", data)[0], data[3:].decode("ascii")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin and process.stdout
            with contextlib.suppress(BrokenPipeError):  # a request that a dead judge did not read
                process.stdin.close()
            process.stdout.close()
            try:  # without requests it ends by itself; killed, it leaves a zombie where init does not reap
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _close(judges: Sequence[_Judge], starter: ThreadPoolExecutor) -> None:
    for judge in judges:
        judge.stop()
    starter.shutdown()


class Sandbox:
    """Runs programs, as many at once as the process has cores. Safe to use from several threads.

    Raises `ConfigError` if bubblewrap does not work here, unless `allow_unsafe`: then programs run with the
    same limits and system-call filter (no network, no child processes), but can read and change your files.
    """

    isolation: str

    def __init__(self, allow_unsafe: bool = False) -> None:
        works, why = probe()
        if not works and not allow_unsafe:
            raise ConfigError(
                f"this task runs programs that models wrote and needs a sandbox for them, but {why}. "
                "Install bubblewrap (`apt install bubblewrap`) where users may create namespaces, "
                "or allow unsafe execution with `sandbox: unsafe` in the configuration."
            )
        self.isolation = "bubblewrap" if works else "rlimits only (unsafe)"
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox")
        self._judges = [_Judge(works, self._starter) for _ in range(len(os.sched_getaffinity(0)))]
        self._idle: queue.LifoQueue[_Judge] = queue.LifoQueue()
        for judge in self._judges:
            self._idle.put(judge)
        self._finalizer = weakref.finalize(self, _close, self._judges, self._starter)

    def run(self, programs: Sequence[Program]) -> list[Verdict]:
        """One verdict for each program, in order. No program can see another."""
        if not programs:
            return []
        with ThreadPoolExecutor(min(len(programs), len(self._judges))) as pool:
            return list(pool.map(self._run, programs))

    def _run(self, program: Program) -> Verdict:
        judge = self._idle.get()
        try:
            return judge.ask(program)
        finally:
            self._idle.put(judge)

    def close(self) -> None:
        """End all judges, as the end of the sandbox's life does."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
