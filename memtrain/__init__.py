"""memtrain: fine-tune text-to-image diffusion models without reproducing their training images."""

from __future__ import annotations

__version__ = "0.2.0"
