"""One run of a study in a process of its own, started by `jobs.py` as `python -m peertune.studies.worker FD`.

`FD` is its end of a socket pair. It is told once what to run; any later message asks it to stop after the round. It
says which arms are finished, and why it failed, as JSON.
"""

import ctypes
import json
import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peertune.config.schema import Config
from peertune.errors import PeertuneError
from peertune.experiment import START, Experiment, Interrupted

NICE = 10  # a study takes hours: whoever works on the machine goes first


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed study leaves no runs behind
    os.nice(NICE)
    connection = Connection(int(sys.argv[1]))
    order = json.loads(connection.recv_bytes())
    try:
        work(Path(order["folder"]), Config.model_validate_json(order["config"]), connection)
    except Interrupted:
        _say(connection, stopped=True)
    except PeertuneError as error:
        _say(connection, failed=" ".join(str(error).split()))


def work(folder: Path, config: Config, connection: Connection) -> None:
    """Begin the run, or go on with it, to its end. Raises `Interrupted` after the round in which it was asked to."""

    def watch(event: str, body: dict[str, Any]) -> None:
        while connection.poll():
            connection.recv_bytes()
            experiment.request_stop()
        if event == "round" and body["last"] and body["arm"] != START:
            _say(connection, arm=body["arm"])

    experiment = Experiment.reopen(folder, watch) if folder.exists() else Experiment.create(folder, config, watch)
    experiment.run()


def _say(connection: Connection, **message: Any) -> None:
    connection.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    main()
