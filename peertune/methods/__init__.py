"""The methods. Each is one file: the idea, the paper, the round. A new one is a file here and a line in `METHODS`."""

from collections.abc import Callable

from peertune.methods.base import Budget, Method, Run
from peertune.methods.knexa import Knexa
from peertune.methods.local import Local

METHODS: dict[str, Callable[..., Method]] = {"local": Local, "knexa": Knexa}

__all__ = ["METHODS", "Budget", "Knexa", "Local", "Method", "Run"]
