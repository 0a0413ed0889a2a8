"""Layouts of folders of images: the prompt and seed of each file.

A folder has to follow one of these layouts:

- `nemo`: `img_0003_01.jpg`, prompt and sample, as NeMo's `4_generate_images.py` names them;
- `memattn`: `3_The_words_of_the_prompt.png`, as MemAttn's `text2img.py` names them, with one image per prompt in a
  folder, or in each of several folders `..._seed0`, `..._seed1`. The number counts the saved images, and falls behind
  the prompts if a name was too long. So the words decide, and the number only decides between equal prompts;
- `memtrain`: `0003/seed-1.png` (originals: `0003/own.png`), in `images` or not;
- `numbered`, for originals only: `0003_any name.jpg`, as in NeMo's readme. Several files with one number are several
  references;
- a mapping: a CSV file with the columns `prompt` (row of the prompt file from 0, or the prompt itself), `file`
  (relative to the CSV, or a full path) and optionally `seed`.

Prompts are counted from 0 by the rows of their file, with empty rows, as in these scripts.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memtrain.errors import DataError
from memtrain.files.csv_table import csv_table
from memtrain.files.text import read_text

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SHOWN = 4
"""Largest number of files that an error names."""

NUMBER = re.compile(r"[0-9]{1,18}")

Found = tuple[int, int]
"""A row of the prompt file, and a seed."""


@dataclass(frozen=True)
class Pictures:
    """Files by row of the prompt file.

    Attributes:
        layout: the name of the layout.
        files: the files by row and seed.
    """

    layout: str
    files: Mapping[int, Mapping[int, Path]]

    def of(self, row: int) -> list[Path]:
        """Return the files of a row, in the order of seeds."""
        found = self.files.get(row, {})
        return [found[seed] for seed in sorted(found)]


def read_pictures(source: str | Path, prompts: Mapping[int, str], *, originals: bool = False) -> Pictures:
    """Find the images of prompts.

    Args:
        source: the folder, or the mapping.
        prompts: the prompts by row of their file.
        originals: whether these are the original images.

    Raises:
        DataError: if the folder does not exist, follows no layout or more than one, or does not fit the prompts.
    """
    path = Path(source)
    if path.suffix.lower() == ".csv" and path.is_file():
        return _checked(path, "mapping", _mapped(path, prompts), prompts)
    if not path.is_dir():
        raise DataError(
            f"{path} does not exist", expected="a folder of images, or a CSV with prompt,file", remedy="check the path"
        )
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in ENDINGS and file.is_file()]
    # A folder of a run holds own pictures and generations side by side.
    aside = r"seed-\d+" if originals else "own"
    files = [file for file in files if not (re.fullmatch(aside, file.stem) and file.parent.name.isdecimal())]
    if not files:
        raise DataError(
            f"{path} holds no images", expected=f"files that end in {', '.join(ENDINGS)}", remedy="check the path"
        )
    readers = _readers(path, prompts, originals=originals)
    counts = {name: sum(read(file) is not None for file in files) for name, read in readers.items()}
    fitting = [name for name, count in counts.items() if count]
    # `numbered` reads the number of any name, so another layout that fits all files takes precedence.
    whole = [name for name in fitting if counts[name] == len(files)]
    chosen = whole[:1] if whole[1:] in ([], ["numbered"]) and whole else []
    if not chosen:
        names = [str(file.relative_to(path)) for file in files]
        said = ", ".join(f"{counts[name]} like {name}" for name in fitting) or "none in a known layout"
        raise DataError(
            f"{path} has {len(files)} images, {said}: {', '.join(names[:SHOWN])}",
            expected=f"all in one layout: {', '.join(readers)}",
            remedy="move other files elsewhere, or name a CSV with the columns prompt,file instead of the folder",
        )
    name = chosen[0]
    found = [(read, file) for file in files if (read := readers[name](file)) is not None]
    if name == "memattn":
        found = _in_order(path, found, prompts)
    if name == "numbered":
        found = _counted(found)
    return _checked(path, name, found, prompts)


def memattn_name(prompt: str) -> str:
    """Return the words of a file name of MemAttn's script."""
    return "_".join(prompt.split(" ")).replace("/", "<#>")


