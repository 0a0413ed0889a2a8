"""What a reference profile is known by: samples by what they hold, the base model by all that it is made of."""

import pytest
import torch
from torch import nn

from memtrain.errors import DataError
from memtrain.evidence.content import content_fingerprints, profile_fingerprint


def test_batches_without_content_are_refused() -> None:
    for batch in ({"key": ["a"], "latents": torch.zeros(1, 4)}, {"key": ["a"], "input_ids": torch.zeros(1, 4)}):
        with pytest.raises(DataError, match="cannot name samples by their content"):
            content_fingerprints(batch)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_samples_are_known_by_what_they_hold_whatever_their_key_and_batch(count: int) -> None:
    latents, ids = torch.arange(8, dtype=torch.bfloat16).view(2, 4), torch.tensor([[1, 2], [1, 2]])
    both = content_fingerprints({"key": ["a", "b"], "latents": latents, "input_ids": ids})
    assert content_fingerprints({"latents": latents[:count], "input_ids": ids[:count]}) == both[:count]
    assert both[0] != both[1]


def test_a_profile_is_named_after_weights_settings_and_fitted_signals() -> None:
    denoiser = nn.Linear(2, 2)
    name = profile_fingerprint(denoiser, settings=[["loss"], [100], 2, 0])
    assert name == profile_fingerprint(denoiser, object(), settings=[["loss"], [100], 2, 0], fitted=[])
    others = {
        profile_fingerprint(denoiser, settings=[["loss"], [100], 3, 0]),
        profile_fingerprint(denoiser, settings=[["loss"], [100], 2, 0], fitted=[{"mean": torch.zeros(2)}]),
        profile_fingerprint(nn.Linear(2, 2), settings=[["loss"], [100], 2, 0]),
    }
    assert len(name) == 16
    assert len({name, *others}) == 4


@pytest.mark.parametrize("name", ["loss_mask", "original_size", "crop_top_left", "target_size"])
def test_what_the_loss_depends_on_besides_tells_samples_apart(name: str) -> None:
    batch = {"latents": torch.ones(2, 1, 2, 2), "input_ids": torch.ones(2, 3, dtype=torch.int64)}
    plain = content_fingerprints(batch)
    found = content_fingerprints({**batch, name: torch.tensor([[1, 2], [3, 4]])})
    assert len({*plain, *found}) == 3
