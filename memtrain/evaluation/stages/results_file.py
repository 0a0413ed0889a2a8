"""Results files with a published schema, which every written file fits.

Each file has a JSON Schema (draft 2020-12, https://json-schema.org/draft/2020-12) in `memtrain/evaluation/schemas`,
which is strict about the types of known keys, and allows other keys. It holds for every version of the file.
`schema_version` is the version, and later keys are not required.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from memtrain.errors import RecordError
from memtrain.records import write_json

MOST = 5
"""Largest number of places that an error names."""


def write_results(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Write a results file by :func:`memtrain.records.write_json`, if it fits its schema.

    Args:
        content: the content of the file.
        path: the file, whose name selects the schema.

    Returns:
        The content as read from the file.

    Raises:
        RecordError: if the content does not fit the schema. It is kept as `<name>.invalid.json`.
    """
    kept = path.with_name(f"{path.stem}.invalid.json")
    read = write_json(content, kept)
    if problems := problems_of(read, path.name):
        raise RecordError(
            f"The results do not fit the schema of {path.name}: {'; '.join(problems[:MOST])}",
            expected=f"the schema memtrain/evaluation/schemas/{path.stem}.schema.json",
            remedy=f"report this as a defect of memtrain; the figures are in {kept}",
        )
    kept.replace(path)
    return read


def problems_of(content: Mapping[str, Any], name: str) -> list[str]:
    """Describe the parts of a results file that do not fit its schema; an empty list if all fit.

    Args:
        content: the content of the file.
        name: the name of the file, such as `results.json`.
    """
    # For a choice between forms, the problem of the best-matching form is shown.
    found = [best_match([error]) for error in _validator(name).iter_errors(content)]
    return sorted(f"{'.'.join(map(str, error.absolute_path)) or 'the file'}: {error.message[:200]}" for error in found)


def schema_of(name: str) -> dict[str, Any]:
    """Read the schema of a results file.

    Args:
        name: the name of the file, such as `results.json`.
    """
    place = resources.files("memtrain") / "evaluation" / "schemas" / f"{Path(name).stem}.schema.json"
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return found


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = schema_of(name)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)
