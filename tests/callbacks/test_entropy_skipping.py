"""Entropy skipping: the entropy of the average, its moments by noise level, and what is skipped."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.callbacks.entropy_skipping import MINIMUM_VISITS, EntropySkipping, mean_attention_entropy
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation
from tests.callbacks.test_monitor import Foreign, fit


def visits(mass: list[float], timestep: float = 450.0) -> tuple[Observation, Flags]:
    """Attention of each sample: `mass` on the second of two tokens."""
    attention = torch.stack([torch.tensor([1 - m, m]) for m in mass])
    seen = Observation(
        [str(index) for index in range(len(mass))],
        timesteps=torch.full((len(mass),), timestep),
        token_attention={"down": attention, "up": attention},
    )
    none = torch.zeros(len(mass), dtype=torch.bool)
    return seen, Flags(none, none, torch.zeros(len(mass)))


def test_the_entropy_is_that_of_the_attention_averaged_over_sites() -> None:
    attention = {"down": torch.tensor([[1.0, 0.0]]), "up": torch.tensor([[0.0, 1.0]])}
    value = mean_attention_entropy(Observation(["a"], token_attention=attention))
    assert value.item() == pytest.approx(math.log(2)), "the mean of the entropies would be 0"


def test_a_visit_above_the_tail_of_its_noise_level_is_skipped() -> None:
    skipping = EntropySkipping(share=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        usual = (0.2 + 0.01 * torch.randn(8, generator=generator)).tolist()
        weights = skipping.weights(*visits(usual))
    kept, skipped = 8 - int((weights == 0).sum()), int((weights == 0).sum())
    assert kept > skipped
    assert skipping.weights(*visits([0.5, 0.2])).tolist() == [0.0, 1.0]
    assert skipping.weights(*visits([0.5, 0.2], timestep=950.0)).tolist() == [1.0, 1.0], "another noise level"


def test_nothing_is_skipped_before_there_are_moments_and_they_are_plain_ones_at_first() -> None:
    skipping = EntropySkipping(decay=0.999)
    values = [0.1, 0.2, 0.3, 0.4]
    for _ in range(MINIMUM_VISITS // 4):
        assert skipping.weights(*visits(values)).tolist() == [1.0] * 4
    entropies = mean_attention_entropy(visits(values)[0])
    count, mean, variance = skipping.moments[:, 4]
    assert count == MINIMUM_VISITS
    torch.testing.assert_close(mean, entropies.double().mean())
    torch.testing.assert_close(variance, entropies.double().var(unbiased=False))
    again = EntropySkipping(decay=0.999)
    again.load_state_dict(skipping.state_dict())
    assert torch.equal(again.weights(*visits([0.5, 0.2])), skipping.weights(*visits([0.5, 0.2])))


def test_attention_that_is_not_finite_does_not_spoil_the_moments() -> None:
    plain, spoilt = EntropySkipping(), EntropySkipping()
    plain.weights(*visits([0.1, 0.3]))
    spoilt.weights(*visits([0.1, math.nan, 0.3]))
    assert torch.equal(plain.moments, spoilt.moments)


def test_a_second_fit_starts_without_moments(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    skipping = EntropySkipping()
    for folder in ("first", "second"):
        fit(Foreign(pipeline.unet), tmp_path / folder, [MemorizationMonitor(reference=False), skipping], max_epochs=1)
        assert skipping.moments[0].sum() == 16


def test_settings() -> None:
    with pytest.raises(ConfigurationError, match=r"share=0\.5"):
        EntropySkipping(share=0.5)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_batches_of_no_sample_one_and_two(count: int) -> None:
    mitigation, none = EntropySkipping(), torch.zeros(count, dtype=torch.bool)
    for _ in range(20):
        observation = Observation(
            ["a", "b"][:count],
            timesteps=torch.zeros(count, dtype=torch.long),
            token_attention={"up": torch.full((count, 4), 0.25)},
        )
        kept = mitigation.weights(observation, Flags(none, none, torch.zeros(count)))
        assert kept.tolist() == [1.0] * count, "all are alike"
    assert mitigation.moments.isfinite().all()
    assert float(mitigation.moments[0].sum()) == 20 * count
