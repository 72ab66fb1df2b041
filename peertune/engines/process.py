"""The coordinator's end of a worker: a process of its own, or (inline) none at all."""

import os
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection

import msgspec

from peertune.engines.worker import Message, Reply, Server

# one intra-op thread a worker: two on a busy 2-core machine were seen 18 times slower; cuBLAS repeats its sums only
# with a fixed workspace
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


class Process:
    """A worker process, which runs `module`, and the pipe to it."""

    def __init__(self, environment: dict[str, str], module: str = "peertune.engines.worker") -> None:
        ours, theirs = socket.socketpair()
        # Ctrl-C is the coordinator's to handle, but a terminal sends it to all: a worker inherits that it is blocked
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # stdout is for the run's events; what a library prints goes to stderr
                env={**os.environ, **ENVIRONMENT, **environment},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self.connection, self._stopping = Connection(ours.detach()), threading.Lock()

    def send(self, message: Message) -> None:
        self.connection.send_bytes(msgspec.msgpack.encode(message))

    def receive(self) -> Reply:
        """The next reply. Raises `EOFError` if the process died."""
        try:
            return msgspec.msgpack.decode(self.connection.recv_bytes(), type=Reply)
        except OSError:  # it died with a request unread, or in the middle of its reply
            raise EOFError from None

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        with self._stopping:  # a site is closed while its own thread finds out that the process has ended
            self._process.kill()
            self._process.wait()
            self.connection.close()  # after its end: another thread may be reading


class Inline:
    """A worker without a process: answers at once, has no deadline."""

    connection = None

    def __init__(self) -> None:
        self._server = Server()
        self._reply: Reply | None = None

    def send(self, message: Message) -> None:
        self._reply = self._server.handle(message)

    def receive(self) -> Reply:
        assert self._reply is not None
        return self._reply

    def stop(self) -> None:
        self._reply = None