def _readers(folder: Path, prompts: Mapping[int, str], *, originals: bool) -> dict[str, Callable[[Path], Found | None]]:
    """Return by layout a function that reads row and seed of a file, or None for a file of another layout."""
    words = {memattn_name(prompt) for prompt in prompts.values()}

    def nemo(file: Path) -> Found | None:
        match = re.fullmatch(r"img_(\d{4,})_(\d{2,})", file.stem)
        return (int(match[1]), int(match[2])) if match and file.parent == folder else None

    def memtrain(file: Path) -> Found | None:
        place = file.relative_to(folder).with_suffix("").as_posix()
        match = re.fullmatch(r"(?:images/)?(\d{4,})/(?:seed-(\d+)|own)", place)
        return (int(match[1]), int(match[2] or 0)) if match and (match[2] is None) == originals else None

    def memattn(file: Path) -> Found | None:
        match = re.fullmatch(r"(\d+)_(.*)", file.stem)
        if match is None or match[2] not in words:
            return None
        if file.parent == folder:
            return int(match[1]), 0
        seed = re.fullmatch(r".*_seed(\d+)", file.parent.name)
        return (int(match[1]), int(seed[1])) if seed and file.parent.parent == folder else None

    def numbered(file: Path) -> Found | None:
        match = re.fullmatch(r"(\d+)(?:[_ -].*)?", file.stem)
        return (int(match[1]), 0) if match and file.parent == folder else None

    return {"nemo": nemo, "memtrain": memtrain, **({"numbered": numbered} if originals else {"memattn": memattn})}


def _in_order(
    folder: Path, found: Sequence[tuple[Found, Path]], prompts: Mapping[int, str]
) -> list[tuple[Found, Path]]:
    """Assign MemAttn's files to prompts by the words of their names; for equal words, in the order of numbers."""
    rows = defaultdict(list)
    for row, prompt in prompts.items():
        rows[memattn_name(prompt)].append(row)
    taken: Counter[tuple[int, str]] = Counter()
    ordered = []
    for (_, seed), file in sorted(found):
        words = file.stem.partition("_")[2]
        place = taken[seed, words]
        taken[seed, words] += 1
        if place >= len(rows[words]):
            raise DataError(
                f"{folder} has {place + 1} images of the prompt {words!r}, but the file of prompts has it only "
                f"{len(rows[words])} times",
                expected="one image for each line with the prompt",
                remedy="move images of other runs elsewhere",
            )
        ordered.append(((rows[words][place], seed), file))
    return ordered


def _counted(found: Sequence[tuple[Found, Path]]) -> list[tuple[Found, Path]]:
    """Number the files of each row as its first, second, ... reference."""
    taken: Counter[int] = Counter()
    counted = []
    for (row, _), file in found:
        counted.append(((row, taken[row]), file))
        taken[row] += 1
    return counted


def _mapped(path: Path, prompts: Mapping[int, str]) -> list[tuple[Found, Path]]:
    """Read a mapping."""
    table = csv_table(read_text(path), str(path), wanted=("prompt", "file", "seed"))
    if not table.rows or not {"prompt", "file"} <= set(table.columns):
        raise DataError(
            f"{path} has the columns {list(table.columns)} and {len(table.rows)} rows",
            expected="the columns prompt, file and optionally seed, and at least one row",
            remedy="rename the columns",
        )
    texts: dict[str, int] = {}
    for row, prompt in prompts.items():
        texts.setdefault(prompt, row)
    taken: Counter[int] = Counter()
    found = []
    for line, entry in zip(table.lines, table.rows, strict=True):
        named = entry["prompt"].strip()
        row = texts.get(named, int(named) if NUMBER.fullmatch(named) else -1)
        file = path.parent / entry["file"].strip()
        seed = entry.get("seed", "").strip()
        if row not in prompts or not os.path.isfile(file) or (seed and not NUMBER.fullmatch(seed)):
            raise DataError(
                f"{path}, line {line}: prompt {named[:60]!r}, file {entry['file'][:200]!r}, seed {seed[:20]!r}",
                expected="a prompt of the prompt file or its row from 0, an existing file, and a number as seed",
                remedy="correct the line",
            )
        found.append(((row, int(seed) if seed else taken[row]), file))
        taken[row] += 1
    return found


def _checked(path: Path, layout: str, found: Sequence[tuple[Found, Path]], prompts: Mapping[int, str]) -> Pictures:
    """Check that each file belongs to an existing prompt and a different seed, and return the files."""
    files: dict[int, dict[int, Path]] = {}
    for (row, seed), file in found:
        if row not in prompts:
            raise DataError(
                f"{file} belongs to prompt {row}, but the prompts have the rows {min(prompts)} to {max(prompts)}",
                expected="images of the prompts in the file, counted from 0",
                remedy="name the file of prompts that the images were made from",
            )
        if seed in files.setdefault(row, {}):
            raise DataError(
                f"{files[row][seed].name} and {file.name} in {path} have the same prompt and seed",
                expected="one file for each prompt and seed",
                remedy="keep one of the two files",
            )
        files[row][seed] = file
    return Pictures(layout, files)
