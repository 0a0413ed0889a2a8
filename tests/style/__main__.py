"""List what breaks the style rules of CONTRIBUTING.md: `python -m tests.style [PATHS]`.

`--update` writes how many findings each file has now to `allowance.txt`. The number of a file may only fall, and
`tests/test_style.py` fails while it is not what the file has.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from .rules import findings, sentences
from .texts import READERS, of_file

ROOT = Path(__file__).resolve().parents[2]
ALLOWANCE = Path(__file__).with_name("allowance.txt")
PATTERNS = (
    *("*.md", "docs/**/*.md", "benchmarks/*.md", "slurm/*.md", "assets/**/*.md", "examples/**/*.md"),
    "examples/**/*.ipynb",
    *("*.py", "memtrain/**/*.py", "benchmarks/*.py", "examples/**/*.py", "configs/**/*.yaml"),
)
HEAD = """\
# Findings of the style rules that a file may still have, one file a line, sorted. A file that is not listed has none.
# `python -m tests.style PATH` shows the findings. After mending some, and after a merge with conflicts in this file
# (take either side): `python -m tests.style --update`.
"""


def files() -> list[str]:
    """The files that the rules hold for, by path from the root."""
    found = {path for pattern in PATTERNS for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def findings_of(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, rule and first words of each finding in a file."""
    for text in of_file(path):
        for number, (place, sentence) in enumerate(sentences(text.text)):
            line = text.line + text.text[:place].count("\n")
            for finding in findings(sentence, entry=text.entry and number == 0):
                yield line, finding, " ".join(sentence.split())


def read_allowance(text: str) -> dict[str, int]:
    """How many findings each file may have."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("#", "<", "=", ">"))]
    return {path: int(count) for path, _, count in (line.rpartition(" ") for line in lines)}


def written(counts: Mapping[str, int]) -> str:
    """The text of the allowance file."""
    return HEAD + "".join(f"{path} {count}\n" for path, count in sorted(counts.items()) if count)


def differences(counts: Mapping[str, int], allowed: Mapping[str, int]) -> list[str]:
    """One line for each file whose number of findings is not the allowed one, and what to do."""
    found = []
    for path in sorted({*counts, *allowed}):
        count, most = counts.get(path, 0), allowed.get(path, 0)
        if count > most:
            found.append(f"{path} has {count} findings, {most} allowed: python -m tests.style {path}")
        elif count < most:
            found.append(f"{path} has {count} findings, {most} allowed: python -m tests.style --update")
    return found


def counted() -> dict[str, int]:
    """How many findings each file has."""
    return {path: sum(1 for _ in findings_of(ROOT / path)) for path in files()}


def main(arguments: list[str] | None = None) -> int:
    """List findings, or write how many there are; 1 if some are listed."""
    parser = argparse.ArgumentParser(prog="python -m tests.style", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("paths", nargs="*", help="Files and folders; default all that the rules hold for.")
    parser.add_argument("--update", action="store_true", help="Write the number of findings of each file.")
    parser.add_argument("--count", action="store_true", help="Show the number of findings of each file alone.")
    given = parser.parse_args(arguments)
    if given.update:
        ALLOWANCE.write_text(written(counted()), encoding="utf-8")
        return 0
    wanted = [Path(path).resolve() for path in given.paths]
    shown = [ROOT / path for path in files()]
    shown = [path for path in shown if not wanted or any(path.is_relative_to(folder) for folder in wanted)]
    shown += [path for path in wanted if path.is_file() and path.suffix in READERS and path not in shown]
    total = 0
    for path in shown:
        found = sorted(findings_of(path))
        total += len(found)
        name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        if given.count and found:
            print(f"{name} {len(found)}")
        for line, finding, sentence in () if given.count else found:
            print(f"{name}:{line}: {finding}\n    {sentence}")
    print(f"{total} findings in {len(shown)} files")
    return int(total > 0)


if __name__ == "__main__":
    raise SystemExit(main())
