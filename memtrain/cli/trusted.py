"""The classes and functions that a configuration may name: those of memtrain, Lightning, torch, and trusted packages.

A configuration is often somebody else's: it comes with a model, from a colleague, in the folder of a run. Naming a
class imports its module, and importing runs it. So unknown names are refused before they are imported. The option
`--trust PACKAGE` names your own modules, as often as needed; a file cannot name them.

A configuration may name the parts of a training from Lightning and torch. It may not name anything that loads files,
starts programs or fetches something when it is called. Python objects in YAML and configurations from web addresses are
never allowed. `--trust torchscript` is the word for network files (:mod:`memtrain.families.network_file`),
`--trust pipe` for shards that a command writes (:mod:`memtrain.data.shard_urls`).
Cannot: judge what allowed classes are told to do, such as where a logger sends figures.
"""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import get_loader, set_loader, set_parsing_settings
from yaml import YAMLError

from memtrain.data.shard_urls import PIPE, trust_pipes
from memtrain.errors import ConfigurationError
from memtrain.families.network_file import trust_scripts
from memtrain.files.yaml_file import check_yaml, refuse_doubled_keys

OPTION = "--trust"
SCRIPTS = "torchscript"
"""The word that trusts network files in TorchScript, which is code."""
KNOWN = (
    "memtrain",
    "torch.nn",
    "torch.optim",
    "torch.profiler",
    "torch.utils.data",
    "torch.distributed.algorithms",
    "torch.distributed.fsdp",
    "lightning.pytorch",
    "lightning.fabric",
    "pytorch_lightning",
    "lightning_fabric",
)
"""The packages that a configuration may always name, with everything in them."""
_TOOLS = ("cli", "demos", "serve", "utilities", "core.saving", "_graveyard")
REFUSED = (
    "memtrain.cli",
    "memtrain.files",
    "memtrain.records",
    *(f"{package}.{part}" for package in ("lightning.pytorch", "pytorch_lightning") for part in _TOOLS),
    *(f"{package}.{part}" for package in ("lightning.fabric", "lightning_fabric") for part in ("cli", "utilities")),
)
"""Packages that read or write files or start programs when they are called."""

_load = get_loader("yaml")
_trusted: list[str] = []
_guarded: list[bool] = []


def guard(packages: Sequence[str] | None = None) -> None:
    """Let configurations name what is known, and these packages; of earlier calls only if none are given.

    Args:
        packages: dotted names that the user trusts.

    Raises:
        ConfigurationError: if one is no dotted name, or is what decides about this.
    """
    if packages is None and _guarded:
        # Lightning turns addresses on when it is imported.
        set_parsing_settings(config_read_mode_urls_enabled=False, config_read_mode_fsspec_enabled=False)
        return
    given = list(dict.fromkeys(packages or ()))
    for name in given:
        if not all(part.isidentifier() for part in name.split(".")) or name.split(".")[0] == "jsonargparse":
            raise ConfigurationError(
                f"{OPTION} {name!r:.80}",
                expected="the name of a Python package or module, such as my_module",
                remedy="name the module that your class is in, without .py",
            )
    set_parsing_settings(
        import_path_denylist=["*", *REFUSED, *(name for name in _trusted if name not in KNOWN)],
        import_path_allowlist=[*KNOWN, *(name for name in given if name not in (SCRIPTS, PIPE))],
        instantiate_subclass_spec_in_any=False,
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
    )
    _trusted[:] = given
    trust_scripts(SCRIPTS in given)
    trust_pipes(PIPE in given)
    if not _guarded:
        set_loader("yaml", _checked, exceptions=(YAMLError,))
        _guarded.append(True)


def _checked(stream: str) -> object:
    """A value as jsonargparse reads it, if it is none that grows; of a file that a configuration names, the whole."""
    check_yaml(stream, "A value of the configuration")
    loaded = _load(stream)
    if isinstance(loaded, dict | list):
        refuse_doubled_keys(stream, "A value of the configuration")
    return loaded


def taken_trust(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The packages that a command line trusts, and its other words.

    Raises:
        ConfigurationError: if a package is missing.
    """
    packages, others, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith(f"{OPTION}="):
            packages.append(word.partition("=")[2])
        elif word != OPTION:
            others.append(word)
        elif rest and not rest[0].startswith("-"):
            packages.append(rest.pop(0))
        else:
            raise ConfigurationError(
                f"{OPTION} without a package", expected=f"{OPTION} PACKAGE", remedy="name the module of your class"
            )
    return packages, others


def trust_words() -> list[str]:
    """The words that a command adds when it starts another one."""
    return [word for name in _trusted for word in (OPTION, name)]
