"""WebDataset shards with random access.

A shard is a tar file in which the files of one sample share a base name: `key.png` (or .jpg, .webp and whatever else is
decoded), `key.txt` with the caption, and other files, which are ignored. `key.json` may hold the caption under
`caption` where there is no `key.txt`, and a list of captions under `captions`, beside a caption or instead of it; the
first of all is the caption, the others are its alternatives. NaN in a .json, which img2dataset writes where a number is
missing, counts as nothing. What img2dataset lists (`status` in the .json) without an image or with an empty caption is
left out, with a warning that counts it; in other shards that is an error. Shards are given as one file, a brace pattern
or a folder. The tar index is read once (:mod:`memtrain.data.tar_index` says what is refused); images are then read by
seeking, so shuffling, resuming and the held-out split are exact. Shards have to be on a file system; those elsewhere
are streamed (:mod:`memtrain.data.streamed`).
"""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from webdataset.shardlists import expand_urls

from memtrain.data.source import PACKED, Sample, SampleSource
from memtrain.data.tar_index import Place, index_tar
from memtrain.errors import DataError
from memtrain.files.pictures import SUFFIXES, UNDECODED_SUFFIXES, opened_image

log = logging.getLogger(__name__)

PREFERRED = ("png", "jpg", "jpeg", "webp")
IMAGE_EXTENSIONS = (*PREFERRED, *sorted({suffix[1:] for suffix in SUFFIXES}.difference(PREFERRED)))
"""Extensions looked for, in this order of preference."""
UNDECODED = frozenset(suffix[1:] for suffix in UNDECODED_SUFFIXES)
"""Extensions of images that are not decoded here."""
MOST_BYTES = 2**24
"""Size of a caption or a .json in a shard at most."""


