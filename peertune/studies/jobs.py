"""The runs of a study: each is begun, gone on with or skipped, in a worker process of one thread, and can be stopped.

A run that fails costs itself only. Nothing is lost when the study is stopped or killed: its runs are ordinary ones,
and go on from their last whole round.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from peertune.config.schema import Config
from peertune.engines.process import ENVIRONMENT
from peertune.errors import ConfigError
from peertune.ledger import Ledger
from peertune.runs import LEDGER, stored_config

Heard = Callable[[str, str], None]  # told (job, arm) when an arm is finished


@dataclass(frozen=True, slots=True)
class Job:
    """One configuration under one seed: an ordinary run in `folder`."""

    folder: Path
    config: Config

    @property
    def name(self) -> str:
        return self.folder.name

    def finished(self) -> set[str]:
        """The arms that have been run to their end."""
        if not (self.folder / LEDGER).is_file():
            return set()
        ledger = Ledger.read(self.folder / LEDGER)
        done = {event.arm for event in ledger.events("done")}
        ledger.close()
        return done & set(self.config.arms())


def check_same_version(job: Job) -> None:
    """Raise `ConfigError` if the job's folder holds a run of another configuration; only `engine` may differ."""
    if not job.folder.exists():
        return
    there, here = (
        config.model_dump(mode="json", exclude={"engine"}) for config in (stored_config(job.folder), job.config)
    )
    if difference := _first_difference(there, here, ""):
        raise ConfigError(
            f"{job.folder} was run with another configuration ({difference}); name another folder with --to, or put "
            f"the configuration back"
        )


def _first_difference(there: Any, here: Any, place: str) -> str:
    """Where two configurations differ, and how; empty if they do not."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in dict.fromkeys([*there, *here]):
            if there.get(key) != here.get(key):
                return _first_difference(there.get(key), here.get(key), f"{place}.{key}".lstrip("."))
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (left, right) in enumerate(zip(there, here, strict=True)):
            if left != right:
                return _first_difference(left, right, f"{place}.{index}")
    return "" if there == here else f"{place}: {_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


class Crew:
    """Runs jobs, at most `places` at once; what their processes print goes to `log`. `failures`: job -> one line."""

    def __init__(self, places: int, log: Path, heard: Heard) -> None:
        self.failures: dict[str, str] = {}
        self.stopping = False
        self._places, self._log, self._heard = places, log, heard
        self._running: dict[Connection, tuple[Job, subprocess.Popen[bytes]]] = {}

    def run(self, jobs: Iterable[Job], seconds: float | None = None) -> None:
        """Run them all; after `seconds`, or a `stop`, begin no more and end the running ones after their round."""
        waiting, began = deque(jobs), time.monotonic()
        try:
            while True:
                left = None if seconds is None else began + seconds - time.monotonic()
                if left is not None and left <= 0 and not self.stopping:
                    self.stop()
                while waiting and len(self._running) < self._places and not self.stopping:
                    self._start(waiting.popleft())
                if not self._running:
                    return
                for connection in wait(list(self._running), None if self.stopping else left):
                    self._receive(connection)  # pyright: ignore[reportArgumentType]
        finally:
            for _, process in self._running.values():
                process.kill()
                process.wait()

    def stop(self) -> None:
        """Begin no more jobs; those that run stop after their round. May be called by a signal's handler."""
        self.stopping = True
        for connection in list(self._running):
            self._ask_to_stop(connection)

    def _ask_to_stop(self, connection: Connection) -> None:
        with suppress(OSError):  # it has just ended
            connection.send_bytes(b"stop")

    def _start(self, job: Job) -> None:
        ours, theirs = socket.socketpair()
        # a terminal sends Ctrl-C to all: the study tells its jobs, which inherit that the signal is blocked
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with self._log.open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "peertune.studies.worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **ENVIRONMENT},
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        connection = Connection(ours.detach())
        order = {"folder": str(job.folder), "config": job.config.model_dump_json()}
        with suppress(OSError):  # it has ended already, which its exit code will tell
            connection.send_bytes(json.dumps(order).encode())
        self._running[connection] = (job, process)
        if self.stopping:
            self._ask_to_stop(connection)

    def _receive(self, connection: Connection) -> None:
        job, process = self._running[connection]
        try:
            message = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            del self._running[connection]
            connection.close()
            if code := process.wait():
                self.failures[job.name] = f"its process ended with exit code {code}; {self._log} may say why"
            return
        if "failed" in message:
            self.failures[job.name] = message["failed"]
        elif "arm" in message:
            self._heard(job.name, message["arm"])
