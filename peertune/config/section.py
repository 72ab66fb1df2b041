"""What a section of a configuration is, and how a policy's or a method's dataclass becomes one."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


class Typed(Section):
    """A section chosen by `type`; the bare name (`method: local`) means that type with its defaults."""


def bare_name(value: Any) -> Any:
    """`local` -> {type: local}"""
    return {"type": value} if isinstance(value, str) else value


def one_of(owners: Mapping[str, Any], **replaced: Any) -> Any:
    """The type of a section for any of `owners`, dataclasses by name: their fields, types, bounds and defaults.

    `replaced`: field -> (type, default) where the section's differs from the dataclass's; a type of None leaves it out.
    """
    sections = tuple(_section(name, owner, replaced) for name, owner in owners.items())
    return Annotated[Union[sections], Field(discriminator="type"), BeforeValidator(bare_name)]  # noqa: UP007


def _section(name: str, owner: Any, replaced: Mapping[str, Any]) -> type[Typed]:
    hints = get_type_hints(owner, include_extras=True)
    fields: dict[str, Any] = {"type": (Literal[name], name)}
    for field in dataclasses.fields(owner):
        kind, default = replaced.get(field.name, (hints[field.name], field.default))
        if kind is not None:
            fields[field.name] = (_lenient(kind), ... if default is dataclasses.MISSING else default)
    return create_model(f"{owner.__name__}Section", __base__=Typed, __doc__=owner.__doc__, **fields)


def _lenient(kind: Any) -> Any:
    """A YAML list will do for a tuple."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return Annotated[kind, Field(strict=False)] if get_origin(bare) is tuple and get_args(bare) else kind
