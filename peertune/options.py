"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[str, typer.Argument(help="A YAML file, or the name of a bundled recipe (`peertune ls`).")]
Name = Annotated[str, typer.Argument(help="The name of a run (`peertune ls`).")]
Runs = Annotated[Path, typer.Option("--runs", help="The folder that holds the runs.", envvar="PEERTUNE_RUNS")]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="A.B=C", help="Replace one value of the configuration; repeatable."),
]
