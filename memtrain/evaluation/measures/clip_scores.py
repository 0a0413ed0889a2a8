"""CLIP features of images and prompts from a local folder, for A_CLIP and CLIP-FID.

Method: A_CLIP is the cosine between an image's and its prompt's embedding. Source of the measure: Hessel et al.,
"CLIPScore" (EMNLP 2021). NeMo's A_CLIP uses ViT-B/32 and does not scale or clip it.
Weights: a folder that `CLIPModel.save_pretrained` wrote, with safetensors. No weights are downloaded. Figures of
different CLIP models are not comparable, so the folder's architecture is part of the result.
Cannot: judge images far from CLIP's training images, such as tiny images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from memtrain.errors import ConfigurationError, DataError
from memtrain.functional.tokens import tokenize

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipFeatures:
    """A CLIP model that embeds images and prompts, both to unit length.

    Args:
        folder: the folder with `config.json`, `model.safetensors` and the tokenizer's files.
        device: the device of the model.

    Raises:
        ConfigurationError: if the folder holds no CLIP model.
    """

    def __init__(self, folder: str | Path, *, device: torch.device | str = "cpu") -> None:
        self.device = device
        try:
            self.model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise ConfigurationError(
                f"{folder} holds no CLIP model: {(str(error) or type(error).__name__).splitlines()[0]}",
                expected="a local folder with config.json, model.safetensors and the tokenizer",
                remedy="save a model with CLIPModel.save_pretrained and CLIPTokenizer.save_pretrained",
            ) from error
        self.model = self.model.eval().requires_grad_(False).to(device)

    @property
    def name(self) -> str:
        """The architecture: patch size, width and image size."""
        vision = self.model.config.vision_config
        return f"CLIP patch {vision.patch_size}, width {vision.hidden_size}, {vision.image_size} px"

    @torch.no_grad()
    def images(self, images: Tensor, *, unit: bool = True, batch_size: int = 32) -> Tensor:
        """Embed images `(..., 3, H, W)` uint8 as `(..., D)`. They are resized bicubically, then cropped in the centre.

        Args:
            images: the images, all of one size.
            unit: whether to give every embedding unit length; CLIP-FID compares embeddings of any length.
            batch_size: the number of images per forward pass.

        Raises:
            DataError: if there are no images.
        """
        flat = images.flatten(0, -4) if images.dim() > 4 else images
        if not len(flat):
            raise DataError(
                "There are no images to embed", expected="at least one image", remedy="sample more prompts or seeds"
            )
        found = []
        for part in flat.split(batch_size):
            pooled = self.model.vision_model(pixel_values=self._pixels(part)).pooler_output
            found.append(self.model.visual_projection(pooled).float().cpu())
        joined = torch.cat(found)
        joined = F.normalize(joined, dim=1) if unit else joined
        return joined.view(*images.shape[:-3], -1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Embed P prompts as `(P, D)`; too long prompts are cut.

        Raises:
            DataError: if there are no prompts.
        """
        if not prompts:
            raise DataError("There are no prompts to embed", expected="at least one prompt", remedy="name more prompts")
        length = int(self.model.config.text_config.max_position_embeddings)
        input_ids, _ = tokenize(self.tokenizer, prompts, length=length)
        pooled = self.model.text_model(input_ids=input_ids.to(self.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled).float(), dim=1).cpu()

    def _pixels(self, images: Tensor) -> Tensor:
        side = int(self.model.config.vision_config.image_size)
        rows = []
        for image in images:
            picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
            short = min(picture.size)
            width, height = (int(side * length / short) for length in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            left, top = round((width - side) / 2), round((height - side) / 2)
            picture = picture.crop((left, top, left + side, top + side))
            rows.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255)
        pixels = (torch.stack(rows) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        return pixels.to(self.device)
