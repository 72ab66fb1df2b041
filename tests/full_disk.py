"""Run as root in a mount namespace of its own (`unshare -m`): fills tiny disks under the command and prints what came
of it as one JSON line a try. argv: a configuration, a folder to mount on, sizes in kB.
"""

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

from peertune import cli
from peertune.errors import ConfigError
from peertune.ledger import Ledger


def command(*args: str) -> dict[str, object]:
    """What the command did: exit code, the error output, the last line of the output."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["peertune", *args]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return {"code": code, "err": err.getvalue(), "out": out.getvalue()[-200:]}


def mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def head(run: Path) -> str:
    try:
        ledger = Ledger.read(run / "ledger.sqlite")
    except ConfigError:
        return ""
    ledger.close()
    return ledger.head


def tell(**what: object) -> None:
    sys.__stdout__.write(json.dumps(what) + "\n")  # pyright: ignore[reportOptionalMemberAccess]


def fill(folder: Path, spare: int) -> None:
    """Leave only `spare` bytes free."""
    with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    if spare:
        with (folder / "ballast").open("r+b") as file:
            file.truncate(max(0, (folder / "ballast").stat().st_size - spare))


def main() -> None:
    config, disk, sizes = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    for size in sizes:
        mount(disk, f"size={size}k")
        first = command("run", config, "--runs", str(disk), "--name", "r")
        left = sorted(path.name for path in disk.iterdir())
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        if size == sizes[-1]:
            shutil.copytree(disk / "r", disk / "half")
        again = command("resume" if left else "run", *(["r"] if left else [config, "--name", "r"]), "--runs", str(disk))
        tell(what="run", size=size, first=first, left=left, again=again, head=head(disk / "r"))
        if size == sizes[-1]:
            finished(disk, config)
        subprocess.run(["umount", "-l", str(disk)], check=True)


def finished(disk: Path, config: str) -> None:
    """A finished run on a disk that is full, then read-only."""
    shutil.rmtree(disk / "r" / "report")
    fill(disk, 0)
    tell(what="show", **command("show", "r", "--runs", str(disk)))
    for spare in (0, 8192):
        fill(disk, spare)
        tell(
            what="export",
            **command("export", "r", "--agent", "clinic", "--to", str(disk / "e"), "--runs", str(disk)),
            left=(disk / "e").exists(),
        )
    (disk / "ballast").unlink()
    subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)
    tell(what="read-only", **command("run", config, "--name", "new", "--runs", str(disk)))
    tell(what="read-only", **command("resume", "half", "--runs", str(disk)))
    tell(what="read-only", **command("show", "r", "--runs", str(disk)))
    tell(what="read-only", **command("export", "r", "--agent", "clinic", "--to", str(disk / "e"), "--runs", str(disk)))


if __name__ == "__main__":
    main()