class WebDatasetSource(SampleSource):
    """Samples of one or more tar shards.

    Args:
        path: a .tar file, a brace pattern of them, or a folder of .tar files.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._members: list[tuple[Path, int, int]] = []
        samples, gaps = [], []
        undecoded: Counter[str] = Counter()
        for shard in self._shards(str(path)):
            for key, files in index_tar(shard).items():
                if self._is_gap(shard, files):
                    gaps.append(key)
                    continue
                image = next((files[ext] for ext in IMAGE_EXTENSIONS if ext in files), None)
                undecoded.update(UNDECODED.intersection(files))
                if image is None:
                    raise DataError(
                        f"Sample {key!r:.100} in {shard} has no image, only {sorted(files)!s:.200}"
                        + (", which is not decoded here" if UNDECODED.intersection(files) else ""),
                        expected=f"a file with one of the extensions {', '.join(IMAGE_EXTENSIONS)}",
                        remedy="repair the shard; what follows the first dot of a name counts as its extension",
                    )
                samples.append(Sample.of(key, self._captions(shard, key, files)))
                self._members.append((shard, *image))
        if gaps:
            log.warning(
                "%d of %d samples of %s have no image or an empty caption, as img2dataset leaves them where a download "
                "failed, and are left out, first %s",
                len(gaps),
                len(gaps) + len(samples),
                path,
                gaps[:3],
            )
        if undecoded:
            log.warning(
                "%s: images that are not decoded here are left out, because an image lies beside each: %s",
                path,
                ", ".join(f"{count} .{kind}" for kind, count in sorted(undecoded.items())),
            )
        self.samples = samples
        self.check_samples()

    @staticmethod
    def accepts(path: str) -> bool:
        """A .tar file, a pattern ending in .tar, or a folder holding .tar files."""
        folder = Path(path)
        return (path.endswith(".tar") and ("{" in path or folder.exists())) or any(folder.glob("*.tar"))

    @staticmethod
    def _shards(path: str) -> list[Path]:
        folder = Path(path)
        try:
            shards = sorted(folder.glob("*.tar")) if folder.is_dir() else [Path(url) for url in expand_urls(path)]
        except ValueError as error:
            raise DataError(
                f"The shard pattern {path!r} cannot be expanded: {error}",
                expected="a pattern such as 'shards/{0000..0009}.tar'",
                remedy="mend the braces",
            ) from error
        beside = folder.iterdir() if folder.is_dir() else ()
        packed = sorted(file.name for file in beside if file.name.lower().endswith(PACKED))
        if packed:
            raise DataError(
                f"{len(packed)} file(s) in {path} are packed and would be left out, first {packed[:3]}",
                expected="uncompressed .tar files",
                remedy="unpack them (gunzip, zstd -d, unzip), or move them elsewhere",
            )
        missing = [str(shard) for shard in shards if not shard.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(shards)} shards of {path!r} do not exist, first {missing[0]}",
                expected="every shard of the pattern on disk",
                remedy="check the pattern's range",
            )
        return shards

    @staticmethod
    def _read(shard: Path, offset: int, size: int) -> bytes:
        with shard.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    @classmethod
    def _text(cls, shard: Path, place: Place) -> bytes:
        """A caption or JSON, which have some size.

        Raises:
            ValueError: if it is larger.
        """
        if place[1] > MOST_BYTES:
            raise ValueError(f"it has {place[1]} bytes, more than {MOST_BYTES}")
        return cls._read(shard, *place)

    @classmethod
    def _row(cls, shard: Path, place: Place) -> dict[str, Any]:
        """What a .json says; nothing if it is no object.

        Raises:
            ValueError: if it is no JSON.
        """
        try:
            row = json.loads(cls._text(shard, place), parse_constant=lambda name: None)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
        return row if isinstance(row, dict) else {}

    @classmethod
    def _is_gap(cls, shard: Path, files: dict[str, Place]) -> bool:
        """Whether img2dataset lists a sample of which it got no image or no caption."""
        empty = "txt" in files and files["txt"][1] < 100 and not cls._read(shard, *files["txt"]).strip()
        imageless = not any(extension in files for extension in IMAGE_EXTENSIONS)
        if "json" not in files or not (empty or imageless or "txt" not in files):
            return False
        try:
            row = cls._row(shard, files["json"])
        except ValueError:
            return False
        if not isinstance(row.get("status"), str):
            return False
        return empty or imageless or row.get("caption", "") in (None, "")

    @classmethod
    def _captions(cls, shard: Path, key: str, files: dict[str, Place]) -> list[str]:
        """All captions, the one that counts first."""
        captions: list[object] = []
        try:
            if "txt" in files:
                captions.append(cls._text(shard, files["txt"]).decode("utf-8-sig"))
            if "json" in files:
                row = cls._row(shard, files["json"])
                if not captions and "caption" in row:
                    captions.append(row["caption"])
                several = row.get("captions", [])
                if not isinstance(several, list):
                    raise ValueError(f"'captions' is {type(several).__name__}")
                captions += several
                wrong = [type(caption).__name__ for caption in captions if not isinstance(caption, str)]
                if wrong or not captions:
                    raise ValueError(f"a caption is {wrong[0]}" if wrong else "there is none")
        except ValueError as error:
            raise DataError(
                f"The caption of sample {key!r} in {shard} cannot be read: {error}",
                expected="UTF-8 text in .txt, or JSON with a 'caption' or a list of 'captions'",
                remedy="write the caption again",
            ) from error
        if not captions:
            raise DataError(
                f"Sample {key!r} in {shard} has no caption, only {sorted(files)}",
                expected="a .txt file with the caption, or a .json file with a 'caption'",
                remedy="add the caption to the shard",
            )
        return [str(caption) for caption in captions]

    def _column_values(self, name: str) -> dict[str, object]:
        found: dict[str, object] = {}
        for shard in self._shards(str(self.path)):
            for key, files in index_tar(shard).items():
                try:
                    found[key] = self._row(shard, files["json"]).get(name) if "json" in files else None
                except ValueError as error:
                    raise DataError(
                        f"The .json of sample {key!r:.100} in {shard} cannot be read: {error}",
                        expected="JSON",
                        remedy="write it again",
                    ) from error
        return found

    def open_image(self, index: int) -> Image.Image:
        """The image of `samples[index]`, not yet decoded."""
        return opened_image(io.BytesIO(self._read(*self._members[index])))

    def stored_in(self, index: int) -> Path:
        """The shard that holds the image of `samples[index]`."""
        return self._members[index][0]
