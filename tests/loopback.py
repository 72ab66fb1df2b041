"""A provisioned federation on this machine: every party a kit and processes of its own, mutual TLS over loopback."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from apart import free_port

from peertune.config.schema import Config
from peertune.deploy.provision import provision
from peertune.deploy.start import descendants, end_tree, launch


class Loopback:
    """Kits in `folder`/kits, and the processes that were started from them. `make`: makes the kits."""

    def __init__(self, folder: Path, config: Config, make: Callable[..., dict[str, Path]] = provision) -> None:
        self.folder = folder
        self.kits = make(config, "loopback", ("localhost", free_port()), folder / "kits")
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def submitter(self) -> Path:
        return self.kits["submitter"]

    def start(self, *names: str) -> None:
        """These, or all that run."""
        for name in names or [name for name in self.kits if name != "submitter"]:
            self._running[name] = launch(self.kits[name], self.folder / f"{name}.log")

    def kill(self, name: str) -> None:
        """kill -9 of all processes of one kit."""
        process = self._running.pop(name)
        end_tree(process.pid)
        process.wait()

    def job_process(self, name: str) -> int:
        """The process of that kit's job, as soon as it is there."""
        parent, end = self._running[name].pid, time.monotonic() + 60
        while time.monotonic() < end:
            for pid in descendants(parent)[1:]:
                if any(part in command_of(pid) for part in ("worker_process", "runner_process")):
                    return pid
            time.sleep(0.1)
        raise AssertionError(f"{name} has no job process")

    def stop(self) -> None:
        for name in list(self._running):
            self.kill(name)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
