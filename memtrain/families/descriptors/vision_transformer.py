"""DINO or CLIP from a local folder, through transformers.

The descriptor is the class token of a vision transformer, or CLIP's image embedding. Source: Caron et al., "Emerging
Properties in Self-Supervised Vision Transformers" (ICCV 2021); Radford et al., "Learning Transferable Visual Models
From Natural Language Supervision" (ICML 2021). The folder holds `config.json` and `model.safetensors`, as
`save_pretrained` writes them. Nothing is downloaded, and no code of the folder runs.
Cost: one forward, 50 ms or more an image on one core. Cannot: tell look-alikes of one kind apart as well as a copy
detector. CLIP in particular gives similar vectors to things with similar names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError
from memtrain.families.descriptors.base import IMAGENET, Descriptor, described, normalised, stacked
from memtrain.files.text import read_json_object

CLIP = {"clip", "clip_vision_model"}
"""The kinds of models whose projected image embedding is used."""
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""The mean and deviation of CLIP's training, for folders that do not name them."""


class VisionTransformer(Descriptor):
    """Descriptors of a transformer in a local folder.

    Args:
        folder: the folder in the form of `save_pretrained`, with weights as safetensors.
        device: the device of the transformer.

    Raises:
        ConfigurationError: if the folder holds no such model.
    """

    name = "vision transformer"

    def __init__(self, folder: str, device: str = "cpu") -> None:
        self._folder, self._device = Path(folder), device
        weights = sorted(self._folder.glob("*.safetensors"))
        if not (self._folder / "config.json").is_file() or not weights:
            raise ConfigurationError(
                f"{folder} holds {', '.join(sorted(p.name for p in self._folder.glob('*'))[:5]) or 'nothing'}",
                expected="config.json and weights as .safetensors, as save_pretrained writes them",
                remedy="download the model, or save it with safe_serialization=True",
            )
        config = self._json("config.json")
        self._projects = config.get("model_type") in CLIP
        vision = config.get("vision_config") or config
        size = vision.get("image_size", 224) if isinstance(vision, dict) else None
        if not isinstance(size, int):
            raise ConfigurationError(
                f"{self._folder / 'config.json'} has an image_size of {size!r:.80}",
                expected="one number, the side of a square",
                remedy="use another model",
            )
        self._size = size
        pixels = self._json("preprocessor_config.json")
        default = CLIP_PIXELS if self._projects else IMAGENET
        self._mean, self._std = pixels.get("image_mean", default[0]), pixels.get("image_std", default[1])
        self._network = self._load()
        digest = hashlib.sha256()
        for path in weights:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        self.version = digest.hexdigest()[:16]

    def describe(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Compute vectors of unit length; see :class:`memtrain.families.descriptors.base.Descriptor`."""
        return described(self._forward, images)

    @torch.no_grad()
    def _forward(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = normalised(stacked(images, side=self._size), self._mean, self._std).to(self._device)
        found = self._network(pixel_values=pixels)
        return found.image_embeds if self._projects else found.last_hidden_state[:, 0]

    def _load(self) -> Any:
        from safetensors import SafetensorError
        from transformers import AutoModel, CLIPVisionModelWithProjection

        kind = CLIPVisionModelWithProjection if self._projects else AutoModel
        try:
            network = kind.from_pretrained(
                self._folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ConfigurationError(
                f"{self._folder} cannot be loaded: {str(error).splitlines()[0]}",
                expected="a vision transformer that transformers knows, such as DINO's, DINOv2's or CLIP's",
                remedy="check the folder",
            ) from error
        return network.to(self._device).eval().requires_grad_(False)

    def _json(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        if not path.is_file():
            return {}
        try:
            return read_json_object(path, what="a file of save_pretrained", remedy="download or save the model again")
        except DataError as error:
            raise ConfigurationError(error.problem, expected=error.expected, remedy=error.remedy) from error
