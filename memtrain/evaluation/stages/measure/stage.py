"""The command `measure`: what a finished run reproduces, and what its training recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from memtrain.detectors.base import Detector
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import (
    ModelStage,
    SamplingOptions,
    StageInput,
    WeightOptions,
    model_name,
)
from memtrain.evaluation.stages.chosen_detectors import chosen_detectors, suggested_beside
from memtrain.evaluation.stages.copy_options import CopyOptions
from memtrain.evaluation.stages.many_images import ALL_COMPARED, Bounds
from memtrain.evaluation.stages.measure.fail_on import read_fail_on
from memtrain.evaluation.stages.parts import part_of
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.evaluation.stages.shards import WHOLE, Shard, ShardOptions


@dataclass(frozen=True, kw_only=True)
class Measure(SamplingOptions, WeightOptions, CopyOptions, ShardOptions, ModelStage):
    """Sample the captions of a run or folder, measure which pictures come back, and say whether that is chance.

    Args:
        data: the pictures that `model` may give back, if there is no run: a folder of images with or without captions,
            WebDataset shards, or `datasets:` and a name.
        heldout: a folder of pictures of the same kind that `model` cannot have seen. Without it, captions made of the
            words of the data show what comes by chance.
        caption: the caption of pictures of `data` that have none; default an empty caption.
        size: the side of the sampled and compared images in pixels; default the model's own.
        group_by: a column of the data's metadata, such as the patient or the artist. Reproduced pictures are also
            counted by it. `folder` counts by the folder of a file.
        checkpoints: the `.ckpt` files of the training, as a path with wildcards in quotes. `results.json` then holds a
            curve of reproduced pictures against the step. Each checkpoint is evaluated with the same prompts and seeds,
            with a threshold by its own generations for held-out prompts, and without detectors and KID.
        max_prompts: the largest number of pictures in each group (planted, repeated, flagged, excluded, canary,
            held-out), of templates, and of captions that several pictures share. A repeated picture has several files.
        unique_prompts: the number of images, chosen at random, that were trained on once per epoch. Flagged images are
            asked for as well.
        false_positive_rate: the probability that a prompt never trained on counts as reproduced; it sets the threshold.
            The default is 0.01, or with fewer than 99 held-out prompts the lowest rate that they can promise.
        kid: measure KID on the held-out prompts; by default if the extra `quality` is installed.
        exposure: measure how well the model knows canaries and border keys, if the run planted them: 64 losses of each
            canary, and a sampling of each canary and border.
        detectors: the detectors that read the sampling, as class paths with their arguments; `suggested` for a choice
            of cheap ones, `all` for every possible one, `none` to save a third of the time.
        fail_on: the condition that ends the command with another status than 0. `reproduced`: status 3 if training
            images are reproduced. `unjudged`: the same, and status 4 if that cannot be judged, so that 0 is an
            all-clear. `never`: 0 for every verdict. A condition such as `reproduced > 0.01`: status 3 if it holds, 4 if
            its figure was not measured or copies would have passed unseen. Figures are `reproduced` (the share of
            pictures found), `share_below` (the upper end of its interval), `pictures` (their number), `copies` and
            `generations` (share and number of generations that are copies), compared by > or >=.
        compare_all: the number of training pictures up to which every generation is compared with all of them. Beyond
            that, a generation is compared with its nearest by an index of descriptors, and mean distances are over
            a random part.
        index: the folder of that index, which later evaluations read again. The default is `training_index/` in the run
            folder, or with a model in the folder of the results.
    """

    data: str | None = None
    heldout: str | None = None
    caption: str | None = None
    size: int | None = None
    group_by: str | None = None
    checkpoints: str | None = None
    max_prompts: int = 150
    unique_prompts: int = 60
    false_positive_rate: float | None = None
    kid: bool | None = None
    exposure: bool = True
    detectors: Literal["suggested", "all", "none"] | list[Detector] = "suggested"
    fail_on: str = "never"
    compare_all: int = ALL_COMPARED
    index: str | None = None

    def check(self) -> None:
        """Refuse a condition that cannot be decided, a model without pictures, and pictures without a model."""
        super().check()
        read_fail_on(self.fail_on)
        if self.compare_all < 100:
            raise ConfigurationError(
                f"compare_all={self.compare_all}", expected="at least 100", remedy="raise it; thousands tell more"
            )
        if (self.model is None) != (self.data is None):
            raise ConfigurationError(
                f"model={self.model!r} with data={self.data!r}",
                expected="both options, or a run, which has a model and data of its own",
                remedy="memtrain measure --model MODEL --data FOLDER",
            )
        alone = {"heldout": self.heldout, "caption": self.caption, "size": self.size}
        given = [name for name, value in alone.items() if value is not None]
        if self.model is None and given:
            raise ConfigurationError(
                f"{' and '.join(given)} without a model",
                expected="--model and --data; a run has settings of its own",
                remedy="leave it out, or name a model with --model and its pictures with --data",
            )
        if self.size is not None and (self.size < 8 or self.size % 8):
            raise ConfigurationError(f"size={self.size}", expected="a multiple of 8", remedy="change it")

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        if self.output is None and self.model is not None:
            return Path("runs/evaluation") / model_name(self.model, self.lora)
        return super().folder

    def exit_status(self, results: Mapping[str, Any]) -> int:
        """The status by `fail_on`; 0 if this process did only its part."""
        return read_fail_on(self.fail_on).status(results) if results else 0

    def __call__(self, given: StageInput) -> dict[str, Any]:
        """Sample, measure, compare, and print the tables."""
        from memtrain.evaluation.measures.copying.base import CopyWeights
        from memtrain.evaluation.measures.copying.find import copy_measures
        from memtrain.evaluation.stages.measure.copying import Chosen
        from memtrain.evaluation.stages.measure.curve import add_curve, require_checkpoints, share_checkpoints
        from memtrain.evaluation.stages.measure.evaluate_run import evaluate_run
        from memtrain.evaluation.stages.measure.evidence_curves import write_evidence_curves
        from memtrain.evaluation.stages.measure.results import Statistics
        from memtrain.evaluation.stages.measure.sampled import sampled
        from memtrain.evaluation.stages.measure.screen import print_results

        assert given.run is not None  # a run or a folder of pictures, by check()
        detectors, left_out = chosen_detectors(
            self.detectors, given.pipeline, given.sampling, suggested=suggested_beside
        )
        networks = CopyWeights(self.copy_detector, self.sscd_convention, self.vision)
        copying = Chosen(*copy_measures(self.measure_names, weights=networks))
        for name, reason in {**left_out, **copying.left_out}.items():
            print(f"Left out: {name}. {reason}")
        shard = self.own_shard
        statistics = Statistics(false_positive_rate=self.false_positive_rate)
        if shard is not None and shard != WHOLE:
            # Training images are needed when everything is sampled, so only the last process reads them.
            asked = self._samples(given, shard, prompts_only=True)
            mine = given.checkpoints[shard.index :: shard.count]
            if mine:
                share_checkpoints(given, self._samples(given, shard), mine, statistics=statistics, copying=copying)
            sampled(given, asked, detectors, shard=shard)
            require_checkpoints(given, asked, statistics=statistics, copying=copying)
        samples = self._samples(given, shard)
        keys = [prompt.key for prompt in samples.prompts]
        if self.model is None:
            write_evidence_curves(Path(self.run) / "records", given.output, keys=keys)
        results = evaluate_run(
            given,
            samples,
            detectors=detectors,
            statistics=statistics,
            kid=self.kid,
            weights=self.weights,
            copying=copying,
            shard=shard,
        )
        if given.checkpoints:
            results = add_curve(given, samples, results, statistics=statistics, copying=copying)
        print_results(results, given.output)
        return results

    def _samples(self, given: StageInput, shard: Shard | None, *, prompts_only: bool = False) -> RunSamples:
        """The prompts and the images that they are compared with; each process keeps images in a folder of its own."""
        assert given.run is not None  # check() says so
        whole = shard is None or shard == WHOLE
        store = "training_images" if whole else f"training_images-{str(shard).replace('/', '-of-')}"
        samples = given.run.samples(
            most=self.max_prompts,
            unique=self.unique_prompts,
            group_by=self.group_by,
            store=given.output / store,
            bounds=Bounds(
                self.compare_all,
                None if self.index is None else Path(self.index),
                part_of(shard) or (0, 1),
                prompts_only,
            ),
        )
        return samples if self.exposure else replace(samples, canaries=None, borders=None)
