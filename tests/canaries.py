"""Texts that are to be found nowhere but where they belong, and the search for them in bytes, files and processes."""

import base64
import io
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "zq-canary-"
CANARIES = [f"{MARK}{number:02d}-{random.Random(number).getrandbits(64):016x}" for number in range(50)]
CHUNK = 16 << 20  # bytes that are read at a time
OVERLAP = 256  # bytes of one chunk that are read again with the next


def disguises(canary: str) -> list[bytes]:
    """Plain, hex, UTF-16, and base64 wherever it starts among the bytes that are encoded with it."""
    raw = canary.encode()
    plain = [
        raw,
        raw.hex().encode(),
        raw.hex().upper().encode(),
        canary.encode("utf-16-le"),
        canary.encode("utf-16-be"),
    ]
    for skip in range(3):
        encoded = base64.b64encode(bytes(skip) + raw)
        plain.append(encoded[4 if skip else 0 : -4])  # without the letters that its neighbours share
    return plain


def hits(raw: bytes) -> int:
    """How many of the canaries are there, in how many disguises."""
    return sum(disguise in raw for canary in CANARIES for disguise in disguises(canary))


MARKS = disguises(MARK)


def marks(raw: bytes) -> int:
    """How often what all canaries begin with is there, in any disguise."""
    return sum(map(raw.count, MARKS))


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Each file below `folder`, with its name before it; what is in archives, too."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            raw = b""
            with suppress(FileNotFoundError):  # somebody deleted it meanwhile
                raw = path.read_bytes()
            yield from unpacked(str(path), raw)


def unpacked(name: str, raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Bytes as they are; of a zip file also each member, to any depth."""
    yield name, name.encode() + b"\0" + raw
    if zipfile.is_zipfile(io.BytesIO(raw)):
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            for member in archive.namelist():
                yield from unpacked(f"{name}:{member}", archive.read(member))


def may_look() -> str:
    """Why nobody here can read the memory of another process; empty if the same user can."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            next(memory(process.pid))
        except PermissionError as error:
            return f"the memory of another process of this user cannot be read here ({error.strerror})"
        finally:
            process.kill()
    return ""


def memory(pid: int) -> Iterator[bytes]:
    """What a process holds, in overlapping chunks; not what it has mapped from files and cannot write to.

    Raises `PermissionError` where nobody may look, `FileNotFoundError` or `ProcessLookupError` if it has ended.
    """
    regions = Path(f"/proc/{pid}/maps").read_text().splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in regions:
            span, rights, _, _, _, *name = line.split(maxsplit=5)
            start, end = (int(place, 16) for place in span.split("-"))
            mapped = bool(name) and name[0].startswith("/") and "w" not in rights
            if "r" in rights and not mapped and name[:1] not in (["[vvar]"], ["[vsyscall]"], ["[vvar_vclock]"]):
                yield from _region(file, start, end)


def _region(file: io.FileIO, start: int, end: int) -> Iterator[bytes]:
    tail = b""
    for place in range(start, end, CHUNK):
        file.seek(place)
        try:
            raw = file.read(min(CHUNK, end - place))
        except OSError:  # it was unmapped meanwhile
            return
        yield tail + raw
        tail = raw[-OVERLAP:]
