"""What an inference-time mitigation is: settings that make a context in which a pipeline samples mitigated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any


class InferenceMitigation(ABC):
    """Holds settings alone, which its `repr` tells, so that one instance serves several pipelines, also at once."""

    @abstractmethod
    def __call__(self, pipeline: Any) -> AbstractContextManager[None]:
        """A context in which calls of `pipeline` are mitigated; afterwards it is as it was, whatever happened.

        Args:
            pipeline: a diffusers pipeline of a kind that the mitigation knows.

        Raises:
            ConfigurationError: on entering, if it is of another kind.
        """
