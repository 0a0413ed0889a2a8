"""Local files of the networks of an evaluation. No file is downloaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """Local files of the networks of the papers; figures without a file are not measured.

    Attributes:
        sscd: the TorchScript or ONNX file of SSCD. TorchScript runs code of the file, so name only files that you
            trust.
        clip: the folder of a CLIP model.
        inception: the TorchScript file of an Inception network from uint8 images to 2048 features, such as
            inception-2015-12-05.pt. The same warning holds.
        sscd_convention: the paper whose preprocessing and reduction the `SSCD` figures follow.
    """

    sscd: str | None = None
    clip: str | None = None
    inception: str | None = None
    sscd_convention: str = "nemo"

    @property
    def any(self) -> bool:
        """Whether any network is named."""
        return any(path is not None for path in (self.sscd, self.clip, self.inception))
