"""Three organisations and a coordinator on this machine, with mutual TLS: `make deploy-demo`, about five minutes.

They run KNEXA on codelets. On the way one agent's process and the coordinator's are killed with -9. In the end the
ledger must be that of the same run in one place, hash for hash.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import yaml

from peertune.deploy.start import descendants
from peertune.ledger import Ledger

COMMAND = [sys.executable, "-c", "from peertune.cli import main; main()"]
CONFIG = {
    "rounds": 4,
    "task": {"type": "codelets", "test": 48},
    "agents": [
        {"name": "clinic", "model": "bundled/gpt2"},
        {"name": "lab", "model": "bundled/qwen2"},
        {"name": "school", "model": "bundled/gpt_neox"},
    ],
    "method": {"type": "knexa"},
    "budget": {"warm_start_steps": 20, "local_steps": 4, "exchange_steps": 8},
    "evaluation": {"every": 4},
}
KILLED = ("lab", "coordinator")  # whose process, one a job, as soon as that has begun a round


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "deploy-demo")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file, kits = folder / "demo.yaml", folder / "kits"
    file.write_text(yaml.safe_dump(CONFIG))
    port = str(free_port())
    address = ["--host", "localhost", "--port", port]
    subprocess.run([*COMMAND, "provision", file, *address, "--to", kits, "--central"], check=True)
    with ExitStack() as running:
        parties = {"coordinator": running.enter_context(Party(kits / "coordinator", "coordinator"))}
        for agent in CONFIG["agents"]:
            parties[agent["name"]] = running.enter_context(Party(kits / agent["name"], "join"))
        follow([*COMMAND, "run", file, "--on", kits / "submitter", "--name", "demo"], parties)
    subprocess.run([*COMMAND, "run", file, "--name", "alone", "--runs", folder], check=True, stdout=subprocess.DEVNULL)
    apart, alone = (Ledger.read(run / "ledger.sqlite") for run in (kits / "coordinator/runs/demo", folder / "alone"))
    say(f"the ledger across organisations  {apart.head}")
    say(f"the ledger in one place          {alone.head}")
    if apart.head != alone.head:
        raise SystemExit("they differ")
    subprocess.run([*COMMAND, "show", "demo", "--runs", kits / "coordinator" / "runs"], check=True)


class Party:
    """What one organisation runs."""

    def __init__(self, kit: Path, command: str) -> None:
        self._kit, self._command = kit, command

    def __enter__(self) -> "Party":
        with (self._kit.parent / f"{self._kit.name}.log").open("wb") as log:
            command = [*COMMAND, self._command, self._kit, "--yes"]
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.terminate()
        self._process.wait()

    def kill_job(self) -> None:
        """kill -9 of the process that FLARE has started for the run."""
        for pid in descendants(self._process.pid):
            if any(part in Path(f"/proc/{pid}/cmdline").read_text() for part in ("worker_process", "runner_process")):
                os.kill(pid, signal.SIGKILL)


def follow(command: list[str | Path], parties: dict[str, Party]) -> None:
    """Show what a run tells, and disturb it."""
    left, armed, began = list(KILLED), False, time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            say(f"{time.monotonic() - began:6.1f} s  {line.strip()}")
            armed = armed or ": job " in line
            if armed and left and "knexa: round" in line:
                armed = False
                say(f"          kill -9 {left[0]}")
                parties[left.pop(0)].kill_job()
    if process.returncode:
        raise SystemExit(process.returncode)


def say(line: str) -> None:
    print(line, flush=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
