"""The folder of a run: config.json, ledger.sqlite, lock, one folder an agent, the coordinator's checkpoints, the
report.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peertune.config.schema import Config
from peertune.errors import ConfigError, StorageError
from peertune.ledger import Ledger

CONFIG, LEDGER = "config.json", "ledger.sqlite"


def create_run(folder: Path, config: Config) -> Ledger:
    """Make the folder with its configuration and an empty ledger.

    Raises `ConfigError` if the name is taken, `StorageError` if the folder cannot be written.
    """
    if folder.exists():
        raise ConfigError(
            f"the run {folder.name!r} exists; choose another --name, or continue it: peertune resume {folder.name}"
        )
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")  # a run appears whole or not at all
    try:
        unfinished.mkdir(parents=True)
        (unfinished / CONFIG).write_text(config.model_dump_json(indent=1) + "\n", encoding="utf-8")
        Ledger.create(unfinished / LEDGER).close()
        unfinished.rename(folder)
    except OSError as error:
        raise StorageError(
            f"{folder}: the run cannot be created ({error.strerror}); free space or check the rights"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Ledger.open(folder / LEDGER)


def existing_run(runs: Path, name: str) -> Path:
    """The folder of a run. Raises `ConfigError` if there is none of that name."""
    if not (runs / name / LEDGER).is_file():
        raise ConfigError(f"there is no run {name!r} in {runs}; `peertune ls` shows the runs there are")
    return runs / name


def free_name(runs: Path, stem: str) -> Path:
    """A folder for a run that was given no name: the recipe's name and the first free number."""
    number = 1
    while (runs / f"{stem}-{number}").exists():
        number += 1
    return runs / f"{stem}-{number}"


def stored_config(folder: Path) -> Config:
    """The resolved configuration of a run. Raises `ConfigError` if it is missing or damaged."""
    try:
        return Config.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder / 'config.json'} cannot be read ({type(error).__name__}); this is not a complete run"
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process works in a run's folder. Raises `ConfigError` if another one does."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"the run {folder.name!r} is being worked on by another process; wait for it or stop it"
            ) from None
        yield
