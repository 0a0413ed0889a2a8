"""WebDataset shards with random access.

A shard is a tar file in which the files of one sample share a base name. `key.png` (or .jpg, .webp and other formats
that are decoded) is the image, and `key.txt` holds the caption. Other files are ignored. If there is no `key.txt`,
`key.json` may hold the caption in the field `caption`. The field `captions` may hold a list of captions, in addition to
a caption or instead of it. The first of all these captions is the caption, and the others are its alternatives. NaN in
a .json, which img2dataset writes for a missing number, counts as missing.

img2dataset lists some samples (`status` in the .json) without an image or with an empty caption. They are left out, and
a warning counts them. In other shards such samples are an error. Shards are given as one file, a brace pattern or a
folder. The source reads the tar index once (:mod:`memtrain.data.tar_index` lists what is refused) and then reads images
by seeking, so shuffling, resuming and the held-out split are exact. Shards must be on a file system. Shards elsewhere
are streamed (:mod:`memtrain.data.streamed`).
"""

from __future__ import annotations

import io
import logging
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from webdataset.shardlists import expand_urls

from memtrain.data.broken import Broken, stopped
from memtrain.data.mixed_folders import PACKED
from memtrain.data.reading import Reading
from memtrain.data.sample_table import joined
from memtrain.data.shard_files import ShardFile, read_bytes, row_of
from memtrain.data.shard_listing import listings
from memtrain.data.source import Sample, SampleSource
from memtrain.data.tar_index import index_what_is_whole
from memtrain.errors import DataError
from memtrain.files.pictures import opened_image

log = logging.getLogger(__name__)


class WebDatasetSource(SampleSource):
    """Samples of one or more tar shards.

    Args:
        path: a .tar file, a brace pattern of .tar files, or a folder of .tar files.
        reading: the treatment of broken samples, and the folder of kept listings.
    """

    takes_reading = True

    def __init__(self, path: str | Path, reading: Reading | None = None) -> None:
        super().__init__(path)
        reading = reading or Reading()
        self._shards_read: list[Path] = []
        self._shard, self._offset, self._size = array("i"), array("q"), array("q")
        parts: list[Sequence[Sample]] = []
        gaps: list[str] = []
        undecoded: Counter[str] = Counter()
        errors: list[DataError] = []
        shards = self._shards(str(path), lost=self.broken if reading.skip else None)
        for found in listings(shards, skip=True, kept_in=reading.kept_in):
            gaps += found.gaps
            undecoded.update(found.undecoded)
            self.broken += found.broken
            errors += found.errors
            parts.append(found.samples)
            self._shard.extend([len(self._shards_read)] * len(found.samples))
            self._shards_read.append(found.shard)
            self._offset.extend(found.offsets)
            self._size.extend(found.sizes)
        self.samples = joined(parts)
        self.broken = self._weighed()
        if self.broken and not reading.skip:
            total = len(self.samples) + sum(one.samples for one in self.broken)
            raise errors[0] if len(errors) == 1 else stopped(self.broken, total, path)
        if gaps:
            log.warning(
                "%d of %d samples of %s have no image or an empty caption, as img2dataset leaves them when a download "
                "fails. They are left out, first %s",
                len(gaps),
                len(gaps) + len(self.samples),
                path,
                gaps[:3],
            )
        if undecoded:
            log.warning(
                "%s holds images of kinds that are not decoded (%s). They are left out, because a decoded image lies "
                "beside each.",
                path,
                ", ".join(f"{count} .{kind}" for kind, count in sorted(undecoded.items())),
            )
        if self.samples or not self.broken:
            self.check_samples()

    def _weighed(self) -> list[Broken]:
        """Return the broken samples. A broken shard counts the samples that it lacks from an average shard."""
        counts, cut = Counter(self._shard), {one.shard for one in self.broken if not one.key}
        held = {str(shard): counts[number] for number, shard in enumerate(self._shards_read)}
        whole = [count for shard, count in held.items() if shard not in cut]
        usual = round(sum(whole) / len(whole)) if whole else 1
        return [one if one.key else one._replace(samples=max(1, usual - held.get(one.shard, 0))) for one in self.broken]

    @staticmethod
    def accepts(path: str) -> bool:
        """Return whether the path is a .tar file, a pattern ending in .tar, or a folder with .tar files."""
        folder = Path(path)
        return (path.endswith(".tar") and ("{" in path or folder.exists())) or any(folder.glob("*.tar"))

    @staticmethod
    def _shards(path: str, *, lost: list[Broken] | None = None) -> list[Path]:
        """List the shards of a path. Missing shards are added to `lost` if that is given."""
        folder = Path(path)
        try:
            shards = sorted(folder.glob("*.tar")) if folder.is_dir() else [Path(url) for url in expand_urls(path)]
        except ValueError as error:
            raise DataError(
                f"The shard pattern {path!r} cannot be expanded: {error}",
                expected="a pattern such as 'shards/{0000..0009}.tar'",
                remedy="correct the braces",
            ) from error
        beside = folder.iterdir() if folder.is_dir() else ()
        packed = sorted(file.name for file in beside if file.name.lower().endswith(PACKED))
        if packed:
            raise DataError(
                f"{len(packed)} file(s) in {path} are compressed and would be left out, first {packed[:3]}",
                expected="uncompressed .tar files",
                remedy="unpack them (gunzip, zstd -d, unzip), or move them to another folder",
            )
        missing = [str(shard) for shard in shards if not shard.is_file()]
        if missing and lost is not None:
            lost += [Broken("", shard, "the shard does not exist") for shard in missing]
            return [shard for shard in shards if shard.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(shards)} shards of {path!r} do not exist, first {missing[0]}",
                expected="every shard of the pattern on disk",
                remedy="correct the range of the pattern",
            )
        return shards

    def _column_values(self, name: str) -> dict[str, object]:
        found: dict[str, object] = {}
        for shard in self._shards_read:
            with ShardFile(shard) as file:
                for key, files in index_what_is_whole(shard)[0].items():
                    try:
                        found[key] = row_of(file, files["json"]).get(name) if "json" in files else None
                    except ValueError as error:
                        raise DataError(
                            f"The .json of sample {key!r:.100} in {shard} cannot be read: {error}",
                            expected="JSON",
                            remedy="write it again",
                        ) from error
        return found

    def open_image(self, index: int) -> Image.Image:
        """Open the image of `samples[index]` without decoding it."""
        return opened_image(io.BytesIO(read_bytes(self.stored_in(index), self._offset[index], self._size[index])))

    def stored_in(self, index: int) -> Path:
        """Return the shard that holds the image of `samples[index]`."""
        return self._shards_read[self._shard[index]]

    def shared(self, index: int) -> int:
        """Count the samples of the shard that holds `samples[index]`."""
        return self._shard.count(self._shard[index])
