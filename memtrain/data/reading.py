"""The way in which a source reads its listing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reading:
    """The way in which a source reads its listing.

    Attributes:
        skip: whether to leave out samples that cannot be used instead of refusing them. The source's `broken` names
            them all, and the caller decides what to do about them.
        stops: whether broken samples will end the run; a source whose own error says more then raises it at once.
        kept_in: the folder that keeps the listing for the next start; None keeps none.
    """

    skip: bool = False
    stops: bool = False
    kept_in: Path | None = None
