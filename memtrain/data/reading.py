"""How the listing of a source is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reading:
    """How a source reads its listing.

    Attributes:
        skip: leave out samples that cannot be used, instead of refusing them; the source's `broken` names them all, and
            whoever opens it decides what becomes of that.
        stops: whether that will end the run; a source whose own error says more raises it at once.
        kept_in: folder where the listing is kept for the next start; None to keep none.
    """

    skip: bool = False
    stops: bool = False
    kept_in: Path | None = None
