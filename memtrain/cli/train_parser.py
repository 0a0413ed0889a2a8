"""The parser of `train.py`: what is asked of jsonargparse, and what the user reads when it refuses."""

from __future__ import annotations

from dataclasses import fields
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from memtrain.monitoring.options import WatchSettings


class TrainParser(LightningArgumentParser):
    """Says what to write instead of options that have moved, below the long message of the parser."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program."""
        hints = [
            f"`{name}` stands under `settings` of the monitor: write `settings: {{{name}: ...}}` in its init_args"
            for name in (field.name for field in fields(WatchSettings))
            if f"'{name}' is not accepted" in message
        ]
        if "'reference': " in message and "MemorizationMonitor" in message and not hints:
            hints = ["if `reference` is what is refused: it is true, false or paired"]
        super().error("\n".join([message, *(f"Remedy: {hint}" for hint in hints)]), ex)
