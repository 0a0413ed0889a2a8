"""The check of all keys and captions of a source at once.

| treatment | keys and captions |
|---|---|
| accepted | UTF-8 of any script, line breaks and tabs, several samples under one caption |
| warned of, with the number | control characters in captions, which are trained on as they are |
| refused, with the number and the first few | the cases below |

A source without samples, a duplicate key and an empty caption are refused. So is a key or caption that holds a NUL, is
not UTF-8 (a lone surrogate), or is longer than :data:`LONGEST_KEY` or :data:`LONGEST_CAPTION`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from memtrain.errors import DataError

log = logging.getLogger(__name__)
LONGEST_KEY = 4096
"""The largest number of characters of a key, which is the limit of a path."""
LONGEST_CAPTION = 20_000
"""The largest number of characters of a caption, which is more than any text encoder reads."""
TOLD = 3
"""The number of samples that a message names."""
CONTROLS = re.compile("[\\x01-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f]")
"""Control characters except tabs and line breaks."""


class Captioned(Protocol):
    """The checked parts of a sample."""

    @property
    def key(self) -> str:
        """The name of the sample."""

    @property
    def caption(self) -> str:
        """The text that is trained on."""

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The other texts."""


def require_samples(samples: Sequence[Captioned], path: Path) -> None:
    """Refuse an empty source, unusable texts, empty captions and duplicate keys.

    Args:
        samples: the samples of a source.
        path: the path of the source.

    Raises:
        DataError: with the names of the samples concerned.
    """
    if not samples:
        raise DataError(
            f"No captioned image was found in {path}",
            expected="at least one image with a caption",
            remedy="check --data.init_args.path",
        )
    ordinary = getattr(samples, "ordinary", None)
    if ordinary is not None and ordinary(most=(LONGEST_KEY, LONGEST_CAPTION), controls=CONTROLS.pattern):
        return  # for millions of samples, a check of each would take minutes
    found: dict[str, list[str]] = {}
    for sample in samples:
        for problem in problems(sample):
            found.setdefault(problem, []).append(f"{sample.key[:80]!a}")
    for problem, keys in found.items():
        raise DataError(
            f"{len(keys)} sample(s) in {path} have {problem}, first [{', '.join(keys[:TOLD])}]",
            expected="UTF-8 text of the length of a caption or a path",
            remedy="correct the text, or remove these samples",
        )
    repeated = [key for key, count in Counter(sample.key for sample in samples).items() if count > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} key(s) name more than one sample in {path}, first {repeated[:TOLD]}",
            expected="one key per sample: records, flags and the held-out split use it",
            remedy="rename the samples. Give an image with several captions one line with a list `texts`. To plant "
            "repetitions on purpose, use `--data.init_args.duplicates '{count: 1, repeats: 100, only_in: null}'`",
        )
    empty = [one.key for one in samples if not all(text.strip() for text in (one.caption, *one.alternatives))]
    if empty:
        raise DataError(
            f"{len(empty)} sample(s) in {path} have an empty caption, first {empty[:TOLD]}",
            expected="a non-empty caption for every image",
            remedy="write the captions, or remove these samples",
        )
    strange = [one.key for one in samples if any(CONTROLS.search(text) for text in (one.caption, *one.alternatives))]
    if strange:
        log.warning(
            "%d of %d samples in %s have control characters in a caption, which are trained on unchanged, first %a",
            len(strange),
            len(samples),
            path,
            strange[:TOLD],
        )


def problems(sample: Captioned) -> Iterator[str]:
    """Yield the problems of a sample's texts."""
    for what, texts, most in (
        ("a key", (sample.key,), LONGEST_KEY),
        ("a caption", (sample.caption, *sample.alternatives), LONGEST_CAPTION),
    ):
        if any(len(text) > most for text in texts):
            yield f"{what} of more than {most} characters"
        elif any("\0" in text for text in texts):
            yield f"{what} that holds a NUL character"
        elif not all(map(_writable, texts)):
            yield f"{what} that is not UTF-8"


def _writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
