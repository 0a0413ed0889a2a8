"""A data module whose images may have masks for the loss (:mod:`memtrain.data.masks`), or borders around them."""

from __future__ import annotations

import json
import logging
from typing import Any

import torch

from memtrain.data.border_keys import BorderedSource, BorderKeys
from memtrain.data.broken import Action, Broken, BrokenSamples
from memtrain.data.dataset import BROKEN, Batch
from memtrain.data.masks import Kind, Masks, masked
from memtrain.data.source import SampleSource
from memtrain.data.visited_images import VisitedImages
from memtrain.errors import ConfigurationError

log = logging.getLogger(__name__)


class MaskedImages(VisitedImages):
    """Visited images, some of which may have masks, or all of them a border that is a secret, and some are held out.

    Args:
        border_keys: a border of a grey level of its own around every image, to measure what is learned by heart.
        masks: `files`: of those that have a file; `alpha`: from the alpha channel of those that have one; `off`.
        broken: what becomes of samples that cannot be used: `stop` the run, naming all of them, or `skip` them
            (:mod:`memtrain.data.broken`).
        broken_share: of the samples that may be skipped.
        heldout_most: pictures that are held out at the most, whatever their share; 999 suffice for a rate of 0.1 %.
        visiting: as of :class:`VisitedImages`.
    """

    def __init__(
        self,
        *,
        masks: Kind = "files",
        border_keys: BorderKeys | None = None,
        heldout_most: int = 2000,
        broken: Action = "stop",
        broken_share: float = 0.01,
        **visiting: Any,
    ) -> None:
        super().__init__(**visiting)
        self.masks, self.border_keys, self.heldout_most = masks, border_keys, heldout_most
        self.broken = BrokenSamples(broken, broken_share)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Take out of the batch what was broken, and list it; the rest as of :class:`VisitedImages`."""
        found = [Broken(*json.loads(text)) for text in batch.pop(BROKEN, ()) if text]
        if found:
            if new := [one for one in found if one not in self.broken]:
                log.warning("Others take the place of %d broken image(s), first %r", len(new), new[0].key)
            total = sum(len(dataset.samples) for dataset in self._built())
            self.broken.met(found, total, path=self._built()[0].source.path)
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def _bordered(self, source: SampleSource, resolution: int) -> SampleSource:
        """A source with borders around its images, where they were asked for."""
        if self.border_keys is None:
            return source
        cut = self.bucketed or (self.augment is not None and self.augment.random)
        self.border_keys.check(resolution, cut=cut)
        if self.masks != "off" and masked(source, self.masks):
            raise ConfigurationError(
                "border_keys with images that have masks",
                expected="images whose loss counts everywhere, the border included",
                remedy="set data.init_args.masks to off, or leave the border keys out",
            )
        return BorderedSource(source, self.border_keys, resolution=resolution)

    def _use_masks(self, module: Any, device: torch.device) -> None:
        """Add masks to what is trained on and held out, where any image has one."""
        train, _ = self._built()
        found = 0 if self.masks == "off" else masked(train.source, self.masks)
        if self.masks == "alpha" and not found:
            raise ConfigurationError(
                "masks: alpha, but no image has an alpha channel",
                expected="images that are transparent where they are not to be trained on",
                remedy="set data.init_args.masks to files, or off",
            )
        if not found:
            return
        log.info("%d of %d images have a mask: their loss counts where it is white", found, len(train.source))
        encode = getattr(module, "encode_images", None)
        if encode is None:
            raise ConfigurationError(
                f"{found} image(s) have masks, but {type(module).__name__} has no encode_images(pixel_values), by "
                "which the size of latents is known",
                expected="a module that encodes images, such as TextToImageModule",
                remedy="set data.init_args.masks to off",
            )
        rows, columns = train.shapes[0]
        latents = encode(torch.zeros(1, 3, rows, columns, device=device))
        for dataset in self._built():
            masks = Masks(dataset.source, self.masks, rows // latents.shape[-2])
            masks.require_seen(dataset.indices, dataset.shapes)
            dataset.use(masks=masks)
