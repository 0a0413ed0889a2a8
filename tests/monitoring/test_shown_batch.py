"""What is read of batches, observations and losses that are handed over."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from memtrain.families.figures import caption_name, figures, looks, similarity
from memtrain.functional.diffusion import noisy_and_target
from memtrain.models.observation import Observation
from memtrain.monitoring.heldout_latents import noise_levels
from memtrain.monitoring.host import Host
from memtrain.monitoring.shown_batch import ShownBatch, recovered

KEYS = ["a", "b", "c"]


def latents() -> Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def observation(**given: object) -> Observation:
    text = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))
    return Observation(KEYS, text_embeddings=text, **given)  # type: ignore[arg-type]


def read(shown: ShownBatch, seen: Observation, host: Host | None = None) -> tuple[Tensor | None, list[str | None]]:
    _, _, keys, packed, captions = shown.visits(seen, host or Host(None), batch=0, settled=False).read()
    assert keys == KEYS
    return packed, captions


def test_a_batch_shows_its_pictures_and_captions() -> None:
    shown = ShownBatch()
    shown.read({"latents": latents(), "caption": ["A fox", "", "an ox"]}, 3, pictures=True)
    packed, captions = read(shown, observation(caption_dropped=[False, False, True]))
    expected = looks(latents())
    assert packed is not None
    assert expected is not None
    assert torch.equal(packed, expected)
    assert captions == [caption_name("a fox"), None, None]


def test_token_ids_show_captions_where_there_are_no_texts() -> None:
    ids = torch.tensor([[1, 5, 6, 2, 2], [1, 2, 2, 2, 2], [1, 5, 6, 2, 2]])
    shown = ShownBatch()
    shown.read({"pixel_values": torch.rand(3, 3, 8, 8), "input_ids": ids}, 3, pictures=False)
    packed, captions = read(shown, observation())
    assert packed is None
    assert captions[0] == captions[2] != captions[1] is None
    assert captions[0] is not None
    assert captions[0].startswith("~"), "padding may have hidden the empty one"
    shown = ShownBatch()
    lengths = torch.tensor([2, 4, 4])
    shown.read({"x": torch.rand(3, 3, 8, 8), "input_ids": ids, "prompt_length": lengths}, 3, pictures=True)
    packed, captions = read(shown, observation())
    assert packed is not None
    assert captions[0] is None
    assert not str(captions[1]).startswith("~")


def test_a_mask_of_words_tells_empty_captions_where_lengths_count_other_marks() -> None:
    """T5 ends a text and does not begin it: a word makes two tokens, as an empty caption of CLIP does."""
    ids, lengths = torch.tensor([[5, 1, 0], [1, 0, 0], [5, 6, 1]]), torch.tensor([2, 1, 3])
    mask = torch.tensor([[True, False, False], [False, False, False], [True, True, False]])
    shown = ShownBatch()
    shown.read({"input_ids": ids, "prompt_length": lengths, "prompt_mask": mask}, 3, pictures=False)
    _, captions = read(shown, observation())
    assert [caption is None for caption in captions] == [False, True, False]


def test_what_the_host_knows_by_key_comes_before_embeddings() -> None:
    host = Host(None)
    host.captions = {"a": "a fox", "b": "", "c": "A FOX"}
    assert read(ShownBatch(), observation(), host)[1] == [caption_name("a fox"), None, caption_name("a fox")]
    embedded = read(ShownBatch(), observation())[1]
    assert len(set(embedded)) == 3
    assert None not in embedded
    assert read(ShownBatch(), observation(text_trained=True))[1] == [None] * 3


def test_captions_that_a_loop_hands_over_are_not_made_up_for() -> None:
    shown = ShownBatch()
    shown.add(images=latents()[:2], captions=["", ""])
    shown.add(images=latents()[2:], captions=[""])
    packed, captions = read(shown, observation())
    assert captions == [None] * 3
    assert packed is not None
    assert len(packed) == 3


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_latents_are_recovered_from_what_the_denoiser_should_have_answered(kind: str) -> None:
    flow = kind == "flow_prediction"
    scheduler = FlowMatchEulerDiscreteScheduler() if flow else DDPMScheduler(prediction_type=kind)
    levels = noise_levels(scheduler)
    assert levels is not None
    steps = torch.tensor([10, 400, 900])
    noisy, target = noisy_and_target(latents(), torch.randn(3, 4, 8, 8), levels[0][steps], prediction_type=kind)
    seen = Observation(KEYS, timesteps=steps, noisy_latents=noisy)
    packed, expected = recovered(seen, torch.zeros_like(target), target, levels=levels), looks(latents())
    assert packed is not None
    assert expected is not None
    one, two = figures(packed), figures(expected)
    assert (similarity(one, two).diagonal() > 0.999).all()
    assert recovered(seen, target[:, :2], target, levels=levels) is None
    assert recovered(seen, target, target, levels=None) is None


def test_latents_in_half_precision_are_not_read_where_rounding_is_blown_up() -> None:
    levels = noise_levels(DDPMScheduler())
    assert levels is not None
    seen = Observation(KEYS, timesteps=torch.tensor([10, 400, 900]), noisy_latents=latents().half())
    packed = recovered(seen, latents(), latents(), levels=levels)
    assert packed is not None
    assert packed.any(dim=1).tolist() == [True, True, False]
