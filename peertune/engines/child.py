"""The process that a site's agent lives in, and the site's end of it.

It is a worker that hands out answers while a call runs: another agent need not wait until this one has trained. Started
as `python -m peertune.engines.child FD`.
"""

import ctypes
import os
import queue
import signal
import sys
import threading
from multiprocessing.connection import Connection

import msgspec

from peertune.engines.process import Process
from peertune.engines.worker import (
    Call,
    Clear,
    Done,
    Message,
    Refused,
    Release,
    Reply,
    Server,
    Start,
    Started,
    Value,
    Withheld,
)


class Child:
    """One agent's process. One thread at a time may `ask`, and one may ask `aside`, meanwhile."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = Process(environment, "peertune.engines.child")
        self._replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._asides: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._sending = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def ask(self, message: Start | Call, seconds: float | None = None) -> Started | Refused | Done:
        """Raises `EOFError` if the process ended, `TimeoutError` if it did not answer in time."""
        reply = self._exchange(message, self._replies, seconds)
        assert isinstance(reply, Started | Refused | Done)
        return reply

    def aside(self, message: Release | Clear) -> Value | Withheld:
        """Raises `EOFError` if the process ended."""
        reply = self._exchange(message, self._asides, None)
        assert isinstance(reply, Value | Withheld)
        return reply

    @property
    def ended(self) -> bool:
        return self._process.ended

    def stop(self) -> None:
        self._process.stop()

    def _exchange(self, message: Message, replies: "queue.SimpleQueue[Reply | None]", seconds: float | None) -> Reply:
        try:
            with self._sending:
                self._process.send(message)
            reply = replies.get(timeout=seconds)
        except OSError:
            raise EOFError from None
        except queue.Empty:
            raise TimeoutError from None
        if reply is None:
            replies.put(None)  # for whoever asks again
            raise EOFError
        return reply

    def _listen(self) -> None:
        while True:
            try:
                reply = self._process.receive()
            except EOFError:
                break
            (self._asides if isinstance(reply, Value | Withheld) else self._replies).put(reply)
        self._replies.put(None)
        self._asides.put(None)


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed site leaves no agent behind
    connection, server = Connection(int(sys.argv[1])), Server()
    calls: queue.SimpleQueue[Message] = queue.SimpleQueue()
    sending = threading.Lock()

    def answer(message: Message) -> None:
        reply = msgspec.msgpack.encode(server.handle(message))
        with sending:
            connection.send_bytes(reply)

    def read() -> None:
        decoder = msgspec.msgpack.Decoder(Message)
        while True:
            try:
                message = decoder.decode(connection.recv_bytes())
            except EOFError:  # the site closed the pipe
                os._exit(0)
            if isinstance(message, Start | Call):
                calls.put(message)
            else:
                answer(message)

    threading.Thread(target=read, daemon=True).start()
    while True:
        answer(calls.get())


if __name__ == "__main__":
    main()
