"""Runs inside the sandbox (`sandbox.py`): reads programs on stdin, runs each in a child, answers a reason.

Only the standard library, and never imported by peertune. Request: `!dI` (seconds, length) + UTF-8 source.
Answer: `!?H` (is this judge still clean, length) + reason. The first answer, before any request, is "ready".
A judge whose folder was touched by a program answers "not clean" and ends: the next program gets a fresh one.
"""

import builtins
import ctypes
import fcntl
import gc
import importlib
import os
import platform
import random
import resource
import select
import signal
import struct
import sys
import types
from typing import NoReturn

MEMORY = 512 << 20  # bytes of address space a program may have
FILE = 8 << 20  # bytes in one file
OPEN_FILES = 64
THREADS = 256
# Imported before the first fork, so that a program pays nothing for them.
USUAL = [
    "array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum",
    "fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "queue", "random",
    "re", "statistics", "string", "textwrap", "threading", "typing",
]  # fmt: skip
ERRORS = {kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, BaseException)}
OWN_WORDS = {AssertionError: "assertion", MemoryError: "memory", SystemExit: "exit"}
REASONS = {OWN_WORDS.get(kind, f"error: {kind.__name__}") for kind in ERRORS} | {"passed"}

# System calls that a program may not make (x86_64, aarch64; None: that machine has no such call).
DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes: none may be started, stopped, read or slowed down
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "kcmp": (312, 272), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setsid": (112, 157), "setpgid": (109, 154), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # the network, and memory that outlives a program or that its limits do not count
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "shmget": (29, 194), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    # namespaces and mounts
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "open_tree": (428, 428), "move_mount": (429, 429),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    # kernel machinery with a history of holes
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "personality": (135, 92),
}  # fmt: skip
CLONE, CLONE3, NEWEST = (56, 220), 435, 452
KILL, TGKILL, PRLIMIT = (62, 129), (234, 131), (302, 261)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL_PROCESS, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
NUMBER, ARCH, FIRST_ARGUMENT, CLONE_THREAD = 0, 4, 16, 0x10000
SET_DUMPABLE, SET_SECCOMP, SET_NO_NEW_PRIVS, FILTER_MODE = 4, 22, 38, 2


def seccomp_filter(pid: int) -> bytes:
    """The BPF program (`struct sock_filter[]`) for the process `pid`. KeyError: no table for this machine."""
    column, arch = MACHINES[platform.machine()]
    steps = [(LOAD, 0, 0, ARCH), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL_PROCESS), (LOAD, 0, 0, NUMBER)]
    # Calls newer than this table, and the x32 numbers, do not exist; without clone3 the C library uses clone.
    steps += [(AT_LEAST, 0, 1, NEWEST), (RETURN, 0, 0, ENOSYS), (EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ENOSYS)]
    for numbers in DENIED.values():
        if (number := numbers[column]) is not None:
            steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, EPERM)]
    steps += [(EQUAL, 0, 4, CLONE[column]), (LOAD, 0, 0, FIRST_ARGUMENT), (ANY_BIT, 1, 0, CLONE_THREAD)]
    steps += [(RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]
    for numbers, zero in ((KILL, pid), (TGKILL, pid), (PRLIMIT, 0)):  # only to the process itself
        steps += [(EQUAL, 0, 5, numbers[column]), (LOAD, 0, 0, FIRST_ARGUMENT), (EQUAL, 2, 0, pid)]
        steps += [(EQUAL, 1, 0, zero), (RETURN, 0, 0, EPERM), (RETURN, 0, 0, ALLOW)]
    steps += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def prctl(option: int, *values: int | ctypes.c_void_p) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [*values, *[0] * (4 - len(values))]
    if libc.prctl(option, *(v if isinstance(v, ctypes.c_void_p) else ctypes.c_ulong(v) for v in padded)):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def apply_filter() -> None:
    code = ctypes.create_string_buffer(bpf := seccomp_filter(os.getpid()), len(bpf))
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; }
    header = ctypes.create_string_buffer(struct.pack("HP", len(bpf) // 8, ctypes.addressof(code)))
    prctl(SET_NO_NEW_PRIVS, 1)
    prctl(SET_SECCOMP, FILTER_MODE, ctypes.c_void_p(ctypes.addressof(header)))


def confine(timeout: float) -> None:
    """Put this process under its limits, for good."""
    seconds = int(timeout) + 2
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_NPROC, THREADS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    apply_filter()


def word(error: BaseException) -> str:
    """Names the nearest built-in exception: a class of the program's own could carry any text in its name."""
    kind = next(kind for kind in type(error).__mro__ if kind in ERRORS)
    return OWN_WORDS.get(kind, f"error: {kind.__name__}")


def child(source: bytes, timeout: float, token: bytes, pipe: int) -> NoReturn:
    """Run the program; once it is over, write token + reason to a descriptor that it was not told."""
    leave, write, module = os._exit, os.write, types.ModuleType("__main__")
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    report = fcntl.fcntl(pipe, fcntl.F_DUPFD_CLOEXEC, random.SystemRandom().randrange(16, OPEN_FILES - 1))
    os.closerange(3, report)
    os.closerange(report + 1, 1 << 16)
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    confine(timeout)
    sys.modules["__main__"] = module
    sys.argv = ["program"]
    passed = token + b"passed"
    try:
        exec(compile(source.decode(), "program", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        write(report, token + word(error).encode())
        leave(0)
    write(report, passed)
    leave(0)


def judge(source: bytes, timeout: float) -> str:
    """Run one program in a child: one of `REASONS`, or timeout, killed, vanished, tampered."""
    token = os.urandom(32)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child(source, timeout, token, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    watch = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    over = bool(poll.poll(timeout * 1000))
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    said = os.read(ours, 4096)
    os.close(watch)
    os.close(ours)
    if not over or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return "timeout"
    if not said:
        return "killed" if os.WIFSIGNALED(status) else "vanished"
    reason = said[len(token) :].decode("ascii", "replace")
    return reason if said.startswith(token) and reason in REASONS else "tampered"


def read_exactly(length: int) -> bytes:
    data = b""
    while len(data) < length:
        if not (more := os.read(0, length - len(data))):
            sys.exit(0)  # peertune has gone
        data += more
    return data


def answer(clean: bool, reason: str) -> None:
    os.write(1, struct.pack("!?H", clean, len(reason)) + reason.encode())


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prctl(SET_DUMPABLE, 0)  # a program has our user id: keep our memory and descriptors out of its reach
    for name in USUAL:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for source, expected in ((b"", "passed"), (b"import os; os.fork()", "error: PermissionError")):
        if (found := judge(source, 10.0)) != expected:
            sys.exit(f"a trial program ended with {found!r}, not {expected!r}")
    folder = os.open(".", os.O_PATH)  # a descriptor: a program may lock the folder
    changed = os.fstat(folder).st_ctime_ns
    answer(True, "ready")
    while True:
        timeout, length = struct.unpack("!dI", read_exactly(12))
        reason = judge(read_exactly(length), timeout)
        clean = os.fstat(folder).st_ctime_ns == changed
        answer(clean, reason)
        if not clean:
            return


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    main()
