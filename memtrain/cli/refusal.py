"""The messages of jsonargparse about a command line, in the words of memtrain: found, expected, remedy.

A message lists every type that a value could have had, in several levels. The innermost level holds the user's mistake.
The levels around it give the whole name of the option, and the names of existing options.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from memtrain.cli.trusted import KNOWN, OPTION
from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.files.shown import shown

_KEY = re.compile(r"(?:Parser key|Key) \"([^\"]+)\":?")
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_NO_OPTION = re.compile(r"(?:Option|option) '([^']+)' is not accepted|does not accept (?:option|nested key) '([^']+)'")
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")
_NO_NAME = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_WRONG_TYPE = re.compile(r"(?:- )?Expected an? (.+?)(?:\. Got value: (.*))?$", re.S)
_NOT_OF_KIND = re.compile(r"Import path (\S*) ?does not correspond to a subclass of (\w+)")
_NOISE = re.compile(
    r"Subtypes: |Errors:$|Given value|Does not validate|Subclass types expect|- a (class path|dict)|Expected a path but"
    r"|\s*$|Expected a <class 'NoneType'>|Not a valid subclass|Parser key|Problem with given class_path"
)
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "NoneType": "null",
    "list": "a list",
    "dict": "a mapping",
    "PositiveInt": "a whole number above 0",
}
"""Types in words."""


def own_error(error: BaseException | None) -> MemtrainError | None:
    """An error of ours, or the one that the parser met while it made an object, and hid behind one of its own."""
    while error is not None and not isinstance(error, MemtrainError):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error


def refusal(message: str, options: Iterable[str] = ()) -> ConfigurationError:
    """The mistake in a command line or a configuration.

    Args:
        message: the message of jsonargparse.
        options: the existing options, for the nearest to an unknown one.
    """
    known = sorted({option.lstrip("-") for option in options})
    lines = message.strip().splitlines() or ["nothing"]
    path, classes = _path(lines)
    leaves = [line for line in lines if not _NOISE.match(line.strip().removeprefix("- "))]
    # The deepest says what was done: others are types that the value was not meant to have.
    deepest = max((_depth(line) for line in leaves), default=0)
    said = [line.strip().removeprefix("- ") for line in leaves if _depth(line) == deepest] or [lines[0].strip()]
    for line in [*said, *lines]:
        if (found := _DENIED.search(line)) is not None:
            return _denied(path, found[1])
        if (found := _NO_OPTION.search(line)) is not None:
            name = found[1] or found[2]
            return _no_option(path, name, _parameters(classes) if classes else known)
        if (found := _NO_NAME.search(line)) is not None:
            return _no_class(path, found[1], found[2])
        if (found := _NOT_OF_KIND.search(line)) is not None:
            return _told(
                f"{path or 'The class'} is {_value(lines) if not found[1] else found[1]}",
                f"the import path of a {found[2]}",
                "check the class_path",
            )
    if (found := re.search(r'in "<unicode string>", line (\d+)', message)) is not None:
        place = max(number for number, line in enumerate(lines) if "<unicode string>" in line)
        what = f"{path or 'A file'} names a file that is not YAML: {lines[max(place - 1, 0)].strip()}, line {found[1]}"
        return _told(what, "YAML of plain values", "correct this line")
    if lines[0].startswith("unrecognized arguments:"):
        return _unrecognized(lines[0].partition(": ")[2], known)
    if lines[0].startswith("the following arguments are required:"):
        names = lines[0].partition(": ")[2]
        return _told(
            f"Nothing is said about {names.replace('fit.', '')}",
            f"options or a configuration that names {names.replace('fit.', '')}",
            "such as --ckpt RUN/checkpoints/last.ckpt"
            if names == "ckpt"
            else "add --config FILE, such as --config configs/tiny.yaml",
        )
    if (found := re.search(r"invalid choice: '?(.*?)'? \(choose from (.*)\)", lines[0])) is not None:
        choices = re.findall(r"[\w-]+", found[2])
        return _told(f"There is no {found[1]!r}", f"one of {', '.join(choices)}", _nearest(found[1], choices))
    if re.search(r"No module named", said[0]):
        return _told(
            f"{path or 'A class'} names a class that does not exist: {said[0]}", "an existing class", "check the name"
        )
    return _wrong_value(path, said, lines)


def _wrong_value(path: str, said: list[str], lines: list[str]) -> ConfigurationError:
    """A value of another type than the option's."""
    matches = [found for line in said if (found := _WRONG_TYPE.match(line)) is not None]
    if not path or not matches:
        return _told(
            f"{path}: {said[0]}" if path else said[0],
            "options that --help all lists",
            "see the same command with --help all",
        )
    value = next((found[2] for found in matches if found[2] is not None), None) or _value(lines)
    kinds = [_kind(found[1]) for found in matches]
    deepest = max(_depth(line) for line in lines if _WRONG_TYPE.match(line.strip()))
    if any("NoneType" in line and _depth(line) == deepest for line in lines):
        kinds.append("null")
    return _told(f"{path} is {value!r:.120}", " or ".join(dict.fromkeys(kinds)), "change it")


