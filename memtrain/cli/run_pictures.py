"""The pictures of a run: which of its training files are one, in which group each is, and which captions they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from memtrain.data.module import TextImageDataModule
from memtrain.data.regularisation import PREFIX
from memtrain.evaluation.stages.run_samples import picture_of
from memtrain.families.table import Families, listed_keys
from memtrain.functional.keyed_draws import hash_order
from memtrain.records import CANARY, PLANTED, REGULARISATION, REPEATED, UNIQUE, VARIED_CAPTIONS, VARIED_IMAGES

GROUPS = (PLANTED, VARIED_CAPTIONS, VARIED_IMAGES, CANARY, REGULARISATION)
"""Groups that a picture is in as soon as one of its files is, in this order."""


def read_families(folder: Path, data: TextImageDataModule) -> tuple[Families | None, int]:
    """The families of a run, and how many of its training files they do not know.

    Args:
        folder: the folder of the run. Its `records/families.parquet` counts before a new search of the data module.
        data: the data of the run, built.

    Returns:
        None if nobody has looked for families.
    """
    path = folder / "records" / "families.parquet"
    if not path.is_file():
        return data.families, 0
    families, known = Families.read(path), listed_keys(path)
    return families, sum(
        data.template.get(key, key) not in known for key in data.visits_per_epoch if _is_file(data, key)
    )


def _is_file(data: TextImageDataModule, key: str) -> bool:
    """Whether a training sample comes from the data; synthetic ones and regularisation images do not."""
    return data.groups.get(key) not in (CANARY, REGULARISATION)


@dataclass
class Pictures:
    """The training pictures of a run.

    Attributes:
        data: the data of the run, built.
        families: the families of the files; None if nobody has looked, and then every file is a picture.
        rows: the rows of the training dataset, by picture, in the order of the data.
        groups: the group of each picture.
    """

    data: TextImageDataModule
    families: Families | None = None
    rows: dict[str, list[int]] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.data.train_dataset is not None
        self.samples = self.data.train_dataset.samples
        held = [] if self.data.heldout_dataset is None else self.data.heldout_dataset.samples
        self._regular = {one.key: PREFIX + one.caption for one in (*self.samples, *held) if one.key.startswith(PREFIX)}
        for row, sample in enumerate(self.samples):
            self.rows.setdefault(self.name(sample.key), []).append(row)
        for name, rows in self.rows.items():
            found = {self.data.groups[self.samples[row].key] for row in rows}
            several = REPEATED if len(rows) > 1 else UNIQUE
            self.groups[name] = next((group for group in GROUPS if group in found), several)
        self.shared = self._shared()

    def name(self, key: str) -> str:
        """The name of the picture that a file shows, whether it was trained on or not."""
        return picture_of(key, self.families, self.data.template)

    def caption(self, key: str) -> str:
        """Name of a file's caption family; nobody looks for those of regularisation images, which share theirs."""
        if key.startswith(PREFIX):
            return self._regular.get(key, key)
        return self.families.caption(key) if self.families is not None else key

    def _shared(self) -> dict[str, list[int]]:
        """Rows by caption family, of the captions that several training pictures share."""
        rows: dict[str, list[int]] = {}
        for row, sample in enumerate(self.samples):
            # Regularisation images share a caption because that is their purpose.
            if self.data.groups[sample.key] != REGULARISATION:
                rows.setdefault(self.caption(sample.key), []).append(row)
        several = {name: {self.name(self.samples[row].key) for row in found} for name, found in rows.items()}
        return {name: found for name, found in rows.items() if len(several[name]) > 1}

    def in_group(self, group: str) -> list[str]:
        """Names of a group's pictures: by hash, repeated ones with the most files first."""
        found = [name for name, one in self.groups.items() if one == group]
        files = {name: len(self.rows[name]) if group == REPEATED else 0 for name in found}
        return sorted(found, key=lambda name: (-files[name], hash_order(name, "evaluation")))

    def shared_beside(self, rows: Collection[int]) -> list[int]:
        """A row of each shared caption under which none of `rows` is; captions of the most files first."""
        asked = {self.caption(self.samples[row].key) for row in rows}
        # The caption of a planted picture is a planted prompt, whether it is asked or not.
        planted = {name for name, found in self.shared.items() if any(self._planted(row) for row in found)}
        names = [name for name in self.shared if name not in asked | planted]
        names.sort(key=lambda name: (-len(self.shared[name]), hash_order(name, "evaluation")))
        return [self.first(self.shared[name]) for name in names]

    def _planted(self, row: int) -> bool:
        return self.groups[self.name(self.samples[row].key)] in GROUPS

    def under_own_caption(self, name: str) -> bool:
        """Whether no other picture has the caption of this one, which has one file."""
        return self.caption(self.samples[self.rows[name][0]].key) not in self.shared

    def first(self, rows: Collection[int]) -> int:
        """The row that comes first by the hash of its key."""
        return min(rows, key=lambda row: hash_order(self.samples[row].key, "evaluation"))

    def captions_of(self, name: str, most: int) -> list[int]:
        """Rows of a picture under different captions, `most` at most: planted files first, then common captions."""
        texts = {row: self._text(row) for row in self.rows[name]}
        count = Counter(texts.values())

        def place(row: int) -> tuple[bool, int, object]:
            planted = self.data.groups[self.samples[row].key] == PLANTED
            return not planted, -count[texts[row]], hash_order(self.samples[row].key, "evaluation")

        found: dict[str, int] = {}
        for row in sorted(texts, key=place):
            found.setdefault(texts[row], row)
        return list(found.values())[:most]

    def _text(self, row: int) -> str:
        """A caption as far as captions are told apart."""
        sample = self.samples[row]
        family = self.caption(sample.key)
        return family if family in self.shared else " ".join(sample.caption.split()).casefold()
