"""The parser of `memtrain train`: Lightning's, with the care of all commands (:mod:`memtrain.cli.command_parser`)."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from dataclasses import fields
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from memtrain.cli.command_parser import CarefulParser
from memtrain.cli.monitor_options import set_monitor, taken_monitor
from memtrain.cli.refusal import refusal
from memtrain.errors import ConfigurationError
from memtrain.files.shown import shown
from memtrain.monitoring.options import WatchSettings


class TrainParser(CarefulParser, LightningArgumentParser):
    """Says what to write instead of options that have moved, too."""

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """See :class:`CarefulParser`; Lightning would take anything as settings of its trainer."""
        given = args[0] if args else options.pop("args", None)
        monitor, words = taken_monitor(sys.argv[1:] if given is None else given)
        found = super().parse_args(words, *args[1:], **options)
        settings = found.get(found.get("subcommand") or "", found)
        if "trainer" in settings and not isinstance(settings["trainer"], Namespace):
            self.refuse(
                ConfigurationError(
                    f"trainer is a {type(settings['trainer']).__name__}",
                    expected="settings, such as `trainer: {max_steps: 100}`",
                    remedy="correct the configuration",
                )
            )
        if monitor:
            try:
                set_monitor(settings, monitor)
            except (ConfigurationError, ArgumentError) as error:
                said = error if isinstance(error, ConfigurationError) else refusal(str(error))
                self.refuse(said)
        return found

    def hints(self, message: str) -> list[str]:
        """The new places and names of options."""
        hints = [
            f"`{name}` stands under `settings` of the monitor: write `settings: {{{name}: ...}}` in its init_args"
            for name in (field.name for field in fields(WatchSettings))
            if f"'{name}' is not accepted" in message
        ]
        if "'reference': " in message and "MemorizationMonitor" in message and not hints:
            hints = ["if `reference` is what is refused: it is true, false or paired"]
        return hints


def refused_by_lightning(error: BaseException | None) -> ConfigurationError | None:
    """The error of Lightning's Trainer about settings that it cannot serve, such as a missing GPU."""
    if not isinstance(error, MisconfigurationException):
        return None
    return ConfigurationError(
        f"Lightning's trainer refuses its settings: {shown(error)}",
        expected="settings that this machine and this version of Lightning can serve",
        remedy="change the options of `trainer`",
    )
