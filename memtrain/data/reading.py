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
        kept_in: folder where the listing is kept for the next start; None to keep none.
    """

    skip: bool = False
    kept_in: Path | None = None
