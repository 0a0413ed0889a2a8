"""The subcommand `measure`: what does a finished run reproduce, and what did training say?"""

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
        data: the pictures that `model` may give back, where there is no run: a folder of images with or without
            captions, WebDataset shards, or `datasets:` and a name.
        heldout: a folder of pictures that `model` cannot have seen, of the same kind. Without it, captions that are
            made of the data's words say what comes by chance.
        caption: of pictures of `data` that have none; by default an empty one.
        size: side of the images that are sampled and compared, pixels; default the model's own.
        group_by: a column of the data's metadata, such as the patient or the artist, by which reproduced pictures are
            counted besides; `folder` for the folder that a file lies in.
        checkpoints: `.ckpt` files of the training, as a path with wildcards in quotes: `results.json` then holds a
            curve of what is reproduced against the step. Each is evaluated with the same prompts and seeds, and a
            threshold by its own generations for held-out prompts; without detectors and KID.
        max_prompts: pictures at most in each group (planted, repeated, flagged, excluded, canary, held-out), templates,
            or captions that several pictures share. Of repeated pictures the data hold several files.
        unique_prompts: prompts of images that were trained on once per epoch, chosen at random; flagged ones are asked
            for beside them.
        false_positive_rate: probability that a prompt never trained on counts as reproduced; sets the threshold.
            Default 0.01, or with fewer than 99 held-out prompts the lowest that they can promise.
        kid: measure KID on the held-out prompts; by default if the extra `quality` is installed.
        exposure: measure what the model knows of canaries and border keys, where the run planted them: 64 losses
            of each canary, and a sampling of each canary and border.
        detectors: read the sampling, as class paths with their arguments; `suggested` for a choice of cheap ones, `all`
            for every one that can, `none` to save a third of the time.
        fail_on: what ends the command with another status than 0. `reproduced`: 3 if training images are reproduced.
            `unjudged`: 3 likewise, and 4 if that cannot be judged, so that 0 is an all-clear. `never`: 0 for every
            verdict. A condition such as `reproduced > 0.01`: 3 if it holds, 4 if its figure was not measured or copies
            would have passed unseen; figures are `reproduced` (the share of pictures found), `share_below` (the upper
            end of its interval), `pictures` (their number), `copies` and `generations` (share and number of generations
            that are copies), compared by > or >=.
            Status 1 is an error, 2 a command that cannot be read.
        compare_all: training pictures up to which every generation is compared with all of them. Of more, it is
            compared with its nearest by an index of descriptors, and mean distances are over a random part.
        index: folder for that index, which is made once and read by further evaluations; default `training_index/` in
            the run folder, with a model in that of the results.
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
                f"compare_all={self.compare_all}", expected="at least 100", remedy="thousands tell more"
            )
        if (self.model is None) != (self.data is None):
            raise ConfigurationError(
                f"model={self.model!r} with data={self.data!r}",
                expected="both, or a run, which brings its own",
                remedy="memtrain measure --model MODEL --data FOLDER",
            )
        alone = {"heldout": self.heldout, "caption": self.caption, "size": self.size}
        given = [name for name, value in alone.items() if value is not None]
        if self.model is None and given:
            raise ConfigurationError(
                f"{' and '.join(given)} without a model",
                expected="--model and --data; a run brings its own settings",
                remedy="leave it out, or name a model and its pictures",
            )
        if self.size is not None and (self.size < 8 or self.size % 8):
            raise ConfigurationError(f"size={self.size}", expected="a multiple of 8", remedy="change it")

    @property
    def folder(self) -> Path:
        """Where results go."""
        if self.output is None and self.model is not None:
            return Path("runs/evaluation") / model_name(self.model, self.lora)
        return super().folder

    def exit_status(self, results: Mapping[str, Any]) -> int:
        """By `fail_on`; 0 of a process that did only its part."""
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
            # Training images are first needed when all is sampled: only who comes last reads them.
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
        """The prompts, and what they are compared with; processes that share the work keep images apart."""
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
