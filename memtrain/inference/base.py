"""Interface of inference-time mitigations: settings that make a context in which a pipeline samples with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any


class InferenceMitigation(ABC):
    """Settings of a mitigation, shown by its `repr`. One instance serves several pipelines, also at the same time."""

    @abstractmethod
    def __call__(self, pipeline: Any) -> AbstractContextManager[None]:
        """Return a context in which calls of `pipeline` are mitigated. Its end always restores the pipeline.

        Args:
            pipeline: a diffusers pipeline of a kind that the mitigation supports.

        Raises:
            ConfigurationError: if the pipeline is of another kind, when the context begins.
        """
