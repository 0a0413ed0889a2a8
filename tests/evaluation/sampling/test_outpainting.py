"""Borders painted around known pictures: the centre stays, the border is the model's."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.sampling.decoding import decode_images
from memtrain.evaluation.sampling.outpainting import GREY, border_levels, paint_borders
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.functional.border import border_mask, latent_border, read_border
from memtrain.models.encoding import encode_images

SAMPLING = Sampling(seeds=(0, 1), steps=6, guidance_scale=1.0, batch_size=3, progress=False)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def remembering(pipeline, monkeypatch):
    """A pipeline whose denoiser remembers one picture: what it predicts is the noise on that picture's latents."""
    torch.manual_seed(3)
    clean = torch.randn(1, 4, 8, 8)

    def predict(latents, timestep, *args, **kwargs):
        alpha = pipeline.scheduler.alphas_cumprod[int(timestep)]
        return ((latents - alpha.sqrt() * clean) / (1 - alpha).sqrt(),)

    monkeypatch.setattr(pipeline.unet, "forward", predict)
    return pipeline, clean


def test_the_border_is_what_the_model_remembers_and_the_centre_is_kept(remembering, images):
    pipeline, clean = remembering
    painted = paint_borders(pipeline, images, ["a", "b"], thickness=2, sampling=SAMPLING)
    neutral = torch.where(border_mask(16, 16, 2), torch.tensor(GREY, dtype=torch.uint8), images)
    known = encode_images(pipeline.vae, neutral)
    border = latent_border(16, 16, 2, latent=(8, 8))
    expected = decode_images(pipeline, torch.where(border, clean, known))
    assert painted.shape == (2, 2, 3, 16, 16)
    for seed in range(2):
        torch.testing.assert_close(
            painted[:, seed].float(), expected.float(), atol=6, rtol=0
        )  # the last step leaves some noise
    levels = border_levels(pipeline, images, ["a", "b"], thickness=2, sampling=SAMPLING)
    torch.testing.assert_close(levels, read_border(painted, 2))


def test_the_border_of_the_given_picture_is_not_used(pipeline, images):
    other = torch.where(border_mask(16, 16, 2), 255 - images, images)
    first, second = (
        paint_borders(pipeline, given, ["a", "b"], thickness=2, sampling=SAMPLING) for given in (images, other)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1]), "but the picture is"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers, with NumPy 2
def test_another_scheduler_keeps_the_centre_too(pipeline, images, monkeypatch):
    monkeypatch.setattr(pipeline, "scheduler", EulerDiscreteScheduler.from_config(pipeline.scheduler.config))
    seen = []
    handle = pipeline.vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    neutral = torch.where(border_mask(16, 16, 2), torch.tensor(GREY, dtype=torch.uint8), images)
    try:
        paint_borders(pipeline, images, ["a", "b"], thickness=2, sampling=SAMPLING)
        known = decode_images(pipeline, encode_images(pipeline.vae, neutral))
    finally:
        handle.remove()
    assert known.shape == images.shape
    inside = ~latent_border(16, 16, 2, latent=(8, 8))
    *painted, whole = seen
    post = pipeline.vae.post_quant_conv(encode_images(pipeline.vae, neutral) / pipeline.vae.config.scaling_factor)
    torch.testing.assert_close(whole, post)
    rows = torch.cat(painted)[:, :, inside]
    torch.testing.assert_close(rows, post[[0, 0, 1, 1]][:, :, inside])


def test_an_image_does_not_depend_on_its_batch(pipeline, images):
    whole = border_levels(pipeline, images, ["a", "b"], thickness=2, sampling=SAMPLING)
    alone = border_levels(pipeline, images[1:], ["b"], thickness=2, sampling=SAMPLING)
    torch.testing.assert_close(whole[1:], alone, atol=2 / 255, rtol=0)


def test_what_cannot_be_painted(pipeline, images):
    with pytest.raises(ConfigurationError, match="Tensor cannot keep a part of a picture"):
        paint_borders(images, images, ["a", "b"], thickness=2)
    with pytest.raises(DataError, match="2 images and 1 captions"):
        paint_borders(pipeline, images, ["a"], thickness=2)
