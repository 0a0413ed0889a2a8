"""Keeps images of flagged samples from the stream, so that a run over a stream can be evaluated.

A stream does not find a training image again. So each visit of a flagged sample writes its image, as the training sees
it, and its caption to `kept_images/flagged` of the run folder. Samples that are held out by weight go to
`kept_images/heldout`. Both are ordinary folders of images:

    memtrain measure --model RUN/pipeline --data RUN/kept_images/flagged --heldout RUN/kept_images/heldout

A hash of the sample's key names each file, and the text of the PNG holds the key. Cost: a few milliseconds an image, up
to `most` images of each kind and process. Cannot: keep samples that were flagged in the last epoch and do not come
again, or samples without pixel values. Data with cached latents find their images again. The images are private data,
so remove this folder together with the run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from PIL import Image, PngImagePlugin
from torch import Tensor

from memtrain.callbacks.base import Callback
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError
from memtrain.files.whole import written_whole
from memtrain.functional.pixels import to_uint8

FOLDER, FLAGGED, HELDOUT = "kept_images", "flagged", "heldout"


class KeptImages(Callback):
    """Keep images of flagged and held-out samples of a stream.

    Args:
        most: largest number of images of each kind.

    Raises:
        ConfigurationError: if `most` is below 1.
    """

    def __init__(self, most: int = 300) -> None:
        if most < 1:
            raise ConfigurationError(
                f"most={most}", expected="at least 1 image", remedy="raise most, or remove KeptImages"
            )
        self.most = most
        self._monitor: MemorizationMonitor | None = None
        self._kept: dict[str, set[str]] = {}
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the monitor, and what an earlier part of the run kept."""
        if stage != "fit":
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        self._monitor = next((one for one in callbacks if isinstance(one, MemorizationMonitor)), None)
        if self._monitor is None:
            raise ConfigurationError(
                "KeptImages does not know which samples are flagged",
                expected="a MemorizationMonitor among the callbacks",
                remedy="add a MemorizationMonitor, or remove KeptImages",
            )
        self._folder = Path(trainer.default_root_dir) / FOLDER
        self._kept = {kind: {path.stem for path in (self._folder / kind).glob("*.png")} for kind in (FLAGGED, HELDOUT)}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the images of flagged and held-out samples in this batch."""
        if self._monitor is None or not isinstance(batch, dict) or "key" not in batch:
            return
        pixels = batch.get("pixel_values")
        if not isinstance(pixels, Tensor):
            raise ConfigurationError(
                "The batch has no pixel_values, so KeptImages has no images to keep",
                expected="images in the batch, as a stream has them",
                remedy="remove KeptImages, because data with random access find their images again",
            )
        flagged, running = self._monitor.calibration.first_flagged, self._monitor.engine.running
        held = running[1].heldout_keys if running is not None else ()
        for row, (key, caption) in enumerate(zip(batch["key"], batch["caption"], strict=True)):
            kind = HELDOUT if key in held else FLAGGED if key in flagged else None
            if kind is not None and caption:
                self._keep(kind, key, caption, pixels[row])

    def _keep(self, kind: str, key: str, caption: str, pixels: Tensor) -> None:
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        kept = self._kept[kind]
        if name in kept or len(kept) >= self.most:
            return
        kept.add(name)
        folder = self._folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        said = PngImagePlugin.PngInfo()
        said.add_itxt("key", key)
        # The image is written last, because readers skip a text without an image, but not an image without a text.
        with written_whole(folder / f"{name}.txt") as unfinished:
            unfinished.write_text(caption, encoding="utf-8")
        with written_whole(folder / f"{name}.png") as unfinished:
            Image.fromarray(to_uint8(pixels).permute(1, 2, 0).cpu().numpy()).save(unfinished, "PNG", pnginfo=said)
