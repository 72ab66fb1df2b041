"""What stands in for the parts of a job in tests: toy agents at real sites, and a coordinator that others can speak
through.
"""

import os
import threading
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path

import msgspec
from nvflare.collab import collab
from toy_sites import home

from peertune.deploy.parts import FlareSite, Participant
from peertune.engines.post import Line
from peertune.engines.seal import Plain, Seal
from peertune.engines.site import Home

FOLDER = "TOYS"  # the environment variable that names the toys' folder
SOCKET = "bridge"
DEADLINE = 3.0


class ToySite(FlareSite):
    """A site whose agent is a toy."""

    secure = False

    def _seal(self) -> Seal:
        return Plain()

    def _home(self) -> Home:
        return home(collab.site_name, Path(os.environ[FOLDER]), DEADLINE)


class Bridge(Participant):
    """Asks the sites what another process wants to know, until that is gone."""

    secure = False

    @collab.main
    def coordinate(self) -> None:
        lines = self.lines()
        path = Path(os.environ[FOLDER]) / SOCKET
        with Listener(str(path)) as listener:
            (path.parent / "session").write_text(self.session())
            while (connection := listener.accept()).recv_bytes() == b"line":
                threading.Thread(target=_serve, args=(connection, lines), daemon=True).start()
        path.with_name("session").unlink()


def _serve(connection: Connection, lines: dict[str, Line]) -> None:
    while True:
        try:
            name, verb, message, seconds = msgspec.msgpack.decode(connection.recv_bytes())
        except EOFError:
            return
        try:
            connection.send_bytes(b"+" + lines[name](verb, message, seconds))
        except (ConnectionError, TimeoutError) as error:
            connection.send_bytes(b"-" + str(error).encode())


class Crossing:
    """The other end: lines through a bridge."""

    def __init__(self, folder: Path) -> None:
        self._path, self._own = str(folder / SOCKET), threading.local()

    def line(self, name: str) -> Line:
        def carry(verb: str, message: bytes, seconds: float) -> bytes:
            connection = self._connection()
            connection.send_bytes(msgspec.msgpack.encode([name, verb, message, seconds]))
            answer = connection.recv_bytes()
            if answer[:1] == b"-":
                raise ConnectionError(answer[1:].decode())
            return answer[1:]

        return carry

    def close(self) -> None:
        with Client(self._path) as connection:
            connection.send_bytes(b"stop")

    def _connection(self) -> Connection:
        if not hasattr(self._own, "connection"):
            self._own.connection = Client(self._path)
            self._own.connection.send_bytes(b"line")
        return self._own.connection


class SealedToySite(ToySite):
    """With certificates: end to end."""

    secure = True


class SealedBridge(Bridge):
    secure = True
