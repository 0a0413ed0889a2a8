"""A list of all packages that this machine lacks; before it is complete, only the standard library is imported."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

NEEDED = {
    "accelerate": "accelerate",
    "braceexpand": "braceexpand",
    "diffusers": "diffusers",
    "docstring_parser": "docstring_parser",
    "importlib_metadata": "importlib_metadata",
    "jinja2": "Jinja2",
    "jsonargparse": "jsonargparse",
    "lightning.pytorch": "lightning",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "PIL": "pillow",
    "pyarrow": "pyarrow",
    "regex": "regex",
    "requests": "requests",
    "rich": "rich",
    "safetensors": "safetensors",
    "torch": "torch",
    "torchmetrics": "torchmetrics",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "typeshed_client": "typeshed_client",
    "webdataset": "webdataset",
    "yaml": "PyYAML",
    "zipp": "zipp",
}
"""Distribution by the module that is imported: what memtrain needs, and what that needs without torch bringing it."""


def lacking(needed: dict[str, str] = NEEDED) -> list[str]:
    """One line for each package that cannot be imported: name, version of constraints.txt, and the error."""
    found = []
    for module, distribution in needed.items():
        try:
            import_module(module)
        except Exception as error:
            found.append(f"{distribution}=={_version(distribution)} ({type(error).__name__}: {error})")
    return found


def require_packages() -> None:
    """End the program with the list of what is missing, if anything is."""
    if missing := lacking():
        sys.exit("\n  ".join([f"This machine lacks {len(missing)} package(s):", *missing]))


def _version(distribution: str) -> str:
    text = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8")
    line = re.search(rf"^{re.escape(distribution)}==(\S+)$", text, re.MULTILINE | re.IGNORECASE)
    return line.group(1) if line else "?"
