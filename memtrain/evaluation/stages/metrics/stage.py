"""The command `metrics`, which measures folders of images from any program and loads no model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memtrain.errors import ConfigurationError
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.stages.results_stage import ResultsStage
from memtrain.evaluation.stages.shards import ShardOptions


@dataclass(frozen=True, kw_only=True)
class Metrics(ShardOptions, ResultsStage):
    """Measure folders of images: copies, diversity, fidelity to prompts and distance to real images.

    `memtrain metrics --generated blocked --unblocked plain --original originals --prompts prompts.csv
    --copy_detector sscd.onnx` gives the figures of the scripts in `metrics` of NeMo's repository, and more.

    Args:
        generated: the folder of generations, with a mitigation if there is one, in one of four layouts
            (img_0003_01.jpg; 3_words_of_the_prompt.png; 0003/seed-1.png), or a CSV with the columns prompt, file and
            perhaps seed.
        prompts: the file of the prompts, in the order in which the images count them from 0. A column `type` (VM, TM)
            splits the figures.
        original: the folder of the original images (0003_any_name.jpg, several per prompt and of several sizes;
            missing ones are counted), in one of these layouts, or a CSV.
        unblocked: the folder of generations for the same prompts and seeds without the mitigation.
        real: the folder of real images, for FID, CLIP-FID and KID, under any names; default the originals.
        copy_detector: the file of an SSCD network, TorchScript or ONNX. A TorchScript file is code that runs: give only
            files that you trust.
        sscd_convention: the paper whose preprocessing and figures `copy_detector` follows. Each paper has weights of
            its own.
        clip: the folder of a CLIP model, for A_CLIP and CLIP-FID.
        inception: the file of a TorchScript Inception with 2048 features, for FID and KID. Give only a file that you
            trust.
    """

    generated: str | None = None
    prompts: str | None = None
    original: str | None = None
    unblocked: str | None = None
    real: str | None = None
    copy_detector: str | None = None
    sscd_convention: Literal["nemo", "dcr", "wen", "membench"] = "nemo"
    clip: str | None = None
    inception: str | None = None

    def check(self) -> None:
        """Refuse a command without images or prompts."""
        for name in ("generated", "prompts"):
            if getattr(self, name) is None:
                raise ConfigurationError(
                    f"metrics without --{name}",
                    expected="a folder of generations and the file of their prompts",
                    remedy="such as --generated images --prompts prompts.csv",
                )
        if self.inception is not None and self.real is None and self.original is None:
            raise ConfigurationError(
                "inception without images to compare with",
                expected="a folder of real images, or of the originals",
                remedy="name the folder with --real or --original",
            )

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return Path(self.output) if self.output else Path("runs/metrics") / Path(self.generated or "").stem

    @property
    def weights(self) -> Weights:
        """The files of the networks."""
        return Weights(
            sscd=self.copy_detector, clip=self.clip, inception=self.inception, sscd_convention=self.sscd_convention
        )

    def work(self) -> dict[str, Any]:
        """Measure, write `metrics.json`, `metrics.parquet` and `metrics.csv`, print the figures."""
        from memtrain.evaluation.stages.metrics.metrics import measure_folders
        from memtrain.evaluation.stages.metrics.screen import print_metrics

        assert self.generated is not None and self.prompts is not None  # check() refuses it
        results = measure_folders(
            self.generated,
            self.prompts,
            output=self.folder,
            original=self.original,
            unblocked=self.unblocked,
            real=self.real,
            weights=self.weights,
            shard=self.own_shard,
        )
        print_metrics(results)
        return results
