"""The full listing of a command's options, from the parser of the command, under the headings of its screen."""

from __future__ import annotations

import re
import textwrap
from argparse import SUPPRESS
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse._actions import ActionConfigFile, _ActionConfigLoad, _ActionPrintConfig

from memtrain.cli.help.screen import Group, Screen, entry, examples, screen_width
from memtrain.cli.spoken import TRAIN_COMMANDS

LEFT = 30
"""Columns of the options, at least."""
GENERAL = {
    "--config": "a YAML file with some of these options",
    "--print_config": "print the configuration that the other options make, and end",
    "--trust": "a package whose classes a configuration may name; repeat it for several",
    "--ckpt_path": "the checkpoint to go on with: last, or a file",
    "--seed_everything": "the seed of the run (default 0)",
    "--model": "the class of the model; default memtrain's own",
    "--data": "the class of the data module; default memtrain's own",
    "--model.init_args": "a YAML file with settings of the model",
    "--data.init_args": "a YAML file with settings of the data",
    "--trainer": "a YAML file with settings of Lightning's trainer",
    "--monitor": "a setting of the monitor that the configuration names",
    "--settings": "a YAML file with settings of the search",
    "--help": "the main options; `--help all` lists all options",
}
"""Help of options that no docstring describes."""
CONFIGURATIONS = (ActionConfigFile, _ActionConfigLoad, _ActionPrintConfig)
VALUELESS = ("--print_config",)


def listing(screen: Screen, width: int | None = None) -> str:
    """All options of a command, each under its heading.

    Args:
        screen: the screen of the command.
        width: the columns of the terminal; default asks it.
    """
    columns = screen_width(width)
    known = options_of(full_parser(screen.command))
    lines = [screen.usage(), ""]
    lines += [*textwrap.wrap(screen.says, columns), "", *examples(screen.examples, columns)]
    for group in screen.groups:
        lines += ["", f"{group.title}:"]
        written = {one.partition(" ")[0]: one for one in group.main}
        for name, choices in group.choices().items():
            alone = name in VALUELESS or name in group.valueless()
            value = "|".join(choices) if choices else "" if alone else "VALUE"
            said = _help(name, known, group)
            lines += entry(written.get(name) or f"{name} {value}".strip(), said, columns, left=max(screen.left, LEFT))
    return "\n".join(lines)


def _help(name: str, known: dict[str, Any], group: Group) -> str:
    """The help of an option from its docstring or its screen, with the default value."""
    action = known.get(name)
    own = next((said for written, said in group.main.items() if written.partition(" ")[0] == name), "")
    if own and (name.startswith("--trainer.") or action is None):
        return own
    if name in GENERAL and (action is None or isinstance(action, CONFIGURATIONS)):
        return own or GENERAL[name]
    if action is None or action.help in (None, SUPPRESS):
        return own
    said = re.sub(r":\w+:`~?(?:memtrain\.)?([^`]*)`", r"`\1`", " ".join(str(action.help).replace("%%", "%").split()))
    said = said.replace("``", "`")
    default = action.default
    if default not in (None, "", SUPPRESS, []) and not hasattr(default, "class_path") and "efault" not in said:
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        said = f"{said.removesuffix('.')} (default {shown})." if len(shown) < 40 else said
    if f"{name}.help" in known and not name.startswith(("--data.", "--model.", "--trainer.", "--monitor.")):
        said = f"{said} `{name}.help` lists its settings."
    return said


def options_of(parser: Any) -> dict[str, Any]:
    """Each long option of a parser, with its action."""
    return {
        name: action
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") and not name.endswith("+")
    }


def full_parser(command: str) -> ArgumentParser:
    """A parser with all options of a command."""
    # Imported here, because the main options are shown without torch.
    from memtrain.cli.command_parser import CarefulParser

    if command == "demo":
        from memtrain.cli import demo_options

        return demo_options.command_parser()
    if command == "completion":
        return CarefulParser(prog="memtrain completion")
    if command == "scan":
        from memtrain.cli.scan import command_parser

        return command_parser()
    if command in ("train", "plan"):
        return training_parser()
    parser = CarefulParser(prog=f"memtrain {command}")
    if command == "rewind":
        from memtrain.cli.rewind import rewind_run

        parser.add_function_arguments(rewind_run)
    elif command == "export":
        from memtrain.cli.export import export_checkpoint

        parser.add_function_arguments(export_checkpoint)
    else:
        from memtrain.cli.evaluation import stage_parser
        from memtrain.evaluation.stages.base import stage_class

        assert command not in TRAIN_COMMANDS
        return stage_parser(command, stage_class(command))
    return parser


def training_parser() -> ArgumentParser:
    """The settings of a training with memtrain's own model, data and monitor."""
    from lightning.pytorch import Trainer

    from memtrain.callbacks.monitor import MemorizationMonitor
    from memtrain.cli.command_parser import CarefulParser
    from memtrain.data.module import TextImageDataModule
    from memtrain.training.text_to_image import TextToImageModule

    parser = CarefulParser(prog="memtrain train")
    parser.add_class_arguments(TextToImageModule, "model.init_args")
    parser.add_class_arguments(TextImageDataModule, "data.init_args")
    parser.add_class_arguments(Trainer, "trainer")
    parser.add_class_arguments(MemorizationMonitor, "monitor")
    return parser
