"""Options of stages that measure whether generations are copies of training pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class CopyOptions:
    """Options of a stage that measures copying; networks are files of your own, and none is downloaded.

    Args:
        copy_measures: names of measures of copying; `suggested` for the measures whose weights are available, `all` for
            every measure, `none` for the ratio of pixel distances alone.
        copy_detector: file of an SSCD network, ONNX or TorchScript. TorchScript runs code of the file, so name only
            files that you trust. `sscd_convention` sets its preprocessing.
        vision: folder of a DINO, DINOv2 or CLIP model.
    """

    copy_measures: Literal["suggested", "all", "none"] | list[str] = "suggested"
    copy_detector: str | None = None
    vision: str | None = None

    @property
    def measure_names(self) -> Sequence[str] | None:
        """Names for :func:`memtrain.evaluation.measures.copying.find.copy_measures`; None for the suggested ones."""
        if self.copy_measures == "suggested":
            return None
        if isinstance(self.copy_measures, str):
            return ["all"] if self.copy_measures == "all" else []
        return self.copy_measures
