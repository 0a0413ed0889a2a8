"""YAML that somebody else wrote: plain values, no objects, no aliases that grow.

Accepted: the files that `yaml.safe_load` accepts. Refused: files beyond a size, values that aliases make large or
endless (a few lines make billions), excessive nesting, and tags of objects. A key that occurs twice in one mapping is
refused, too, because YAML would silently keep the last one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.text import read_text

MOST_BYTES = 2**22
"""The largest size of a YAML file in bytes."""
MOST_VALUES = 100_000
"""The largest number of values in a file with aliases."""
MOST_DEPTH = 60
"""The largest depth of nested lists and mappings."""


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file.

    Raises:
        ConfigurationError: if it cannot be read, or is not YAML of the accepted kind.
    """
    if path.exists() and not path.is_file():
        raise ConfigurationError(
            f"{path} is {'a folder' if path.is_dir() else 'not a plain file'}",
            expected="a YAML file",
            remedy="name the file, such as config.yaml",
        )
    try:
        return yaml_of(read_text(path, most=MOST_BYTES), str(path))
    except DataError as error:
        raise ConfigurationError(error.problem, expected=error.expected, remedy=error.remedy) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the settings in a YAML file, which is a mapping of names.

    Raises:
        ConfigurationError: if it holds something else.
    """
    content = read_yaml(path)
    if isinstance(content, dict) and all(isinstance(name, str) for name in content):
        return content
    found = "nothing" if content is None else f"a {type(content).__name__}"
    if isinstance(content, dict):
        found = f"the key {next(name for name in content if not isinstance(name, str))!r:.40}"
    raise ConfigurationError(
        f"{path} holds {found}", expected="settings, such as `trainer: {max_steps: 100}`", remedy="correct the file"
    )


def yaml_of(text: str, where: str) -> Any:
    """Return the value of YAML text.

    Args:
        text: the YAML text.
        where: the name of the file, for the error.

    Raises:
        ConfigurationError: if it is not YAML of the accepted kind.
    """
    try:
        check_yaml(text, where)
        refuse_doubled_keys(text, where)
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{where} is not YAML: {_said(error)}", expected="YAML of plain values", remedy="correct the file"
        ) from error


def check_yaml(text: str, where: str) -> None:
    """Refuse a text that stands for many more values than it holds.

    Args:
        text: the YAML text.
        where: the name of the file, for the error.

    Raises:
        ConfigurationError: if it is nested too deep, or if its aliases make it too large.
        yaml.YAMLError: if it is not YAML.
    """
    if not any(mark in text for mark in "[{*-:?") or text.isspace():
        return
    sizes: dict[str | None, int] = {}
    # The anchor of each open list or mapping, and the number of values in it.
    opened: list[tuple[str | None, int]] = [(None, 0)]
    line = 1
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        size = 0
        line = event.start_mark.line + 1 if event.start_mark is not None else line
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, 1))
            if len(opened) > MOST_DEPTH:
                raise ConfigurationError(
                    f"{where} is nested too deep in line {line}",
                    expected=f"at most {MOST_DEPTH} levels",
                    remedy="check whether it is the right file",
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
            if anchor is not None:
                sizes[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            # An alias of an open list or mapping holds itself.
            size = sizes.get(event.anchor, 1 + MOST_VALUES * any(name == event.anchor for name, _ in opened))
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if size:
            anchor, before = opened[-1]
            opened[-1] = (anchor, before + size)
            if isinstance(event, yaml.AliasEvent) and before + size > MOST_VALUES:
                raise ConfigurationError(
                    f"{where} grows beyond {MOST_VALUES:,} values by the alias *{event.anchor} in line {line}",
                    expected="aliases (*name) that stand for a few values",
                    remedy="write the values out",
                )


def refuse_doubled_keys(text: str, where: str) -> None:
    """Refuse a mapping in which one key occurs twice.

    Args:
        text: the YAML text.
        where: the name of the file, for the error.

    Raises:
        ConfigurationError: with the key and its line.
        yaml.YAMLError: if it is not YAML.
    """
    # The keys so far of each open list or mapping (None for a list), and whether a key comes next.
    opened: list[tuple[set[str] | None, bool]] = []
    line = 1
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        line = event.start_mark.line + 1 if event.start_mark is not None else line
        if isinstance(event, yaml.CollectionEndEvent):
            opened.pop()
        if isinstance(event, yaml.CollectionStartEvent | yaml.ScalarEvent | yaml.AliasEvent) and opened:
            keys, key_next = opened[-1]
            if keys is not None:
                opened[-1] = (keys, not key_next)
                if key_next and isinstance(event, yaml.ScalarEvent) and event.value != "<<":
                    if event.value in keys:
                        raise ConfigurationError(
                            f"{where} has the key {event.value!r:.80} twice in one mapping, again in line {line}",
                            expected="each key once, because YAML silently keeps the last of two",
                            remedy="remove one of them",
                        )
                    keys.add(event.value)
        if isinstance(event, yaml.MappingStartEvent):
            opened.append((set(), True))
        elif isinstance(event, yaml.SequenceStartEvent):
            opened.append((None, False))


def _said(error: Exception) -> str:
    """Return what is wrong, and in which line."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    mark = getattr(error, "problem_mark", None)
    said = str(getattr(error, "problem", None) or " ".join(str(error).split()))
    return f"{said}, in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else said
