"""The parser of `memtrain train`: Lightning's, with the care of all commands (:mod:`memtrain.cli.command_parser`)."""

from __future__ import annotations

import re
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from memtrain.cli.command_parser import CarefulParser, check_config, named_configs
from memtrain.cli.monitor_options import set_monitor, taken_monitor
from memtrain.cli.refusal import refusal
from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.files.shipped import config_names
from memtrain.files.shown import shown
from memtrain.files.yaml_file import read_mapping
from memtrain.monitoring.options import WatchSettings


class TrainParser(CarefulParser, LightningArgumentParser):
    """Says what to write instead of options that have moved, too."""

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """See :class:`CarefulParser`; Lightning would take anything as settings of its trainer."""
        given = args[0] if args else options.pop("args", None)
        try:
            monitor, words = taken_monitor(sys.argv[1:] if given is None else given)
            require_model(words)
        except MemtrainError as error:
            self.refuse(error)
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


def require_model(words: Sequence[str]) -> None:
    """Refuse a training whose configurations are overlays, which name no model.

    Args:
        words: the words of the command line.

    Raises:
        ConfigurationError: naming the overlays.
    """
    names = named_configs(words)
    if not names or any("\n" in name or ": " in name for name in names):
        return
    if any(re.match(r"--(\w+\.)?model(\.class_path)?(=|$)", word) for word in words):
        return
    contents = [read_mapping(Path(check_config(name))) for name in names]
    if any(_names_model(one) for content in contents for one in (content, *content.values())):
        return
    shipped = all(name in config_names() for name in names)
    several = len(names) > 1
    kind = (
        ("are overlays and name" if several else "is an overlay and names")
        if shipped
        else ("name" if several else "names")
    )
    again = " ".join(f"--config {shlex.quote(name)}" for name in ("tiny", *names))
    raise ConfigurationError(
        f"{' and '.join(names)} {kind} no model",
        expected="a whole configuration before it" if not several else "a whole configuration before them",
        remedy=f"such as {again}",
    )


def _names_model(settings: object) -> bool:
    """Whether settings name a model, or another configuration to build on, which may name one."""
    if not isinstance(settings, dict):
        return False
    model = settings.get("model")
    whole = "class_path" in model if isinstance(model, dict) else model is not None
    return whole or not {"model.class_path", "config"}.isdisjoint(settings)


def refused_by_lightning(error: BaseException | None) -> ConfigurationError | None:
    """The error of Lightning's Trainer about settings that it cannot serve, such as a missing GPU."""
    if not isinstance(error, MisconfigurationException):
        return None
    return ConfigurationError(
        f"Lightning's trainer refuses its settings: {shown(error)}",
        expected="settings that this machine and this version of Lightning can serve",
        remedy="change the options of `trainer`",
    )
