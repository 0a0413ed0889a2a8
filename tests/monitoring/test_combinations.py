"""Callbacks that cannot share a run, and those that can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from lightning.pytorch import Callback

from memtrain.callbacks.attention_regularization import AttentionRegularization
from memtrain.callbacks.caption_augmentation import CaptionAugmentation
from memtrain.callbacks.guidance_norm_skipping import GuidanceNormSkipping
from memtrain.callbacks.memorization_sinks import MemorizationSinks
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.neuron_masking import NeuronMasking
from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.callbacks.sample_replacement import SampleReplacement
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import ConfigurationError
from memtrain.monitoring.combinations import refuse_combinations, require_same_watch
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.guidance_norm import GuidanceNorm
from tests.callbacks.test_monitor import Foreign, fit


def refuse(mitigations: list[Any], profiled: bool = True) -> None:
    refuse_combinations(mitigations, signals=[DenoisingLoss(), AttentionEntropy()], profiled=profiled)


@pytest.mark.parametrize(
    "idle",
    [
        NeuronMasking(),
        NeuronMasking(samples="all"),
        CaptionAugmentation(samples="flagged"),
        AttentionRegularization(),
        SampleSkipping(),
    ],
    ids=lambda idle: type(idle).__name__,
)
def test_what_acts_on_flagged_samples_only_needs_them_in_the_batch(idle: Any) -> None:
    with pytest.raises(ConfigurationError, match="takes them out of the batches"):
        refuse([idle, SampleReplacement()])
    for everyone in (CaptionAugmentation(), AttentionRegularization(samples="all")):
        refuse([SampleReplacement(), everyone])
    refuse([idle, SampleSkipping()])


@pytest.mark.parametrize("reading", [NeuronMasking(), AttentionRegularization(samples="all")])
def test_what_goes_by_a_samples_own_caption_stands_beside_no_other_caption(reading: Any) -> None:
    with pytest.raises(ConfigurationError, match="needs the sample's own caption, but CaptionAugmentation trains"):
        refuse([reading, CaptionAugmentation(kind="noise")])
    refuse([reading, SampleSkipping()])


@pytest.mark.parametrize("editing", [MemorizationSinks(), NeuronMasking()], ids=lambda editing: type(editing).__name__)
def test_guidance_norms_are_not_measured_across_two_networks(
    editing: Any, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="GuidanceNormSkipping compares a training prediction"):
        refuse([editing, GuidanceNormSkipping()])
    monitor = MemorizationMonitor([DenoisingLoss(), GuidanceNorm()], reference=False)
    with pytest.raises(ConfigurationError, match="GuidanceNorm compares a training prediction"):
        fit(Foreign(pipeline.unet), tmp_path, [monitor, editing])
    refuse([editing])


def test_the_export_comes_after_the_monitor_and_the_order_of_the_rest_is_free(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    class Exportable(Foreign):
        def export_pipeline(self) -> Any: ...

    class Foreigner(Callback):
        def on_train_end(self, *_: Any) -> None:
            """Somebody else's."""

    monitor = MemorizationMonitor(reference=False)
    with pytest.raises(ConfigurationError, match="PipelineExport stands before MemorizationMonitor"):
        fit(Exportable(pipeline.unet), tmp_path, [PipelineExport(), monitor])
    fit(Foreign(pipeline.unet), tmp_path, [Foreigner(), NeuronMasking(), monitor], max_epochs=1)
    assert (tmp_path / "flagged.csv").is_file()


def test_a_state_that_counted_otherwise_is_refused_and_an_earlier_one_goes_on() -> None:
    for saved, now, found in ((None, "ab", "by single files, this run"), ("ab", None, "this run counts single files")):
        with pytest.raises(ConfigurationError, match=found):
            require_same_watch({"families": saved}, {"families": now})
    require_same_watch({"flag_by": "denoising_loss"}, {"flag_by": "denoising_loss", "families": "ab"})
    require_same_watch({"families": "ab"}, {"families": "ab"})
