"""What `peertune plan` does for a person."""

import json
from collections.abc import Sequence

import typer

from peertune.config.reader import read_config, resolve_recipe
from peertune.config.schema import Config
from peertune.cost.page import Link, as_json, notes, table, title
from peertune.cost.plan import Plan, plan_of
from peertune.studies.compare.plan import admitted
from peertune.terminal import print_rows


def plan(file: str, overrides: Sequence[str], link: Link, for_machines: bool) -> None:
    """Print what the arms of a configuration cost, and all other methods that it admits."""
    found = whole_plan(read_config(resolve_recipe(file), overrides))
    if for_machines:
        typer.echo(json.dumps(as_json(found, link), indent=2))
        return
    print_rows(title(found, link), *table(found, link))
    for line in notes(found):
        typer.echo(line)


def whole_plan(config: Config) -> Plan:
    """Of its arms, and of every method that none of them is.

    Raises `ConfigError`: a model or data set that is not there, agents that do not fit the configuration's method.
    """
    choice = admitted(config)
    return plan_of(choice.of(config), choice.left_out)
