"""The options of `memtrain demo`."""

from __future__ import annotations

from memtrain.cli.command_parser import CarefulParser

STEPS = 750
"""Training steps of the demo."""


def command_parser() -> CarefulParser:
    """The options of the command."""
    parser = CarefulParser(prog="memtrain demo")
    parser.add_argument("--fast", action="store_true", help="Take a short look; its figures say little.")
    parser.add_argument("--output", type=str | None, default=None, help="The run folder; default runs/tiny.")
    parser.add_argument("--steps", type=int | None, default=None, help=f"Training steps; default {STEPS}.")
    return parser
