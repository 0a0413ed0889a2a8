"""Training from caches is training without, with the project's own module."""

import pytest
import torch

from memtrain.data.disk_cache import Cache
from memtrain.data.module import TextImageDataModule
from memtrain.models.fingerprint import encoder_fingerprint
from memtrain.training.text_to_image import TextToImageModule

from ..conftest import train


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for number in range(20):
        Image.effect_noise((16 + number, 20), 50).convert("RGB").save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text("abc" + "defghijklmnopqrstuvw"[number])
    return folder


def trained(pipeline_folder, folder, photos, **options):
    torch.manual_seed(0)
    module = TextToImageModule(str(pipeline_folder), learning_rate=1e-3, ema_decay=None, seed=1)
    data = TextImageDataModule(
        str(photos), resolution=16, batch_size=4, seed=2, heldout="split", caption_dropout=0.3, **options
    )
    train(folder, module, data, callbacks=[], stop=3)
    return module, data


def test_training_from_caches_gives_the_same_weights(pipeline_folder, photos, tmp_path):
    plain, uncached = trained(pipeline_folder, tmp_path / "plain", photos)
    cache = Cache(str(tmp_path / "cache"))
    module, data = trained(pipeline_folder, tmp_path / "cached", photos, cache=cache)
    for one, other in zip(data.train_dataset.unique(), uncached.train_dataset, strict=True):
        assert "pixel_values" not in one
        latents = plain.encode_images(other["pixel_values"][None])[0]
        torch.testing.assert_close(one["latents"], latents)
        with torch.no_grad():
            text = plain.encode_tokens({"input_ids": other["input_ids"][None]})
        torch.testing.assert_close(one["text_embeddings"], text["text_embeddings"][0])
    weights = dict(plain.denoiser.named_parameters())
    for name, value in module.denoiser.named_parameters():
        torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=1e-4, msg=name)
    folders = sorted(path.name.split("-")[0] for path in (tmp_path / "cache").iterdir())
    assert folders == ["latents", "text"]


def test_encoders_are_known_by_weights_and_configuration(pipeline):
    vae = pipeline.vae
    first = encoder_fingerprint("a", {"vae": vae})
    assert encoder_fingerprint("a", {"vae": vae}) == first
    assert encoder_fingerprint("b", {"vae": vae}) != first
    was = vae.config.scaling_factor
    vae.register_to_config(scaling_factor=2 * was)
    try:
        assert encoder_fingerprint("a", {"vae": vae}) != first
    finally:
        vae.register_to_config(scaling_factor=was)
    with torch.no_grad():
        parameter = next(vae.parameters())
        kept = parameter.clone()
        parameter.add_(1e-3)
        changed = encoder_fingerprint("a", {"vae": vae})
        parameter.copy_(kept)
    assert changed != first == encoder_fingerprint("a", {"vae": vae})
