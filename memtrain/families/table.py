"""The families of a data set: the samples of one picture, the samples with one caption, and the table of both.

Memorization depends on the picture, not the file. A data set from the web, a photo library or a scraped set holds
copies under names of their own, and a model learns from all of them together. A *picture family* is one picture: equal
pixels, or nearly equal ones. A *caption family* shares a caption.

`families.parquet` has one row per sample with these columns:

- `key`: the key of the sample;
- `picture_family` and `caption_family`: the key of the family's first member (a sample alone has its own key);
- `similarity`: the similarity to the member that brought the sample into its picture family, 1 for equal pixels. It is
  null for a sample that stands alone, and for the first of a family;
- `reason`: `exact` or `near`; null in the same cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from memtrain.errors import DataError, RecordError
from memtrain.files.parquet_table import read_parquet
from memtrain.records import write_parquet

EXACT, NEAR = "exact", "near"
"""The reasons why a sample belongs to a picture family."""
COLUMNS = ("key", "picture_family", "caption_family", "similarity", "reason")


class FamilyIndex(Protocol):
    """The known families of samples: of all samples before training, or of the samples met so far."""

    def picture(self, key: str) -> str:
        """Return the name of the sample's picture family, a key; its own key if it stands alone or is not known."""

    def caption(self, key: str) -> str:
        """Return the name of the sample's caption family, a key; its own key if no other picture has its caption."""

    def picture_members(self, name: str) -> Sequence[str]:
        """Return the keys of a picture family, including its name."""

    def caption_members(self, name: str) -> Sequence[str]:
        """Return the keys of a caption family, including its name."""


@dataclass(frozen=True)
class Families:
    """The families of a scanned data set.

    Attributes:
        pictures: the name of the picture family by key, for samples that do not stand alone; others may be left out.
        captions: the name of the caption family by key, for samples that share a caption.
        similarity: the similarity to the member that brought a sample into its picture family, by key.
        reason: the reason, `exact` or `near`, by key.
    """

    pictures: Mapping[str, str] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    similarity: Mapping[str, float] = field(default_factory=dict)
    reason: Mapping[str, str] = field(default_factory=dict)

    def picture(self, key: str) -> str:
        """Return the name of the sample's picture family."""
        return self.pictures.get(key, key)

    def caption(self, key: str) -> str:
        """Return the name of the sample's caption family."""
        return self.captions.get(key, key)

    def picture_members(self, name: str) -> Sequence[str]:
        """Return the keys of a picture family."""
        return self._by_picture.get(name, (name,))

    def caption_members(self, name: str) -> Sequence[str]:
        """Return the keys of a caption family."""
        return self._by_caption.get(name, (name,))

    @cached_property
    def _by_picture(self) -> Mapping[str, tuple[str, ...]]:
        return _members(self.pictures)

    @cached_property
    def _by_caption(self) -> Mapping[str, tuple[str, ...]]:
        return _members(self.captions)

    def table(self, keys: Iterable[str]) -> pa.Table:
        """Return `families.parquet` of the samples `keys`."""
        names = list(keys)
        return pa.table(
            {
                "key": pa.array(names, pa.string()),
                "picture_family": pa.array([self.picture(key) for key in names], pa.string()),
                "caption_family": pa.array([self.caption(key) for key in names], pa.string()),
                "similarity": pa.array([self.similarity.get(key) for key in names], pa.float32()),
                "reason": pa.array([self.reason.get(key) for key in names], pa.string()),
            }
        )

    def write(self, path: Path, keys: Iterable[str]) -> None:
        """Write `families.parquet`, whole or not at all."""
        write_parquet(self.table(keys), path)

    @classmethod
    def read(cls, path: str | Path) -> Families:
        """Read the families of a table.

        Raises:
            RecordError: if the file is not such a table.
        """
        table = _opened(path)
        keys = table["key"].to_pylist()

        def known(name: str) -> dict[str, object]:
            values = table[name].to_pylist() if name in table.column_names else []
            return {key: value for key, value in zip(keys, values, strict=False) if value is not None}

        def shared(name: str) -> dict[str, str]:
            named = {str(key): str(value) for key, value in known(name).items()}
            heads = {value for key, value in named.items() if key != value}
            return {key: value for key, value in named.items() if value in heads}

        return cls(
            shared("picture_family"),
            shared("caption_family"),
            {key: float(value) for key, value in known("similarity").items()},  # type: ignore[arg-type]
            {key: str(value) for key, value in known("reason").items()},
        )


def listed_keys(path: str | Path) -> frozenset[str]:
    """Return the keys of all samples in a table.

    Raises:
        RecordError: if the file is not such a table.
    """
    return frozenset(_opened(path)["key"].to_pylist())


def _opened(path: str | Path) -> pa.Table:
    if not Path(path).is_file():
        raise RecordError(
            f"{path} does not exist",
            expected="families.parquet of a scan",
            remedy="run `memtrain scan`, or check the path",
        )
    remedy = "run `memtrain scan`, or check the path"
    try:
        table = read_parquet(Path(path), needed=COLUMNS[:3])
    except DataError as error:
        raise RecordError(error.problem, expected="families.parquet of a scan", remedy=remedy) from error
    for name in COLUMNS[:3]:
        if not pa.types.is_string(table[name].type) and not pa.types.is_large_string(table[name].type):
            raise RecordError(
                f"{path} has {table[name].type} in its column {name!r}",
                expected="families.parquet of a scan, with text in it",
                remedy=remedy,
            )
    return table


def _members(names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the keys by family."""
    found: dict[str, list[str]] = {}
    for key, name in names.items():
        found.setdefault(name, []).append(key)
    return {name: tuple(keys) for name, keys in found.items()}
