"""FLARE's simulator: a process for every site, on this machine, without certificates."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from peertune.deploy.job import ALLOWED

HERE = Path(__file__).parent
TESTED = ("flare_parts.", "flare_small.")  # classes of tests that jobs may name, by prefix


class Simulator:
    """Runs one job until `wait`, or until `stop`. `environment`: of all its processes."""

    def __init__(self, folder: Path, job: Path, sites: Sequence[str], environment: Mapping[str, str]) -> None:
        workspace = folder / "simulator"
        (workspace / "local").mkdir(parents=True)
        resources = {"format_version": 2, "class_allow_list": [*ALLOWED, *TESTED]}
        (workspace / "local" / "resources.json").write_text(json.dumps(resources))
        command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(job), "-w", str(workspace)]
        self.log = folder / "simulator.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "-c", ",".join(sites), "-n", str(len(sites)), "-t", str(len(sites)), "-l", "concise"],
                env={**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until(self, path: Path, seconds: float = 120.0) -> None:
        """Wait for a file that the job writes."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert self._process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def wait(self, seconds: float = 300.0) -> int:
        return self._process.wait(seconds)

    def stop(self) -> None:
        """End all its processes, now."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
