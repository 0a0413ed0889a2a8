"""Help screens: `--help` shows the main options of a command, and `--help all` shows all of them.

Each command has one :class:`~memtrain.cli.help.screen.Screen`. It states once which options are main options, and under
which heading each option stands. The same screens serve shell completion. They import nothing heavy, so that help
appears at once.
"""
