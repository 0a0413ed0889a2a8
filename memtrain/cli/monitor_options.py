"""`--monitor.NAME VALUE`: settings of the monitor that a configuration names, on the command line of a training.

The monitor is one of the callbacks of Lightning's trainer, and jsonargparse reaches only the last of a list of
callbacks. So these words are taken out of the command line, and put into the configuration when it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace

from memtrain.errors import ConfigurationError

PREFIX = "--monitor."
NAME = "MemorizationMonitor"


def taken_monitor(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line that set the monitor, and its other words.

    Raises:
        ConfigurationError: if `--monitor` stands without the name of a setting.
    """
    monitor: list[str] = []
    others: list[str] = []
    value = False
    for word in words:
        if word.partition("=")[0] == PREFIX[:-1]:
            raise ConfigurationError(
                f"{word!r:.80} names no setting of the monitor",
                expected="one setting of the monitor that the configuration names, and its value",
                remedy="such as --monitor.false_positive_rate 0.001; see memtrain train --help",
            )
        if value or word.startswith(PREFIX):
            monitor.append(word)
            value = not value and "=" not in word
        else:
            others.append(word)
    return monitor, others


def set_monitor(settings: Namespace, words: Sequence[str]) -> None:
    """Put settings of the monitor into a configuration.

    Args:
        settings: the configuration of the training.
        words: `--monitor.NAME VALUE`, as often as wanted.

    Raises:
        ConfigurationError: if the configuration has no monitor, or a setting is none of the monitor's.
    """
    from memtrain.callbacks.monitor import MemorizationMonitor
    from memtrain.cli.command_parser import CarefulParser

    parser = CarefulParser(exit_on_error=False)
    parser.add_class_arguments(MemorizationMonitor, "monitor")
    given = parser.parse_args(list(words), defaults=False).get("monitor") or Namespace()
    callbacks = (settings.get("trainer") or {}).get("callbacks")
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    found: list[Any] = [one for one in listed if str(one and one.get("class_path")).endswith(NAME)]
    if not found:
        raise ConfigurationError(
            f"{words[0]} without a monitor",
            expected=f"a configuration whose trainer.callbacks hold {NAME}",
            remedy="take a shipped configuration, such as --config tiny_baseline, or leave the option out",
        )
    for monitor in found:
        for name, value in vars(given).items():
            monitor["init_args"][name] = value
