"""WebDataset shards with random access.

A shard is a tar file in which the files of one sample share a base name: `key.png` (or .jpg, .webp), `key.txt` with
the caption, and whatever else, which is ignored. `key.json` may hold the caption under `caption` where there is no
`key.txt`, and a list of captions under `captions`, beside a caption or instead of it; the first of all is the caption,
the others are its alternatives. What img2dataset lists (`status` in the .json) without an image or with an empty
caption is left out, with a warning that counts it; in other shards that is an error. Shards are given as one file, a
brace pattern or a folder. The tar index is read once; images are then read by seeking, so shuffling, resuming and the
held-out split are exact. Shards have to be on a file
system: streaming from object stores is not supported.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from pathlib import Path

from PIL import Image
from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from memtrain.data.source import Sample, SampleSource
from memtrain.errors import DataError

log = logging.getLogger(__name__)

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
"""Extensions looked for, in this order of preference."""


class WebDatasetSource(SampleSource):
    """Samples of one or more tar shards.

    Args:
        path: a .tar file, a brace pattern of them, or a folder of .tar files.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._members: list[tuple[Path, int, int]] = []
        samples, gaps = [], []
        for shard in self._shards(str(path)):
            for key, files in self._index(shard).items():
                if self._is_gap(shard, files):
                    gaps.append(key)
                    continue
                image = next((files[ext] for ext in IMAGE_EXTENSIONS if ext in files), None)
                if image is None:
                    raise DataError(
                        f"Sample {key!r} in {shard} has no image, only {sorted(files)}",
                        expected=f"a file with one of the extensions {IMAGE_EXTENSIONS}",
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
        missing = [str(shard) for shard in shards if not shard.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(shards)} shards of {path!r} do not exist, first {missing[0]}",
                expected="every shard of the pattern on disk",
                remedy="check the pattern's range",
            )
        return shards

    @staticmethod
    def _index(shard: Path) -> dict[str, dict[str, tuple[int, int]]]:
        """`key -> extension -> (offset, size)` in the tar."""
        index: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(shard, mode="r:") as tar:
                for member in tar:
                    key, extension = base_plus_ext(member.name)
                    if not member.isfile() or key is None or extension is None:
                        continue
                    files = index.setdefault(key, {})
                    if extension.lower() in files:
                        raise DataError(
                            f"{member.name!r} occurs twice in {shard}: key {key!r} names more than one sample",
                            expected="one key per sample",
                            remedy="rename the samples",
                        )
                    files[extension.lower()] = (member.offset_data, member.size)
        except tarfile.TarError as error:
            raise DataError(
                f"{shard} cannot be read as an uncompressed tar: {error}",
                expected="a WebDataset shard",
                remedy="copy or write the shard again",
            ) from error
        return index

    @staticmethod
    def _read(shard: Path, offset: int, size: int) -> bytes:
        with shard.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    @classmethod
    def _is_gap(cls, shard: Path, files: dict[str, tuple[int, int]]) -> bool:
        """Whether img2dataset lists a sample of which it got no image or no caption."""
        empty = "txt" in files and not cls._read(shard, *files["txt"]).strip()
        imageless = not any(extension in files for extension in IMAGE_EXTENSIONS)
        if "json" not in files or not (empty or imageless or "txt" not in files):
            return False
        try:
            row = json.loads(cls._read(shard, *files["json"]))
        except ValueError:
            return False
        if not isinstance(row, dict) or not isinstance(row.get("status"), str):
            return False
        return empty or imageless or row.get("caption", "") in (None, "")

    @classmethod
    def _captions(cls, shard: Path, key: str, files: dict[str, tuple[int, int]]) -> list[str]:
        """All captions, the one that counts first."""
        captions: list[object] = []
        try:
            if "txt" in files:
                captions.append(cls._read(shard, *files["txt"]).decode("utf-8-sig"))
            if "json" in files:
                row = json.loads(cls._read(shard, *files["json"]))
                row = row if isinstance(row, dict) else {}
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
            for key, files in self._index(shard).items():
                row = json.loads(self._read(shard, *files["json"])) if "json" in files else None
                if isinstance(row, dict):
                    found[key] = row.get(name)
        return found

    def open_image(self, index: int) -> Image.Image:
        """The image of `samples[index]`, not yet decoded."""
        return Image.open(io.BytesIO(self._read(*self._members[index])))

    def stored_in(self, index: int) -> Path:
        """The shard that holds the image of `samples[index]`."""
        return self._members[index][0]