def _depth(line: str) -> int:
    return len(line) - len(line.removeprefix("  ").lstrip(" "))


def _path(lines: list[str]) -> tuple[str, list[str]]:
    """The option that a message is about, and the classes in it on the way there."""
    parts: list[str] = []
    classes: list[str] = []
    for line in lines:
        if (found := _KEY.search(line)) is not None:
            parts.append(found[1])
        elif (found := _CLASS.search(line)) is not None:
            # A union says it for each of its types, and for the value as a whole.
            parts += ["init_args"] if found[1] not in classes else []
            classes.append(found[1])
    return ".".join(parts) + (f" of {classes[-1].rpartition('.')[2]}" if classes else ""), classes


def _value(lines: list[str]) -> str:
    given = next((line.partition("Given value: ")[2] for line in lines if "Given value: " in line), "of another kind")
    return given


def _kind(type_name: str) -> str:
    """A type in words."""
    literal = re.search(r"Literal\[(.*)\]", type_name)
    if literal is not None:
        try:
            return f"one of {', '.join(map(str, ast.literal_eval(f'[{literal[1]}]')))}"
        except (ValueError, SyntaxError):
            return type_name
    name = re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", type_name)
    return WORDS.get(name, name)


def _parameters(classes: list[str]) -> list[str]:
    """The options of the innermost class; it was imported when its options were asked for."""
    module, _, name = classes[-1].rpartition(".")
    kind: Any = getattr(sys.modules.get(module), name, None)
    try:
        return [one for one in inspect.signature(kind).parameters if one != "self"]
    except (TypeError, ValueError):
        return []


def _no_option(path: str, name: str, known: list[str]) -> ConfigurationError:
    if not known:
        return _told(f"{path or 'The configuration'} has no option {name!r}", "an existing option", "remove it")
    return _told(
        f"{path or 'The configuration'} has no option {name!r}",
        f"one of {', '.join(known)}" if len(known) <= 20 else "an option that --help all lists",
        _nearest(name, known),
    )


def _no_class(path: str, module: str, name: str) -> ConfigurationError:
    there = vars(sys.modules[module]) if module in sys.modules else {}
    names = [one for one, kind in there.items() if inspect.isclass(kind) and kind.__module__ == module]
    return _told(
        f"{path.partition('.init_args')[0] or 'The configuration'}: there is no {name} in {module}",
        f"one of {', '.join(names)}" if names else "an existing class",
        _nearest(name, names),
    )


def _denied(path: str, name: str) -> ConfigurationError:
    package = name.partition(".")[0]
    if package in {known.partition(".")[0] for known in KNOWN}:
        package = name.rpartition(".")[0] or name
    asked = re.sub(r"(\.init_args)? of \w+$", "", path)
    return _told(
        f"{asked or 'The configuration'} names {name}, whose code would be run",
        "a class of memtrain, lightning, torch.nn or torch.optim, or of a package that you trust",
        f"if you know what is in it, add {OPTION} {package} to the command line",
    )


def _unrecognized(words: str, known: list[str]) -> ConfigurationError:
    first = words.split()[0] if words.split() else ""
    name = first.partition("=")[0]
    if not name.startswith("-"):
        return _told(f"{first!r} stands without an option", "options as --name value", "see --help")
    return _told(
        f"There is no option {name}", "an option that --help all lists", _nearest(name.lstrip("-"), known, "--")
    )


def _nearest(name: str, known: Iterable[str], dashes: str = "") -> str:
    """The name that was meant, as far as spelling tells."""
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if not near:
        # The end of a name is what is remembered: `max_steps` of `trainer.max_steps`.
        near = [one for one in names if one.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f"did you mean {dashes}{near[0]}?" if near else "see the same command with --help all"


def _told(found: str, expected: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(shown(found), expected=shown(expected, most=500), remedy=shown(remedy))
