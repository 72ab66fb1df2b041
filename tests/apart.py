"""A federation that is set up the distributed way, through the commands, as people would do it."""

import json
import shutil
import socket
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from peertune.cli import app
from peertune.config.schema import Config
from peertune.errors import ConfigError, PeertuneError

NAMES = ("clinic", "lab")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def study(*names: str, **changes: Any) -> dict[str, Any]:
    agents = [{"name": name, "model": "bundled/gpt2"} for name in names or NAMES]
    return {"task": {"type": "codelets"}, "agents": agents, "method": {"type": "local"}} | changes


def peertune(*words: object, answer: str = "") -> Result:
    """The command, which may refuse; but not break."""
    result = CliRunner().invoke(app, [str(word) for word in words], input=answer)
    if result.exception and not isinstance(result.exception, PeertuneError | SystemExit):
        raise result.exception
    return result


def ok(*words: object, answer: str = "") -> str:
    result = peertune(*words, answer=answer)
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.output


def refused(*words: object, kind: type[PeertuneError] = ConfigError) -> str:
    """One line, and exit code 2."""
    result = peertune(*words)
    assert isinstance(result.exception, kind) and result.exception.exit_code == 2, (result.output, result.exception)
    message = str(result.exception)
    assert "\n" not in message
    return message


class Apart:
    """Folders for the organiser and each site; `organiser_saw` is every file that was ever at the first."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kits = folder, folder / "organiser" / "kits"
        self.list = self.kits / "peertune.members"
        self.organiser_saw: set[bytes] = set()

    def found(self, config: dict[str, Any], host: str = "localhost", port: int = 8443) -> None:
        self.kits.parent.mkdir(parents=True)
        ok("provision", self._file(config), "--host", host, "--port", port, "--to", self.kits)
        self.note()

    def kit(self, name: str) -> Path:
        return self.kits / name if name in ("coordinator", "submitter") else self.folder / name / "kit"

    def request(self, name: str) -> Path:
        """The site is sent its invitation, and sends its request."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        invitation = shutil.copy(self.kits / "invitations" / f"{name}.invitation", place)
        ok("request", invitation, "--to", self.kit(name))
        return self.send(name)

    def send(self, name: str) -> Path:
        """A site's request goes to the organiser."""
        return Path(shutil.copy(self.kit(name).with_name(f"{name}.request"), self.kits.parent))

    def approve(self, *requests: Path, changed: str = "") -> None:
        ok("approve", *requests, "--kits", self.kits, "--yes", *(["--changed", changed] if changed else []))
        self.note()

    def accept(self, *names: str, changed: str = "") -> None:
        for name in names:
            ok("accept", self.kit(name), self.list, "--yes", *(["--changed", changed] if changed else []))

    def reconfigure(self, config: dict[str, Any]) -> None:
        ok("reconfigure", self._file(config), "--kits", self.kits)
        self.note()

    def note(self) -> None:
        found = self.kits.parent.rglob("*")
        self.organiser_saw |= {path.read_bytes() for path in found if path.is_file()}

    def _file(self, config: dict[str, Any]) -> Path:
        path = self.kits.parent / "study.yaml"
        path.write_text(json.dumps(config))
        return path


def apart(config: Config, project: str, address: tuple[str, int], to: Path) -> dict[str, Path]:
    """All kits, as `provision` gives them, but made the distributed way."""
    assert project
    parties = Apart(to)
    parties.found(json.loads(config.model_dump_json()), *address)
    parties.approve(*[parties.request(name) for name in config.parties()])
    parties.accept(*config.parties())
    return {name: parties.kit(name) for name in ("coordinator", "submitter", *config.parties())}


def two_sites(folder: Path) -> Apart:
    """A federation that clinic and lab have joined; only they have accepted."""
    parties = Apart(folder)
    parties.found(study(), port=free_port())
    parties.approve(*[parties.request(name) for name in NAMES])
    parties.accept(*NAMES)
    return parties


def all_asked(folder: Path) -> Path:
    """The organiser has founded a federation, and both sites have asked."""
    parties = Apart(folder)
    parties.found(study())
    for name in NAMES:
        parties.request(name)
    return parties.folder


def all_joined(asked: Path, to: Path) -> Path:
    """The same after both have been approved and have accepted, in a copy."""
    parties = copy(asked, to)
    parties.approve(*(parties.kits.parent / f"{name}.request" for name in NAMES))
    parties.accept(*NAMES)
    return parties.folder


def copy(folder: Path, to: Path) -> Apart:
    return Apart(Path(shutil.copytree(folder, to / "all")))
