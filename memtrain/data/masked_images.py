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
    """Visited images with masks for the loss, secret borders, and a treatment of broken samples.

    Args:
        border_keys: a border around every image, with a gray level of its own, to measure how well the model knows each
            image by heart.
        masks: the source of masks. `files` uses the mask files of images that have one. `alpha` uses the alpha channel
            of images that have one. `off` uses none.
        broken: the treatment of samples that cannot be used. `stop` ends the run and names all of them. `skip` leaves
            them out (:mod:`memtrain.data.broken`).
        broken_share: the largest share of samples that may be skipped.
        heldout_most: the largest number of held-out pictures, whatever their share; 999 suffice for a rate of 0.1 %.
        visiting: the options of :class:`VisitedImages`.
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
        """List the broken samples that others replaced in the batch, then do the work of :class:`VisitedImages`."""
        found = [Broken(*json.loads(text)) for text in batch.pop(BROKEN, ()) if text]
        if found:
            if new := [one for one in found if one not in self.broken]:
                log.warning("Other samples take the place of %d broken image(s), first %r", len(new), new[0].key)
            total = sum(len(dataset.samples) for dataset in self._built())
            self.broken.met(found, total, path=self._built()[0].source.path)
        return super().on_before_batch_transfer(batch, dataloader_idx)

    def _bordered(self, source: SampleSource, resolution: int) -> SampleSource:
        """Put borders around the images of a source if `border_keys` is set."""
        if self.border_keys is None:
            return source
        cut = self.bucketed or (self.augment is not None and self.augment.random)
        self.border_keys.check(resolution, cut=cut)
        if self.masks != "off" and masked(source, self.masks):
            raise ConfigurationError(
                "border_keys with images that have masks",
                expected="images whose loss counts everywhere, the border included",
                remedy="set data.init_args.masks to off, or remove data.init_args.border_keys",
            )
        return BorderedSource(source, self.border_keys, resolution=resolution)

    def _use_masks(self, module: Any, device: torch.device) -> None:
        """Add masks to the training and held-out images if any image has one."""
        train, _ = self._built()
        found = 0 if self.masks == "off" else masked(train.source, self.masks)
        if self.masks == "alpha" and not found:
            raise ConfigurationError(
                "masks: alpha, but no image has an alpha channel",
                expected="images with transparent parts, which are not trained on",
                remedy="set data.init_args.masks to files or off",
            )
        if not found:
            return
        log.info("%d of %d images have a mask: their loss counts where the mask is white", found, len(train.source))
        encode = getattr(module, "encode_images", None)
        if encode is None:
            raise ConfigurationError(
                f"{found} image(s) have masks, but {type(module).__name__} has no encode_images(pixel_values), which "
                "tells "
                "the size of latents",
                expected="a module that encodes images, such as TextToImageModule",
                remedy="set data.init_args.masks to off",
            )
        rows, columns = train.shapes[0]
        latents = encode(torch.zeros(1, 3, rows, columns, device=device))
        for dataset in self._built():
            masks = Masks(dataset.source, self.masks, rows // latents.shape[-2])
            masks.require_seen(dataset.indices, dataset.shapes)
            dataset.use(masks=masks)
