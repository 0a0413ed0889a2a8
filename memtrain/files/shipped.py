"""Configurations, data and the model that come with memtrain, found by name from any folder.

A clone has them in `configs/` and `assets/`. An installed wheel has the same two folders inside the package. A
configuration may be named without folder and ending (`sd15_lora`, `callbacks/loss_skipping`) or as in a clone
(`configs/sd15_lora.yaml`). Data and models are named as in a clone (`assets/tiny-sd`). A file of the current folder
wins.

Runs, checkpoints and results keep the names, not the places: the same name is looked up again whenever a file is
opened. So a run can be read from another folder, in another environment and after an upgrade.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from memtrain.errors import ConfigurationError

CONFIGS = "configs"
ASSETS = "assets"
ENDING = ".yaml"
_SHORT = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")


def shipped_folder() -> Path:
    """The folder with `configs/` and `assets/`: that of an installed wheel, else the clone."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "shipped"
    return installed if installed.is_dir() else package.parent


def config_names() -> list[str]:
    """The short names of all shipped configurations, such as `sd15_lora` and `callbacks/loss_skipping`."""
    folder = shipped_folder() / CONFIGS
    return sorted(str(path.relative_to(folder).with_suffix("").as_posix()) for path in folder.rglob(f"*{ENDING}"))


def config_file(name: str) -> Path:
    """The file of a configuration.

    Args:
        name: a path, or the short name of a shipped configuration.

    Raises:
        ConfigurationError: if there is no such file; it names the nearest ones.
    """
    as_given = Path(name)
    if _is_file(as_given):
        return as_given
    if _SHORT.fullmatch(name):
        in_clone = f"{CONFIGS}/{name}{ENDING}"
        if _is_file(Path(in_clone)):
            return Path(in_clone)
        if (found := _shipped(in_clone, CONFIGS)) is not None:
            return found
    elif (found := _shipped(name, CONFIGS)) is not None:
        return found
    if _exists(as_given):
        # A folder or a device: whoever reads it says so.
        return as_given
    raise _no_config(name)


def shipped_config(name: str) -> Path:
    """The file of a shipped configuration, also where the current folder has one of that name.

    Args:
        name: the short name.
    """
    return shipped_folder() / CONFIGS / f"{name}{ENDING}"


def not_hidden(path: str) -> str:
    """A path that means the shipped data or model in the current folder.

    Args:
        path: a shipped path such as `assets/tiny-sd`, or any other text.

    Returns:
        The path as it is, unless the current folder has another file or folder of that name: then the shipped place.
    """
    found = _shipped(path, ASSETS) if path.startswith(f"{ASSETS}/") else None
    own = Path(path)
    return str(found) if found is not None and _exists(own) and not own.samefile(found) else path


def at_hand(path: str) -> str:
    """The path under which data or a model can be opened.

    Args:
        path: a path of the user, a hub name, an address, or a shipped path such as `assets/tiny-sd`.

    Returns:
        The shipped file or folder where the path names one and the current folder has none; else the path itself.
    """
    if not path.startswith(f"{ASSETS}/") or _exists(Path(path)):
        return path
    found = _shipped(path, ASSETS)
    return path if found is None else str(found)


def _shipped(name: str, folder: str) -> Path | None:
    """The shipped file or folder of a relative name; None where there is none."""
    parts = PurePosixPath(name).parts
    if len(parts) < 2 or parts[0] != folder or ".." in parts:
        return None
    path = shipped_folder().joinpath(*parts)
    return path if _exists(path) else None


def _no_config(name: str) -> ConfigurationError:
    names = config_names()
    groups = sorted({one.partition("/")[0] for one in names if "/" in one})
    short = _short(name)
    if short in groups:
        members = [one for one in names if one.startswith(f"{short}/")]
        return ConfigurationError(
            f"{name!r:.120} is a group of configurations",
            expected=f"one of {', '.join(members)}",
            remedy=f"such as --config {members[0]}",
        )
    listed = [one for one in names if "/" not in one] + [f"{one}/..." for one in groups]
    near = _nearest(name, short, names)
    return ConfigurationError(
        f"There is no configuration {name!r:.120}",
        expected=f"a YAML file, or the name of a shipped configuration ({', '.join(listed)})",
        remedy=f"did you mean {near}?" if near else "check the path; it is relative to the current folder",
    )


def _short(name: str) -> str:
    """The short name that a name may have been meant as: `Tiny.yaml` becomes `tiny`."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    parts = parts[parts.index(CONFIGS) + 1 :] if CONFIGS in parts else parts
    return "/".join(parts).lower().removesuffix(".yml").removesuffix(ENDING)


def _nearest(name: str, short: str, names: list[str]) -> str:
    """The shipped name or the file beside that a name was meant as; empty if nothing is near."""
    if short in names:
        return short
    folder = Path(name).parent
    beside = [str(one) for one in sorted(folder.glob(f"*{ENDING}"))] if _exists(folder) else []
    begun = [one for one in names if len(short) > 2 and one.startswith(f"{short}_")]
    near = get_close_matches(str(Path(name)), beside, n=1) or begun or get_close_matches(short, names, n=1)
    return near[0] if near else ""


def hides_shipped(name: str) -> bool:
    """Whether a name means a file of the current folder, although memtrain ships a configuration of that name.

    Args:
        name: what the command line gives as configuration.
    """
    return bool(_SHORT.fullmatch(name)) and _is_file(Path(name)) and name in config_names()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds NUL
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
