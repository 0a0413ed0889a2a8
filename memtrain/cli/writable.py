"""A folder of results is made, or refused, before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

from memtrain.errors import ConfigurationError


def require_writable(folder: Path) -> None:
    """Make the folder of the results.

    Raises:
        ConfigurationError: if nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refused = None if os.access(folder, os.W_OK) else "no permission"
    except OSError as error:
        refused = error.strerror
    if refused:
        raise ConfigurationError(
            f"Results cannot be written to {folder}: {refused}",
            expected="a folder in which this process may write",
            remedy="name another one with --output",
        )
