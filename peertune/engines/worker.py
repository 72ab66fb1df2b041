"""One worker process of the local engine: a Host behind a pipe, one message at a time.

Started as `python -m peertune.engines.worker FD`; `FD` is its end of a socket pair. Messages are msgpack of the
types below.
"""

import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from peertune.engines.base import Argument, Entry, Fields, Host, Ref, Resident, fields_of
from peertune.errors import AgentError, PeertuneError


class Start(msgspec.Struct, tag=True):
    """Build the named agents with `builder` ("module:function") from `spec`."""

    builder: str
    spec: bytes
    names: list[str]


class Call(msgspec.Struct, tag=True):
    ref: Ref
    args: list[Argument]


class Release(msgspec.Struct, tag=True):
    ref: Ref
    caller: str


class Clear(msgspec.Struct, tag=True):
    pass


class Started(msgspec.Struct, tag=True):
    """`facts` of each agent, as its builder reports them."""

    facts: list[dict[str, Any]]


class Refused(msgspec.Struct, tag=True):
    """The agents could not be built; `message` is for the user."""

    message: str
    exit_code: int


def refused(what: str, error: Exception) -> Refused:
    """What others are told when `what` could not be done: one line. The text of an unforeseen error may quote private
    data, so of that only where it happened is printed, here.
    """
    if isinstance(error, PeertuneError):
        return Refused(str(error), error.exit_code)
    traceback.print_tb(error.__traceback__)
    return Refused(f"{what} failed ({type(error).__name__})", 1)


class Done(msgspec.Struct, tag=True):
    """A call has run. `seconds` are (wall, CPU)."""

    rows: list[Entry]
    failure: Fields | None
    seconds: tuple[float, float]


class Value(msgspec.Struct, tag=True):
    """An answer, and the verdict of its owner's guard."""

    raw: bytes
    verdict: str = ""


class Withheld(msgspec.Struct, tag=True):
    failure: Fields


Message = Start | Call | Release | Clear
Reply = Started | Refused | Done | Value | Withheld
Builder = Callable[[bytes, list[str]], tuple[dict[str, Resident], list[dict[str, Any]]]]


class Server:
    """Answers messages; the same object serves a worker process and, inline, the coordinator's own process."""

    def __init__(self) -> None:
        self._host = Host({})

    def handle(self, message: Message) -> Reply:
        match message:
            case Start():
                return self._start(message)
            case Call():
                wall, cpu = time.monotonic(), time.process_time()
                rows, failure = self._host.run(message.ref, message.args)
                seconds = (time.monotonic() - wall, time.process_time() - cpu)
                return Done(rows, fields_of(failure) if failure else None, seconds)
            case Release():
                try:
                    return Value(self._host.release(message.ref, message.caller), self._host.verdict(message.ref))
                except AgentError as error:
                    return Withheld(fields_of(error))
            case Clear():
                self._host.clear()
                return Value(b"")

    def _start(self, message: Start) -> Started | Refused:
        try:
            agents, facts = load_builder(message.builder)(message.spec, message.names)
        except Exception as error:
            return refused(f"building {', '.join(message.names)}", error)
        self._host = Host(agents)
        return Started(facts)


def load_builder(path: str) -> Builder:
    """The function that "module:function" names."""
    module, _, function = path.partition(":")
    return getattr(importlib.import_module(module), function)


def main() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed coordinator leaves no workers behind
    connection = Connection(int(sys.argv[1]))
    server, decoder, encoder = Server(), msgspec.msgpack.Decoder(Message), msgspec.msgpack.Encoder()
    while True:
        try:
            message = decoder.decode(connection.recv_bytes())
        except EOFError:  # the coordinator closed the pipe
            os._exit(0)
        connection.send_bytes(encoder.encode(server.handle(message)))


if __name__ == "__main__":
    main()
