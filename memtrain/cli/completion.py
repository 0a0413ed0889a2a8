"""`memtrain completion SHELL`: a script with which a shell completes commands, options, choices and configurations.

The script is made of the help screens and holds all words itself. So pressing the tab key starts no Python.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

import shtab

from memtrain.cli.help.overview import SCREENS, SHORT
from memtrain.cli.help.screen import Screen
from memtrain.cli.outcome import end
from memtrain.errors import ConfigurationError
from memtrain.files.exit_status import ExitStatus
from memtrain.files.output import print_or_exit
from memtrain.files.shipped import config_names

SHELLS = ("bash", "zsh", "fish")
FOLDERS = ("--output", "--run", "--heldout", "--trainer.default_root_dir", "--bake", "--clip", "--vision")
"""Options whose value is a folder."""
WITHOUT_PATH = ("N", "X", "NAMES", "CLASS", "CONDITION", "SECRET", "WHICH")
"""Names of values that are no path."""


def completion(args: Sequence[str]) -> None:
    """`memtrain completion SHELL`.

    Args:
        args: the words after `completion`.
    """
    if len(args) != 1 or args[0] not in SHELLS:
        error = ConfigurationError(
            f"No shell {' '.join(args)!r:.80}" if args else "No shell is named",
            expected=f"one of {', '.join(SHELLS)}",
            remedy="memtrain completion bash",
        )
        end(error, ExitStatus.MISUSED)
    print_or_exit(script(args[0]))


def script(shell: str) -> str:
    """The script for a shell.

    Args:
        shell: one of :data:`SHELLS`.
    """
    parser = ArgumentParser("memtrain", add_help=False)
    parser.add_argument("--help", action="help", help="list the commands")
    parser.add_argument("--version", action="help", help="print the version")
    commands = parser.add_subparsers(dest="command")
    for name, screen in SCREENS.items():
        below = commands.add_parser(name, help=SHORT[name], description=SHORT[name], add_help=False)
        if name == "completion":
            below.add_argument("shell", choices=SHELLS)
        else:
            _add_options(below, screen)
    own = {"bash": _bash_configs, "zsh": _zsh_configs}
    return str(shtab.complete(parser, shell=shell, preamble=own[shell]() if shell in own else ""))


def _add_options(parser: ArgumentParser, screen: Screen) -> None:
    parser.add_argument("--help", choices=["all"], nargs="?", help="show the main options, or all")
    if screen.words and not screen.words.isspace():
        parser.add_argument("words", nargs="*").complete = shtab.FILE  # type: ignore[attr-defined]
    for group in screen.groups:
        alone = group.valueless()
        helps = {written.partition(" ")[0]: said for written, said in group.main.items()}
        values = {written.partition(" ")[0]: written.partition(" ")[2] for written in group.main}
        for name, choices in group.choices().items():
            if name == "--help":
                continue
            said = helps.get(name, group.title).replace("%", "%%")
            _add(parser, name, choices, said, alone=name in alone, value=values.get(name, ""))


def _add(parser: ArgumentParser, name: str, choices: Sequence[str], said: str, *, alone: bool, value: str) -> None:
    if alone or name == "--print_config":
        parser.add_argument(name, action="store_true", help=said)
        return
    action = parser.add_argument(name, choices=choices or None, help=said)
    if name == "--config":
        configs = " ".join(config_names())
        action.complete = {  # type: ignore[attr-defined]
            "bash": "_memtrain_configs",
            "zsh": "_memtrain_configs",
            "fish": f"{configs} (__fish_complete_path (commandline -ct))",
        }
    elif name in FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif not choices and value not in WITHOUT_PATH and not name.startswith(("--monitor.", "--settings.")):
        action.complete = shtab.FILE  # type: ignore[attr-defined]


def _bash_configs() -> str:
    """The function that completes a configuration in bash: shipped names and files."""
    return f"""_memtrain_configs() {{
  compgen -W "{" ".join(config_names())}" -- "$1"
  compgen -f -X '!*.yaml' -- "$1"
  compgen -d -S / -- "$1"
}}"""


def _zsh_configs() -> str:
    """The function that completes a configuration in zsh."""
    return f"""_memtrain_configs() {{
  compadd -- {" ".join(config_names())}
  _files -g '*.yaml'
}}"""
