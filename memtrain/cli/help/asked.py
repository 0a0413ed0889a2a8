"""Whether a command line asks for help, and the help that it asks for."""

from __future__ import annotations

from collections.abc import Sequence

from memtrain.cli.help.overview import SCREENS
from memtrain.files.output import print_or_exit

SHORT = ("-h", "--help")
ALL = ("--help_all", "--help-all")


def shown_help(command: str, words: Sequence[str]) -> bool:
    """Print the help of a command if its words ask for it: `--help` the main options, `--help all` all options.

    Args:
        command: the name of the command.
        words: the words behind the name.

    Returns:
        Whether help was printed, so that nothing is left to do.
    """
    screen = SCREENS.get(command)
    asked = [place for place, word in enumerate(words) if word in SHORT + ALL]
    if screen is None or not asked:
        return False
    after = words[asked[0] + 1 : asked[0] + 2]
    if words[asked[0]] in ALL or list(after) == ["all"]:
        # Imported here, because the main options are shown without torch.
        from memtrain.cli.chatter import quiet
        from memtrain.cli.help.listing import listing

        quiet()
        print_or_exit(listing(screen))
    else:
        print_or_exit(screen.text())
    return True
