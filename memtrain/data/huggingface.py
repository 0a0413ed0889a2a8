"""Data sets of Hugging Face's `datasets`, by name or as a folder on disk.

The path is `datasets:NAME` or `datasets:FOLDER`. The folder was written by `save_to_disk`, or is one that
`load_dataset` reads (Parquet files, an image folder). Options follow a question mark:
`datasets:lambdalabs/naruto-blip-captions?split=train&image=image&caption=text`.

| option | default |
|---|---|
| `split` | `train` |
| `image` | the column of images |
| `caption` | `text`, `caption`, `captions` or `prompt`; in a list of captions, the first one counts |
| `key` | none: the row number is the key, so the data must not change; otherwise a column of unique names |
| `config`, `revision` | the defaults of `load_dataset` |

The source refuses captions that are not text, keys that are neither text nor whole numbers, and columns without images.
It also refuses images by a path outside the data's own folder and the caches of the library, because only a stranger's
table names such paths. Every refusal names the row.
Images are opened from their bytes one at a time, so resuming, splits and evaluation are as exact as with files.
Cost: every run scans for families again, because no file holds an image as it is.
Cannot: stream; :mod:`memtrain.data.streamed` does. Needs `pip install datasets`.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from PIL import Image

from memtrain.data.source import Sample, SampleSource
from memtrain.errors import ConfigurationError, DataError
from memtrain.files.pictures import opened_image

PREFIX = "datasets:"
OPTIONS = ("split", "image", "caption", "key", "config", "revision")
CAPTIONS = ("text", "caption", "captions", "prompt")
"""Columns that may hold the caption, in the order of preference."""


def parsed(path: str) -> tuple[str, dict[str, str]]:
    """Split a path into the name or folder of the data set and its options.

    Raises:
        ConfigurationError: if an option does not exist.
    """
    name, _, text = path.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(text, keep_blank_values=True))
    if "streaming" in options:
        raise ConfigurationError(
            f"{path} asks for streaming",
            expected="data with random access, so that a part can be held out and every image can be found again",
            remedy="remove `streaming` (images are read from disk one at a time, not into memory), or stream with "
            "`class_path: memtrain.data.streamed.StreamedImages` under `data`",
        )
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise ConfigurationError(
            f"{path} has the unknown options {unknown}",
            expected=f"options among {', '.join(OPTIONS)}",
            remedy="correct the path",
        )
    return name, options


class HuggingFaceSource(SampleSource):
    """Samples of a data set with random access.

    Args:
        path: `datasets:` with a name or folder, and options.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        name, self.options = parsed(str(path))
        datasets = imported()
        rows = self._loaded(datasets, name)
        kinds = {column: type(kind).__name__ for column, kind in rows.features.items()}
        images = [column for column, kind in kinds.items() if kind == "Image"]
        self._image = self._column("image", images, kinds)
        caption = self._column("caption", [column for column in CAPTIONS if column in kinds], kinds)
        named = [self.options["key"]] if "key" in self.options else []
        key = self._column("key", named, kinds) if named else None
        self._name = name
        self._rows = self._undecoded(datasets, rows, kinds)
        keys = [f"{row:08d}" for row in range(len(rows))] if key is None else self._keys(key, rows[key])
        pairs = zip(keys, rows[caption], strict=True)
        self.samples = [Sample.of(key, self._captions(key, found)) for key, found in pairs]
        self.check_samples()

    @staticmethod
    def accepts(path: str) -> bool:
        """Return whether the path begins with `datasets:`."""
        return path.startswith(PREFIX)

    def _loaded(self, datasets: Any, name: str) -> Any:
        split = self.options.get("split", "train")
        folder = Path(name)
        try:
            if (folder / "state.json").is_file():
                return datasets.load_from_disk(name)
            if (folder / "dataset_dict.json").is_file():
                return datasets.load_from_disk(name)[split]
            config, revision = self.options.get("config"), self.options.get("revision")
            return datasets.load_dataset(name, config, split=split, revision=revision)
        except Exception as error:  # from the library, its file readers or the network
            raise DataError(
                f"The data set {name!r} (split {split!r}) cannot be opened ({type(error).__name__}): {error}",
                expected="a name on the Hub, a folder of save_to_disk, or one that datasets.load_dataset reads",
                remedy="check name, split and config (`?split=...&config=...`); download the data before a run "
                "without a network",
            ) from error

    def _column(self, option: str, found: Sequence[str], columns: dict[str, str]) -> str:
        """Return the column of an option: the named one, or else the first one that was found."""
        name = self.options.get(option) or next(iter(found), None)
        if name is None or name not in columns:
            raise DataError(
                f"{self.path} has no column for {option}: " + (f"no {name!r} in" if name else "found") + f" {columns}",
                expected="a column of images, and one of captions",
                remedy=f"name it in the path: datasets:...?{option}=COLUMN",
            )
        return name

    def _undecoded(self, datasets: Any, rows: Any, kinds: dict[str, str]) -> Any:
        """Return the rows with images as bytes or paths."""
        try:
            return rows.cast_column(self._image, datasets.Image(decode=False))
        except Exception as error:  # pyarrow has many kinds of errors
            raise DataError(
                f"The column {self._image!r} of {self.path} holds no images but {kinds[self._image]}: "
                f"{' '.join(str(error).split()):.200}",
                expected="a column of images",
                remedy="name another one in the path: ?image=COLUMN",
            ) from error

    def _keys(self, column: str, found: Sequence[Any]) -> list[str]:
        wrong = [row for row, one in enumerate(found) if not isinstance(one, str | int) or isinstance(one, bool)]
        if wrong:
            raise DataError(
                f"{len(wrong)} of {len(found)} rows of {self.path} have no name in the column {column!r}, first row "
                f"{wrong[0]}: {found[wrong[0]]!r:.80}",
                expected="a text or a whole number in every row",
                remedy="name another column with ?key=COLUMN",
            )
        return [str(one) for one in found]

    def _captions(self, key: str, found: Any) -> list[str]:
        texts = found if isinstance(found, list) else [found]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"The caption of row {key} of {self.path} is not a text: {found!r:.80}",
                expected="a text, or a list of texts",
                remedy="name the column with ?caption=COLUMN, or correct the data",
            )
        return texts

    def _column_values(self, name: str) -> dict[str, object]:
        if name not in self._rows.column_names:
            return {}
        keys = [sample.key for sample in self.samples]
        return dict(zip(keys, self._rows[name], strict=True))

    def open_image(self, index: int) -> Image.Image:
        """Open the image of `samples[index]` without decoding it."""
        image = self._rows[index][self._image]
        if image is None:
            raise OSError("there is no image in this row")
        if image["bytes"] is not None:
            return opened_image(io.BytesIO(image["bytes"]))
        if not isinstance(image["path"], str) or not self._is_own(image["path"]):
            raise ValueError(f"the row names the file {image['path']!r:.100}, which does not belong to the data")
        return opened_image(image["path"])

    def _is_own(self, path: str) -> bool:
        """Return whether a path, before links are followed, lies in the data folder or in a cache of the library."""
        config = imported().config
        folders = [config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH]
        if Path(self._name).is_dir():
            folders.append(self._name)
        place = Path(os.path.abspath(path))
        return any(place.is_relative_to(os.path.abspath(folder)) for folder in folders)


def imported() -> Any:
    """Import the package `datasets`.

    Raises:
        ConfigurationError: if it is not installed.
    """
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigurationError(
            f"Hugging Face's `datasets` cannot be imported: {error}",
            expected="the package that reads such data sets",
            remedy='pip install datasets (or "memtrain[data]")',
        ) from error
