"""What every measure of copying promises, and what some promise besides."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from transformers import ViTConfig, ViTModel

from memtrain.errors import ConfigurationError
from memtrain.evaluation.measures.copy_descriptors import CONVENTIONS, describe_images
from memtrain.evaluation.measures.copying.base import CopyWeights, pictures, scaled
from memtrain.evaluation.measures.copying.calibration import CopyCalibration
from memtrain.evaluation.measures.copying.find import copy_measures, measure_classes, recommended
from memtrain.evaluation.measures.copying.parts import Parts
from memtrain.evaluation.measures.copying.tiles import TiledDistance
from memtrain.evaluation.measures.copying.vision import Vision
from memtrain.families.network_file import Network
from tests.conftest import ROOT

ON_CANDIDATES = ("aligned", "ms_ssim")
"""Measures that compare the nearest of the images at hand alone."""


@pytest.fixture(scope="module")
def images():
    """A dozen pictures of the clip art, `(12, 3, 64, 64)`."""
    found = []
    with tarfile.open(ROOT / "assets" / "clipart-pd.tar") as archive:
        for member in archive:
            if member.name.endswith((".png", ".webp")):
                file = archive.extractfile(member)
                assert file is not None
                found.append(np.array(Image.open(io.BytesIO(file.read())).convert("RGB")))
            if len(found) == 12:
                break
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A TorchScript network that answers with pixels of small images."""

    class Small(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1)

    path = tmp_path_factory.mktemp("network") / "small.pt"
    torch.jit.script(Small()).save(str(path))
    return str(path)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """Folder of a small random DINO."""
    folder = tmp_path_factory.mktemp("dino")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = ViTConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
        )
        ViTModel(small).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", measure_classes())
def test_a_picture_is_most_alike_to_itself(images, network, transformer, name, monkeypatch):
    monkeypatch.setattr("memtrain.evaluation.measures.copying.deep_ssim.STEPS", 20)
    (measure,), left_out = copy_measures([name], weights=CopyWeights(copy_detector=network, vision=transformer))
    features = measure.describe(images)
    alike = measure.similarity(features, features)
    assert alike.shape == (12, 12)
    assert alike.isfinite().all()
    assert alike.argmax(dim=1).tolist() == list(range(12))
    assert not left_out
    if name not in ON_CANDIDATES:
        part = measure.similarity(features[:3], features[3:5])
        torch.testing.assert_close(part, alike[:3, 3:5], atol=1e-4, rtol=1e-4)


def test_alignment_sees_a_mirrored_crop_in_a_frame(images):
    (measure,), _ = copy_measures(["aligned"])
    copies = []
    for picture in pictures(images):
        copy = ImageOps.mirror(picture).crop((4, 4, 60, 60)).resize((64, 64))
        copies.append(np.array(ImageOps.expand(copy.crop((2, 2, 62, 62)), 2, fill=(20, 20, 20))))
    alike = measure.similarity(
        measure.describe(torch.from_numpy(np.stack(copies)).permute(0, 3, 1, 2)), measure.describe(images)
    )
    own = alike.diagonal()
    others = alike.clone().fill_diagonal_(-torch.inf).amax(dim=1)
    assert int((own > others).sum()) >= 11
    assert float(own.median()) > 0 > float(others.median())


def test_tiled_distance_is_that_of_the_worst_tile():
    first = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    second = first.clone()
    second[:, :, 16:32, 48:] = 51
    measure = TiledDistance()
    assert measure.similarity(measure.describe(first), measure.describe(second)).item() == pytest.approx(-0.2)


def test_structural_similarity_is_torchmetrics(images):
    (measure,), _ = copy_measures(["ms_ssim"])
    found = measure.similarity(measure.describe(images[:1]), measure.describe(images[1:2]))
    expected = multiscale_structural_similarity_index_measure(
        images[:1].float() / 255, images[1:2].float() / 255, betas=(1 / 3,) * 3, data_range=1.0, normalize="relu"
    )
    torch.testing.assert_close(found[0, 0], expected)


def test_parts_find_a_figure_that_was_put_before_another_ground(images):
    generator = torch.Generator().manual_seed(0)
    ground = torch.randint(256, (1, 3, 96, 96), generator=generator, dtype=torch.uint8)
    ground[:, :, 20:84, 12:76] = images[:1]
    measure = Parts()
    pasted = ground[:, :, 8:72, 4:68].contiguous()
    alike = measure.similarity(measure.describe(pasted), measure.describe(images))[0]
    assert int(alike.argmax()) == 0
    assert float(alike[0]) > float(alike[1:].max()) + 0.1


def test_images_are_scaled_by_areas():
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[..., :4] = 255
    torch.testing.assert_close(scaled(image, 2)[0, 0], torch.tensor([[1.0, 0.0], [1.0, 0.0]]), atol=0.15, rtol=0)


def test_measures_without_their_weights_are_left_out_or_refused():
    measures, left_out = copy_measures()
    assert "sscd" in left_out
    assert "aligned" in [measure.name for measure in measures]
    with pytest.raises(ConfigurationError, match="copy_detector"):
        copy_measures(["sscd"])
    with pytest.raises(ConfigurationError, match="There is no measure of copying 'sscdd'"):
        copy_measures(["sscdd"])


def test_what_finds_most_edited_copies_is_recommended():
    def calibration(plain: float, edited: float) -> CopyCalibration:
        power = {"none": {"n": 10, "share": plain}, "crop": {"n": 10, "share": edited}}
        return CopyCalibration(0.5, 0.01, 0.02, 100, power, {})

    found = {"blind": calibration(0.5, 0.9), "good": calibration(1.0, 0.8), "weak": calibration(1.0, 0.2)}
    assert recommended(found) == "good"
    assert recommended({"blind": found["blind"]}) is None


def test_correlation_of_features_is_pearsons(images, transformer, monkeypatch):
    (measure,), _ = copy_measures(["feature_correlation"], weights=CopyWeights(vision=transformer))
    embeddings = 1 + torch.rand(12, 16, generator=torch.Generator().manual_seed(0))  # the mean of DINO's own is zero
    monkeypatch.setattr(Vision, "describe", lambda self, shown: embeddings)
    features = measure.describe(images)
    np.testing.assert_allclose(measure.similarity(features, features), np.corrcoef(embeddings), atol=1e-5)


@pytest.mark.parametrize("by", sorted(CONVENTIONS))
def test_a_copy_detector_that_takes_pixels_gets_them_as_every_convention_has_them(images, by):
    shown = []

    def network(pixels):
        shown.append(pixels)
        return pixels.float().mean(dim=(2, 3))

    describe_images(Network(network, takes_pixels=True), images[:2], by=CONVENTIONS[by])
    (pixels,) = shown
    assert pixels.dtype == torch.uint8
    prepared = CONVENTIONS[by].prepare(images[:2])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CONVENTIONS[by].mean, CONVENTIONS[by].std))
    torch.testing.assert_close((pixels / 255 - mean) / std, prepared)
