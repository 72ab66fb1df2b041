"""The configuration of a run: one YAML file, strictly checked. No torch is imported here."""

from peertune.config.reader import read_config, resolve_recipe
from peertune.config.schema import Config

__all__ = ["Config", "read_config", "resolve_recipe"]
