"""What runs at a party: FLARE's process, started from a kit, and again when it dies."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from peertune.deploy.kit import harden
from peertune.errors import ConfigError, PeertuneError

QUICK = 60.0  # seconds; a process that ends sooner has not worked
ATTEMPTS = 5  # of which so many in a row are enough
LOCK = "lock"  # in a kit that is running
PAUSE = 3.0  # seconds before the next


def launch(kit: Path, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the process that `kit` is for. Raises `ConfigError` if it is no kit."""
    harden(kit)
    script = kit.resolve() / "startup" / "sub_start.sh"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    stream = log.open("ab") if log else None
    try:
        return subprocess.Popen(
            ["bash", str(script), "--once"],
            env={**os.environ, "PATH": path, "NVFLARE_SECURE_LOGGING": "true"},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT if stream else None,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise ConfigError(f"{kit} cannot be started ({error.strerror}: {error.filename})") from None
    finally:
        if stream:
            stream.close()


def keep_running(kit: Path, tell: Callable[[str], None]) -> None:
    """Run `kit` until SIGTERM or Ctrl-C, whatever happens to its process.

    Raises `ConfigError` if it runs already, `PeertuneError` if its process dies at once, again and again.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with alone(kit):
        _start_again_and_again(kit, tell)


@contextmanager
def alone(kit: Path) -> Iterator[None]:
    """Meanwhile nothing else runs from `kit`, nor changes it. Raises `ConfigError`."""
    with (kit / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{kit} is running already; stop that first, one kit is for one process") from None
        yield


def is_running(kit: Path) -> bool:
    """Does a process keep `kit` running?"""
    path = kit / LOCK
    if not path.exists():
        return False
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def _start_again_and_again(kit: Path, tell: Callable[[str], None]) -> None:
    quick = 0
    while True:
        began = time.monotonic()
        process = launch(kit)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            end_tree(process.pid)
            process.wait()
            return
        quick = quick + 1 if time.monotonic() - began < QUICK else 1
        end_tree(process.pid)
        if quick >= ATTEMPTS:
            raise PeertuneError(f"{kit} ended {quick} times at once, the last time with {code}; read {kit / 'log.txt'}")
        tell(f"the process of {kit.name} ended with {code}; it is started again")
        time.sleep(PAUSE)


def end_tree(pid: int) -> None:
    """Kill a process and all that came of it; FLARE gives every job a process group of its own."""
    for child in descendants(pid):
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The process and all below it, as long as they are there."""
    found, place = [pid], 0
    while place < len(found):
        with suppress(OSError):
            for task in Path(f"/proc/{found[place]}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        place += 1
    return found
