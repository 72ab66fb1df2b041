"""The folder of a run: config.json, ledger.sqlite, lock, one folder an agent, the coordinator's checkpoints, the
report.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from peertune.checkpoint import make_folder, sync_folder, write_synced
from peertune.config.schema import VERSION, Config
from peertune.errors import ConfigError, PeertuneError, StorageError
from peertune.ledger import Ledger

CONFIG, LEDGER, AUDIT = "config.json", "ledger.sqlite", "audit.json"
NAME_LENGTH = 64
PATIENCE = 1.0  # seconds that the lock of a killed process may outlive it, in a child that it had just forked


def create_run(folder: Path, config: Config) -> Ledger:
    """Make the folder with its configuration and an empty ledger.

    Raises `ConfigError` if the name is taken, `StorageError` if the folder cannot be written.
    """
    if os.path.lexists(folder):
        raise ConfigError(
            f"the run {folder.name!r} exists; choose another --name, or continue it: peertune resume {folder.name}"
        )
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")  # a run appears whole or not at all
    try:
        make_folder(folder.parent)
        unfinished.mkdir()
        write_synced(unfinished / CONFIG, f"{config.model_dump_json(indent=1)}\n".encode())
        Ledger.create(unfinished / LEDGER).close()
        sync_folder(unfinished)
        unfinished.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise StorageError(
            f"{folder}: the run cannot be created ({error.strerror}); free space or check the rights"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Ledger.open(folder / LEDGER)


def new_run(runs: Path, name: str) -> Path:
    """The folder of a run to be made. Raises `ConfigError` unless the name is a plain word."""
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_LENGTH - 1}}}", name):
        raise ConfigError(
            f"the name of a run: expected at most {NAME_LENGTH} letters, digits, '.', '_' or '-', a letter or digit "
            f"first, found {name!r}; `--runs` chooses another folder"
        )
    return runs / name


def existing_run(runs: Path, name: str) -> Path:
    """The folder of a run. Raises `ConfigError` if there is none of that name."""
    if name == ".." or Path(name).name != name or not os.path.isfile(runs / name / LEDGER):
        raise ConfigError(f"there is no run {name!r} in {runs}; `peertune ls` shows the runs there are")
    return runs / name


def free_name(runs: Path, stem: str) -> Path:
    """A folder for a run that was given no name: the recipe's name and the first free number."""
    word = re.sub(r"[^A-Za-z0-9._]+", "-", stem).strip("-._")[: NAME_LENGTH - 8] or "run"
    number = 1
    while os.path.lexists(runs / f"{word}-{number}"):
        number += 1
    return runs / f"{word}-{number}"


@contextmanager
def free_if_refused(folder: Path, ledger: Ledger) -> Iterator[None]:
    """A new run whose models or data are refused before its first event leaves no folder: its name is free again."""
    try:
        yield
    except PeertuneError:
        if not ledger.seq:
            ledger.close()
            shutil.rmtree(folder, ignore_errors=True)
        raise


def is_finished(folder: Path) -> bool:
    """Has every arm of the run in `folder` been run to its end?"""
    config, ledger = stored_config(folder), Ledger.read(folder / LEDGER)
    done = {event.arm for event in ledger.events("done")}
    ledger.close()
    return done.issuperset(config.arms())


def stored_config(folder: Path) -> Config:
    """The resolved configuration of a run. Raises `ConfigError` if it is missing, damaged or of a newer version."""
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version = data["version"]
        if version > VERSION:
            raise ConfigError(
                f"{path} has configuration version {version}, this peertune knows up to {VERSION}; upgrade peertune"
            )
        return Config.model_validate_json(json.dumps(data))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path} is missing or damaged ({type(error).__name__}); put it back from a backup, or start a new run"
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process works in a run's folder. Raises `ConfigError` if another one does, `StorageError` if the
    folder cannot be written.
    """
    try:
        file = (folder / "lock").open("w")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror}); free space or check the rights") from error
    with file:
        end = time.monotonic() + PATIENCE
        while not _try_lock(file):
            if time.monotonic() > end:
                raise ConfigError(
                    f"the run {folder.name!r} is being worked on by another process; wait for it or stop it"
                )
            time.sleep(0.05)
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
