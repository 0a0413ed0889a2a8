"""Callbacks that cannot share a run, and those that can."""

from __future__ import annotations

from typing import Any

import pytest

from memtrain.callbacks.attention_regularization import AttentionRegularization
from memtrain.callbacks.caption_augmentation import CaptionAugmentation
from memtrain.callbacks.combinations import refuse_combinations
from memtrain.callbacks.neuron_masking import NeuronMasking
from memtrain.callbacks.sample_replacement import SampleReplacement
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import ConfigurationError


@pytest.mark.parametrize(
    "idle",
    [
        NeuronMasking(),
        NeuronMasking(samples="all"),
        CaptionAugmentation(samples="flagged"),
        AttentionRegularization(),
    ],
    ids=lambda idle: type(idle).__name__,
)
def test_what_acts_on_flagged_samples_only_needs_them_in_the_batch(idle: Any) -> None:
    with pytest.raises(ConfigurationError, match="takes out of the batches"):
        refuse_combinations([idle, SampleReplacement()])
    refuse_combinations([idle, SampleSkipping()])


def test_replacement_goes_with_what_acts_on_all_samples() -> None:
    everyone = [CaptionAugmentation(), AttentionRegularization(samples="all"), SampleSkipping()]
    refuse_combinations([SampleReplacement(), *everyone])
