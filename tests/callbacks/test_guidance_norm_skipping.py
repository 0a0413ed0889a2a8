"""Skipping by text-conditional noise: the published rule, and a run that measures what it says."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.callbacks.guidance_norm_skipping import GuidanceNormSkipping
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation
from memtrain.records import read_steps
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.guidance_norm import GuidanceNorm
from tests.callbacks.test_monitor import Foreign, fit


def flags(count: int) -> Flags:
    none = torch.zeros(count, dtype=torch.bool)
    return Flags(none, none, torch.zeros(count))


def test_visits_below_the_threshold_are_kept() -> None:
    prediction = torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0], [0.0, 1.9]])
    seen = Observation(list("abcd"), prediction=prediction, unconditional=torch.zeros(4, 2))
    weights = GuidanceNormSkipping().weights(seen, flags(4))
    assert weights.tolist() == [0.0, 1.0, 0.0, 1.0], "a norm of exactly 2 is skipped, as published"
    assert GuidanceNormSkipping(threshold=0.5).weights(seen, flags(4)).tolist() == [0.0] * 4


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="threshold=0"):
        GuidanceNormSkipping(threshold=0)
    with pytest.raises(ConfigurationError, match="threshold=None"):
        GuidanceNormSkipping(published=None)
    with pytest.raises(ConfigurationError, match="published='liu2024'"):
        GuidanceNormSkipping(published="liu2024")  # type: ignore[arg-type]
    with pytest.raises(ProbeError, match="empty caption"):
        GuidanceNormSkipping().weights(Observation(["a"]), flags(1))


class WithEmptyText(Foreign):
    """A foreign module that can encode the empty caption."""

    def unconditional_text(self) -> Tensor:
        return torch.full((1, 5, 16), 0.1)


def test_a_run_skips_by_the_norm_that_the_signal_records(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    def monitor(every: int) -> MemorizationMonitor:
        return MemorizationMonitor([DenoisingLoss(), GuidanceNorm(every=every)], reference=False)

    plain = WithEmptyText(pipeline.unet)
    fit(plain, tmp_path / "plain", [monitor(2)])
    norms = read_steps(tmp_path / "plain" / "records")
    measured = torch.tensor(norms["guidance_norm"].to_pylist())
    assert measured.view(8, 4).isnan().any(dim=1).tolist() == [False, True] * 4

    threshold = float(measured[:4].median()) + 1e-6
    skipping = WithEmptyText(pipeline.unet)
    fit(skipping, tmp_path / "skipping", [monitor(4), GuidanceNormSkipping(threshold=threshold)])
    rows = read_steps(tmp_path / "skipping" / "records").to_pylist()
    assert all((row["weight"] == 0) == (row["guidance_norm"] >= threshold) for row in rows)
    assert 0 < sum(row["weight"] == 0 for row in rows) < len(rows)

    untouched = WithEmptyText(pipeline.unet)
    fit(untouched, tmp_path / "untouched", [MemorizationMonitor(reference=False)])
    for ours, theirs in zip(plain.gradients, untouched.gradients, strict=True):
        assert torch.equal(ours, theirs), "the extra forward changes no gradient"


def test_a_module_that_cannot_encode_the_empty_caption_is_refused(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    callbacks = [MemorizationMonitor(reference=False), GuidanceNormSkipping()]
    with pytest.raises(ConfigurationError, match="unconditional_text"):
        fit(Foreign(pipeline.unet), tmp_path, callbacks)
