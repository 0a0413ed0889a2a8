"""A data module whose images may have masks for the loss (:mod:`memtrain.data.masks`)."""

from __future__ import annotations

import logging
from typing import Any

import torch

from memtrain.data.masks import Kind, Masks, masked
from memtrain.data.visited_images import VisitedImages
from memtrain.errors import ConfigurationError

log = logging.getLogger(__name__)


class MaskedImages(VisitedImages):
    """Visited images, some of which may have masks.

    Args:
        masks: `files`: of those that have a file; `alpha`: from the alpha channel of those that have one; `off`.
        visiting: as of :class:`VisitedImages`.
    """

    def __init__(self, *, masks: Kind = "files", **visiting: Any) -> None:
        super().__init__(**visiting)
        self.masks = masks

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
