"""The parts that a pipeline's folder may name, checked before anything is imported or opened.

Accepted: parts of diffusers and transformers, by the names of their classes. Refused: parts of other packages or of
code in the folder, classes that look for such code (`Auto...`), names that are paths, and shards outside the folder. A
path that does not exist is refused as a path, and never looked up on the Hugging Face hub. Hub names are `owner/name`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.inside import inside, safe_name
from memtrain.files.shown import shown
from memtrain.files.text import read_json

LIBRARIES = ("diffusers", "transformers")
"""The packages whose classes a part may have."""
MOST_BYTES = 2**26
"""The largest size of a JSON file in bytes."""
_PART = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CLASS = re.compile(r"(?!Auto(?!encoder))[A-Z][A-Za-z0-9_]{0,127}")
_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SAFETY = ("safety_checker", "feature_extractor", "image_encoder")


def check_place(pretrained: str, expected: str) -> None:
    """Refuse a model that neither exists nor has the form of a hub name.

    Args:
        pretrained: a path or a name.
        expected: the expectation in the error.

    Raises:
        ConfigurationError: if it is a path that does not exist.
    """
    path = Path(pretrained)
    try:
        if path.exists():
            return
        beside = path.parent.is_dir() and path.parent != Path()
    except OSError:  # a name that is too long
        beside = True
    if "://" in pretrained:
        raise ConfigurationError(
            f"{shown(pretrained)} is an address", expected=expected, remedy="download it and name the folder"
        )
    if not _HUB.fullmatch(pretrained) or beside:
        raise ConfigurationError(
            f"There is no model {shown(pretrained)!r}",
            expected=expected,
            remedy="check the path; names on the hub are owner/name",
        )


def is_hub_name(pretrained: str) -> bool:
    """Return whether a model is on the hub, and may be looked up there."""
    return not Path(pretrained).exists() and _HUB.fullmatch(pretrained) is not None


def check_index(index: dict[str, Any], where: str) -> None:
    """Refuse a model_index.json by the parts that it names.

    Args:
        index: the content of the file.
        where: the name of the file, for the error.

    Raises:
        ConfigurationError: if a part has a foreign package or class, or an unusual name.
    """
    for name, part in index.items():
        if name.startswith("_") or not isinstance(part, list):
            continue
        if not _PART.fullmatch(name):
            raise _refused(f"{where} names a part {shown(name)!r}", "parts such as unet and text_encoder")
        library, kind = part if len(part) == 2 else (part, None)
        if library is None and kind is None:
            continue
        # The class of Stable Diffusion's safety checker, which is not loaded, is in the pipeline's own module.
        if name in _SAFETY and library in (*LIBRARIES, "stable_diffusion"):
            continue
        if library not in LIBRARIES or not isinstance(kind, str) or not _CLASS.fullmatch(kind):
            raise _refused(
                f"{where} takes {name!r} from {shown(f'{library}.{kind}', most=100)!r}",
                f"a class of {' or '.join(LIBRARIES)} by its own name",
            )


def check_parts_of(folder: Path, index: dict[str, Any]) -> None:
    """Refuse configurations that are not JSON objects or ask for code of their own, and shards outside the folder.

    Raises:
        ConfigurationError: with the file.
    """
    try:
        for name, part in index.items():
            if name.startswith("_") or not isinstance(part, list) or not (folder / name).is_dir():
                continue
            inside(folder, name, f"{folder / 'model_index.json'}: {name!r}")
            config = folder / name / "config.json"
            if config.is_file():
                content = read_json(config, most=MOST_BYTES)
                if not isinstance(content, dict):
                    raise _refused(f"{config} holds a {type(content).__name__}", "the settings of a part")
                if "auto_map" in content:
                    raise _refused(f"{config} asks for code of its own (auto_map)", "a part of a known class")
            for listing in sorted((folder / name).glob("*.index.json")):
                _check_shards(listing)
    except DataError as error:
        raise ConfigurationError(error.problem, expected=error.expected, remedy=error.remedy) from error


def _check_shards(path: Path) -> None:
    content = read_json(path, most=MOST_BYTES)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise _refused(f"{path} has no weight_map", "a mapping from weights to files")
    for name in set(map(str, files.values())):
        safe_name(name, f"{path}: a file of its weight_map")
        if not name.endswith(".safetensors"):
            raise _refused(f"{path} names {name}", "safetensors files: pickled ones could run code")


def _refused(found: str, expected: str) -> ConfigurationError:
    return ConfigurationError(found, expected=expected, remedy="download the model from its authors")
