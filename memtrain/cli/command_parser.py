"""The parser of every command: configurations are not trusted, and what is refused is refused in three short lines."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser

from memtrain.cli.outcome import tell_error
from memtrain.cli.refusal import own_error, refusal
from memtrain.cli.trusted import guard, taken_trust
from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.files.exit_status import ExitStatus
from memtrain.files.shipped import config_file
from memtrain.files.yaml_file import read_mapping, yaml_of

T = TypeVar("T")
_parsing: list[bool] = []
CONFIG_OPTIONS = ("--config", "-c")
CUT_SHORT = ("--c", "--co", "--con", "--conf", "--confi")
"""Forms of `--config` that jsonargparse would take."""
USAGE = ExitStatus.MISUSED
"""Exit status of a command that cannot be understood; 1 is that of one which cannot be done."""


class CarefulParser(ArgumentParser):
    """A parser with `--trust`, which looks at configurations before it reads them, and says what is wrong in few words.

    Its class is taken by :class:`memtrain.cli.train_parser.TrainParser` too, in front of Lightning's.
    """

    reads_configs = True
    """Whether `--config` is read by jsonargparse, which is given paths; a command that reads it gets the names."""

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        """See `argparse`; configurations are checked first."""
        if _parsing:
            # A subcommand's words, within those of its command.
            return super().parse_args(args, *rest, **options)
        _parsing.append(True)
        try:
            packages, words = taken_trust(sys.argv[1:] if args is None else args)
            guard(packages)
            checked = _with_configs(words, check_config)
            words = checked if self.reads_configs else words
            return super().parse_args(words, *rest, **options)
        except MemtrainError as error:
            self.refuse(error)
        finally:
            _parsing.clear()

    def parse_object(self, *args: Any, **options: Any) -> Any:
        """See `jsonargparse`; what the command line trusts is trusted here."""
        guard()
        return super().parse_object(*args, **options)

    def hints(self, message: str) -> list[str]:
        """Further words about a message of jsonargparse."""
        return []

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program with the one thing that is wrong."""
        if not self.exit_on_error:
            super().error(message, ex)
        found = own_error(ex) or refusal(message, _all_options(self))
        hints = self.hints(message)
        if hints:
            found = ConfigurationError(found.problem, expected=found.expected, remedy="; ".join(hints))
        self.refuse(found)

    def refuse(self, error: MemtrainError) -> NoReturn:
        """End the program with a refusal, or raise it where the parser does not end programs."""
        if not self.exit_on_error:
            raise error
        tell_error(error)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(USAGE)


def object_of(kind: type[T], settings: object, where: str) -> T:
    """The object that settings in a configuration stand for.

    Args:
        kind: that it has to be of.
        settings: the settings, with a class path.
        where: the file and its part, for the error.

    Raises:
        MemtrainError: if they are none, or name something that is not trusted.
    """
    parser = CarefulParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "made", required=True)
    try:
        made: T = parser.instantiate(parser.parse_object({"made": settings})).made
    except MemtrainError:
        raise
    except (ArgumentError, TypeError, ValueError, KeyError, AttributeError) as error:
        found = own_error(error)
        if found is not None:
            raise found from error
        said = refusal(str(error).replace('"made', '"settings'))
        raise ConfigurationError(f"{where}: {said.problem}", expected=said.expected, remedy=said.remedy) from error
    return made


def check_config(name: str) -> str:
    """Refuse a configuration that is not there, is no mapping of settings, or is not to be read.

    Args:
        name: the path of a YAML file, the name of a shipped configuration, or YAML itself.

    Returns:
        The path of the file; YAML as it is.

    Raises:
        ConfigurationError: saying which.
    """
    if "://" in name.partition("\n")[0]:
        raise ConfigurationError(
            f"--config {name!r:.120} is an address", expected="a file on this machine", remedy="download it and read it"
        )
    try:
        path = config_file(name)
    except ConfigurationError:
        if ": " not in name:
            raise
        yaml_of(name, "The value of --config")
        return name
    read_mapping(path)
    return str(path)


def _with_configs(words: Sequence[str], found: Callable[[str], str]) -> list[str]:
    """The words of a command line, with a path in the place of each configuration.

    Args:
        words: the words of the command line.
        found: makes a path of what `--config` gives.
    """
    given: list[str] = []
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in CUT_SHORT:
            raise ConfigurationError(
                f"There is no option {name}",
                expected="an option that --help all lists",
                remedy="did you mean --config?",
            )
        if place and words[place - 1] in CONFIG_OPTIONS:
            given.append(found(word))
        elif equals and name in CONFIG_OPTIONS:
            given.append(f"{name}={found(value)}")
        elif len(word) > 2 and word[0] == "-" and word[1] == "c":
            given.append(f"-c={found(word[2:])}")
        else:
            given.append(word)
    return given


def named_configs(words: Sequence[str]) -> list[str]:
    """The configurations that a command line names.

    Args:
        words: the words of the command line.
    """
    names: list[str] = []
    _with_configs(words, lambda name: names.append(name) or name)  # type: ignore[func-returns-value]
    return names


def _all_options(parser: Any) -> set[str]:
    """The names of all options, of subcommands too."""
    found = {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
    for action in parser._actions:
        choices = getattr(action, "choices", None)
        for below in choices.values() if isinstance(choices, dict) else ():
            found |= _all_options(below)
    return found
