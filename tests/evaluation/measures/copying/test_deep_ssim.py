import pytest
import torch
from torchmetrics.image import StructuralSimilarityIndexMeasure

from memtrain.errors import ConfigurationError
from memtrain.evaluation.measures.copying.deep_ssim import DeepSSIM, ssim


@pytest.fixture(scope="module")
def images():
    """Smooth random pictures, `(40, 3, 32, 32)`."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(40, 3, 5, 5, generator=generator)
    return (255 * torch.nn.functional.interpolate(small, size=(32, 32), mode="bicubic").clamp(0, 1)).to(torch.uint8)


@pytest.fixture(scope="module")
def learned(images):
    measure = DeepSSIM(steps=80)
    measure.learn(images[:32])
    return measure


def test_cosines_imitate_the_structural_similarity_of_pictures_that_were_not_learned_from(images, learned):
    fresh = images[32:]
    blended = (0.6 * fresh + 0.4 * images[:8]).to(torch.uint8)
    grey = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    pictures = torch.cat([fresh, blended])
    features = learned.describe(pictures)
    values = (pictures.float() / 255 * grey).sum(dim=1, keepdim=True)
    rows, columns = torch.triu_indices(16, 16, offset=1)
    found, wanted = learned.similarity(features, features)[rows, columns], ssim(values[rows], values[columns])
    assert float(torch.corrcoef(torch.stack([found, wanted]))[0, 1]) > 0.7
    whole = StructuralSimilarityIndexMeasure(data_range=1.0, sigma=1.0)(values[rows], values[columns])
    torch.testing.assert_close(wanted.mean(), whole)


def test_learning_leaves_torchs_own_generator_as_it_was_and_repeats(images):
    before = torch.get_rng_state()
    first, second = (DeepSSIM(steps=2) for _ in range(2))
    first.learn(images)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(first.describe(images), second.describe(images))  # the second learns as it describes


def test_the_network_is_kept_in_a_file_and_read_from_it(images, tmp_path):
    path = tmp_path / "kept" / "network.safetensors"
    first = DeepSSIM(str(path), steps=2)
    first.learn(images)
    again = DeepSSIM(str(path))
    again.learn(images[:0])
    torch.testing.assert_close(again.describe(images), first.describe(images))
    path.write_bytes(b"no network")
    with pytest.raises(ConfigurationError, match="does not hold the network"):
        DeepSSIM(str(path)).learn(images)


def test_no_pictures_to_learn_from_are_refused_and_one_is_enough(images):
    with pytest.raises(ConfigurationError, match="no training pictures"):
        DeepSSIM().learn(images[:0])
    measure = DeepSSIM(steps=2)
    measure.learn(images[:1])
    assert measure.describe(images[:3]).isfinite().all()
