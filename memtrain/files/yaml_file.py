"""YAML that somebody else wrote: plain values, no objects, no aliases that grow.

Accepted: what `yaml.safe_load` accepts. Refused: files beyond a size, and aliases, of which a few lines make billions
of values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.text import read_text

MOST_BYTES = 2**24
"""Size of a YAML file at most."""
MOST_ALIASES = 100
"""Aliases in one file at most."""


def read_yaml(path: Path) -> Any:
    """The value that a YAML file holds.

    Raises:
        ConfigurationError: if it cannot be read, is no YAML, or holds more than :data:`MOST_ALIASES` aliases.
    """
    try:
        return yaml_of(read_text(path, most=MOST_BYTES), str(path))
    except DataError as error:
        raise ConfigurationError(error.problem, expected=error.expected, remedy=error.remedy) from error


def yaml_of(text: str, where: str) -> Any:
    """The value that YAML text stands for.

    Args:
        text: YAML.
        where: which file; for the error.

    Raises:
        ConfigurationError: if it is no YAML, or holds more than :data:`MOST_ALIASES` aliases.
    """
    try:
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.CSafeLoader))
        if aliases > MOST_ALIASES:
            raise ConfigurationError(
                f"{where} holds {aliases} aliases (*name)",
                expected=f"{MOST_ALIASES} at most",
                remedy="write the values out",
            )
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = "it is nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise ConfigurationError(
            f"{where} is not YAML: {said}", expected="YAML of plain values", remedy="mend it"
        ) from (error)
