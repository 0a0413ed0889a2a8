"""Which networks measure: local files, none of which is downloaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """Local files of the networks that the papers measure with; what is None is not measured.

    Attributes:
        sscd: TorchScript or ONNX. TorchScript runs what is in the file: give only what you trust.
        clip: folder of a CLIP model.
        inception: TorchScript Inception that maps uint8 images to 2048 features, such as inception-2015-12-05.pt. The
            same warning holds.
        sscd_convention: which paper's preprocessing and reduction `SSCD` figures follow.
    """

    sscd: str | None = None
    clip: str | None = None
    inception: str | None = None
    sscd_convention: str = "nemo"

    @property
    def any(self) -> bool:
        """Whether anything is measured with them."""
        return any(path is not None for path in (self.sscd, self.clip, self.inception))
