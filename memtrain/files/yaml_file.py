"""YAML that somebody else wrote: plain values, no objects, no aliases that grow.

Accepted: what `yaml.safe_load` accepts. Refused: files beyond a size, values that aliases make large or endless (a few
lines make billions), nesting beyond any use, tags of objects, and a key that stands twice in one mapping, of which YAML
would keep the last in silence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.text import read_text

MOST_BYTES = 2**22
"""Size of a YAML file at most."""
MOST_VALUES = 100_000
"""Values that a file with aliases may stand for."""
MOST_DEPTH = 60
"""Lists and mappings in one another at most."""


def read_yaml(path: Path) -> Any:
    """The value that a YAML file holds.

    Raises:
        ConfigurationError: if it cannot be read, or is no YAML of the kind above.
    """
    if path.exists() and not path.is_file():
        raise ConfigurationError(
            f"{path} is {'a folder' if path.is_dir() else 'no plain file'}",
            expected="a YAML file",
            remedy="name the file, such as config.yaml",
        )
    try:
        return yaml_of(read_text(path, most=MOST_BYTES), str(path))
    except DataError as error:
        raise ConfigurationError(error.problem, expected=error.expected, remedy=error.remedy) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The settings that a YAML file holds: a mapping of names.

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
        f"{path} holds {found}", expected="settings, such as `trainer: {max_steps: 100}`", remedy="mend the file"
    )


def yaml_of(text: str, where: str) -> Any:
    """The value that YAML text stands for.

    Args:
        text: YAML.
        where: which file; for the error.

    Raises:
        ConfigurationError: if it is no YAML of the kind above.
    """
    try:
        check_yaml(text, where)
        refuse_doubled_keys(text, where)
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{where} is not YAML: {_said(error)}", expected="YAML of plain values", remedy="mend it"
        ) from error


def check_yaml(text: str, where: str) -> None:
    """Refuse what makes more of a text than stands in it.

    Args:
        text: YAML.
        where: which file; for the error.

    Raises:
        ConfigurationError: if it is nested too deep, or its aliases make it too large.
        yaml.YAMLError: if it is no YAML.
    """
    if not any(mark in text for mark in "[{*-:?") or text.isspace():
        return
    sizes: dict[str | None, int] = {}
    # Of each list or mapping that is open: its anchor, and the values in it.
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
                    expected=f"{MOST_DEPTH} levels at most",
                    remedy="check whether it is the right file",
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
            if anchor is not None:
                sizes[anchor] = size
        elif isinstance(event, yaml.AliasEvent):
            # An alias of what is still open holds itself.
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
    """Refuse a mapping with one key twice.

    Args:
        text: YAML.
        where: which file; for the error.

    Raises:
        ConfigurationError: naming the key and its line.
        yaml.YAMLError: if it is no YAML.
    """
    # Of each list or mapping that is open: its keys so far, None for a list; and whether a key comes next.
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
                            expected="each key once: of two, YAML keeps the last in silence",
                            remedy="remove one of them",
                        )
                    keys.add(event.value)
        if isinstance(event, yaml.MappingStartEvent):
            opened.append((set(), True))
        elif isinstance(event, yaml.SequenceStartEvent):
            opened.append((None, False))


def _said(error: Exception) -> str:
    """What is wrong, and in which line."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    mark = getattr(error, "problem_mark", None)
    said = str(getattr(error, "problem", None) or " ".join(str(error).split()))
    return f"{said}, in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else said
