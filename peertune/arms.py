"""Configuration -> the methods of a run, one an arm."""

from collections.abc import Mapping, Sequence
from typing import Any

from peertune.config.schema import Config, MethodConfig
from peertune.matchmakers import MATCHMAKERS, ROUTERS
from peertune.methods import METHODS, Budget, Method, Run
from peertune.methods.base import Public
from peertune.tasks.base import Example

_POLICIES = {"matchmaker": MATCHMAKERS, "router": ROUTERS}  # fields of a method that are sections of their own


def make_run(
    config: Config,
    public: tuple[Sequence[Example], Sequence[Example]],
    agents: Sequence[Mapping[str, Any]],
    server: Mapping[str, Any] | None,
) -> Run:
    """What every method is given. `public`: transfer and probe problems; `agents`, `server`: facts."""
    budget = Budget(config.budget.local_steps, config.budget.exchange_steps)
    transfer, probe = (tuple(Public(each.category, bool(each.public)) for each in split) for split in public)
    return Run(config.rounds, config.seed, budget, transfer, probe, tuple(agents), server)


def make_method(run: Run, section: MethodConfig) -> Method:
    """The method that a section describes."""
    fields = {name: getattr(section, name) for name in type(section).model_fields if name != "type"}
    for key, kinds in _POLICIES.items():
        if key in fields:
            fields[key] = kinds[fields[key].type](**fields[key].model_dump(exclude={"type"}))
    return METHODS[section.type](run=run, **fields)
