"""Results files with a published schema: what is written fits it, or is not called by its name.

Each file has a JSON Schema (draft 2020-12, https://json-schema.org/draft/2020-12) in `memtrain/evaluation/schemas`,
which is strict about the types of the keys it knows and lets others be. It holds for every version of the file so far:
`schema_version` says which, and what came later is not required.
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
"""Places that an error names."""


def write_results(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Write a results file by :func:`memtrain.records.write_json`, if it fits its schema.

    Args:
        content: what the file holds.
        path: of the file, whose name names the schema.

    Returns:
        What reading the file again gives.

    Raises:
        RecordError: if it does not fit. What was measured is kept beside, as `<name>.invalid.json`.
    """
    kept = path.with_name(f"{path.stem}.invalid.json")
    read = write_json(content, kept)
    if problems := problems_of(read, path.name):
        raise RecordError(
            f"What was measured does not fit the schema of {path.name}: {'; '.join(problems[:MOST])}",
            expected=f"what memtrain/evaluation/schemas/{path.stem}.schema.json says",
            remedy=f"report this; the figures are kept in {kept}",
        )
    kept.replace(path)
    return read


def problems_of(content: Mapping[str, Any], name: str) -> list[str]:
    """What in a results file does not fit its schema; nothing if it fits.

    Args:
        content: of the file.
        name: of the file, such as `results.json`.
    """
    # Of a choice between forms, the problem is that of the form that was nearly met.
    found = [best_match([error]) for error in _validator(name).iter_errors(content)]
    return sorted(f"{'.'.join(map(str, error.absolute_path)) or 'the file'}: {error.message[:200]}" for error in found)


def schema_of(name: str) -> dict[str, Any]:
    """The schema of a results file.

    Args:
        name: of the file, such as `results.json`.
    """
    place = resources.files("memtrain") / "evaluation" / "schemas" / f"{Path(name).stem}.schema.json"
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return found


@cache
def _validator(name: str) -> Draft202012Validator:
    schema = schema_of(name)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)
