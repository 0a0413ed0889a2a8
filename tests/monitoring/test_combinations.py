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
from memtrain.monitoring.combinations import refuse_combinations
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.guidance_norm import GuidanceNorm
from tests.callbacks.test_monitor import Foreign, fit

MONITOR = MemorizationMonitor(reference=False)


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
    with pytest.raises(ConfigurationError, match="takes out of the batches"):
        refuse_combinations([MONITOR, idle, SampleReplacement()], MONITOR)
    for everyone in (CaptionAugmentation(), AttentionRegularization(samples="all")):
        refuse_combinations([MONITOR, SampleReplacement(), everyone], MONITOR)
    refuse_combinations([MONITOR, idle, SampleSkipping()], MONITOR)


@pytest.mark.parametrize("reading", [NeuronMasking(), AttentionRegularization(samples="all")])
def test_what_goes_by_a_samples_own_caption_stands_beside_no_other_caption(reading: Any) -> None:
    with pytest.raises(ConfigurationError, match="goes by a sample's own caption, and CaptionAugmentation trains"):
        refuse_combinations([MONITOR, reading, CaptionAugmentation(kind="noise")], MONITOR)
    refuse_combinations([MONITOR, reading, SampleSkipping()], MONITOR)


@pytest.mark.parametrize("early", [PipelineExport(), NeuronMasking()], ids=lambda early: type(early).__name__)
def test_what_acts_at_the_end_of_training_comes_after_the_monitor(early: Any) -> None:
    with pytest.raises(ConfigurationError, match="stands before MemorizationMonitor"):
        refuse_combinations([early, MONITOR], MONITOR)
    refuse_combinations([MONITOR, early], MONITOR)


@pytest.mark.parametrize("editing", [MemorizationSinks(), NeuronMasking()], ids=lambda editing: type(editing).__name__)
def test_guidance_norms_are_not_measured_across_two_networks(
    editing: Any, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="GuidanceNormSkipping compares a training prediction"):
        refuse_combinations([MONITOR, editing, GuidanceNormSkipping()], MONITOR)
    monitor = MemorizationMonitor([DenoisingLoss(), GuidanceNorm()], reference=False)
    with pytest.raises(ConfigurationError, match="GuidanceNorm compares a training prediction"):
        fit(Foreign(pipeline.unet), tmp_path, [monitor, editing])
    refuse_combinations([MONITOR, editing], MONITOR, signals=MONITOR.signals)


def test_the_order_of_other_callbacks_is_free(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    class Foreigner(Callback):
        def on_train_end(self, *_: Any) -> None:
            """Somebody else's."""

    refuse_combinations([Foreigner(), SampleSkipping(), MONITOR], MONITOR)
    with pytest.raises(ConfigurationError, match="NeuronMasking stands before"):
        fit(Foreign(pipeline.unet), tmp_path, [NeuronMasking(), MONITOR])
