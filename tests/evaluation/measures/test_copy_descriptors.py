"""What each convention does to an image and to similarities, by hand; descriptors come from files only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.measures.copy_descriptors import (
    CONVENTIONS,
    describe_images,
    reduce_similarity,
)
from memtrain.evaluation.measures.medians import median_and_mad
from memtrain.families.network_file import load_network
from tests.evaluation.conftest import save_script

RANDOM = torch.Generator().manual_seed(0)


class MeanColour(nn.Module):
    """The smallest descriptor: the mean of every channel."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "descriptor.torchscript.pt"
    save_script(MeanColour(), path)
    return path


def test_median_and_mad_are_the_lower_of_two_middle_values() -> None:
    found = median_and_mad(torch.tensor([1.0, 10.0, 4.0, 2.0]))
    assert found == {"median": 2.0, "mad": 1.0, "n": 4}, "deviations are 1, 8, 2, 0"
    assert median_and_mad(torch.tensor([1.0, 2.0, 6.0])) == {"median": 2.0, "mad": 1.0, "n": 3}
    assert median_and_mad(torch.empty(0)) == {"median": None, "mad": None, "n": 0}


@pytest.mark.parametrize(("name", "side"), [("dcr", 224), ("wen", 224), ("nemo", 320), ("membench", 288)])
def test_images_are_prepared_as_the_paper_does(name: str, side: int) -> None:
    image = torch.zeros(1, 3, 100, 200, dtype=torch.uint8)
    image[:, :, :, 100:] = 255
    image[:, :, :, :20] = 255
    prepared = CONVENTIONS[name].prepare(image)
    assert prepared.shape == (1, 3, side, side)
    black, white = ((0 - m) / s for m, s in ((0.5, 0.5), (0.5, 0.5))), 1.0
    if name in ("dcr", "wen"):
        assert prepared[0, 0, 0, 0] == next(black) == -1, "the border is cropped"
        assert prepared[0, 0, 0, -1] == white
    else:
        assert prepared[0, :, 0, 0].tolist() == pytest.approx(
            [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
        )
        assert (prepared[0, 0, 0] > 0).float().mean() == pytest.approx(0.6, abs=0.01), "the whole width is squashed"


def test_a_square_of_the_right_size_is_only_normalized() -> None:
    image = torch.randint(0, 256, (2, 3, 320, 320), dtype=torch.uint8, generator=RANDOM)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (image / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(CONVENTIONS["nemo"].prepare(image), expected)


def test_resizing_is_pillows() -> None:
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=RANDOM)
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((256, 256), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[:, 16:240, 16:240] / 127.5 - 1
    torch.testing.assert_close(CONVENTIONS["wen"].prepare(image)[0], expected)


def test_reductions_by_hand() -> None:
    similarity = torch.tensor([[[0.1, 0.9], [0.6, 0.2], [0.3, 0.3], [0.0, 0.4]], [[0.2, 0.2]] * 4])
    assert reduce_similarity(similarity, "wen")["mean"] == pytest.approx((0.9 + 0.6 + 0.3 + 0.4 + 4 * 0.2) / 8)
    found = reduce_similarity(similarity, "dcr")
    assert found["mean"] == pytest.approx(0.375)
    assert found["percentile_95"] == pytest.approx(0.6 + 0.65 * 0.3)
    nemo = reduce_similarity(similarity, "nemo")
    assert nemo["SSCD_orig"]["median"] == pytest.approx(0.2), "of 0.3 and 0.2 the lower"
    assert nemo["SSCD_orig"]["mad"] == pytest.approx(0.0)
    assert nemo["SSCD_orig_median"]["median"] == pytest.approx(0.1)
    bench = reduce_similarity(similarity, "membench")
    assert bench["top_1"] == pytest.approx((0.9 + 0.2) / 2)
    assert bench["top_3"] == pytest.approx(((0.9 + 0.6 + 0.4) / 3 + 0.2) / 2)
    assert bench["share_above_0.5"] == pytest.approx(2 / 8)
    with pytest.raises(ConfigurationError, match="'ours'"):
        reduce_similarity(similarity, "ours")


def test_descriptors_come_from_a_script(script: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8, generator=RANDOM)
    by = CONVENTIONS["membench"]
    found = describe_images(load_network(script), images, by=by, batch_size=4)
    expected = by.prepare(images.flatten(0, 1)).mean(dim=(2, 3))
    torch.testing.assert_close(found, nn.functional.normalize(expected, dim=1).view(2, 3, 3))


def test_what_is_no_descriptor_is_refused() -> None:
    with pytest.raises(DataError, match="one vector per image"):
        describe_images(lambda images: images, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), by=CONVENTIONS["nemo"])


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
@pytest.mark.parametrize("shape", [(0, 2, 2), (2, 0, 2), (2, 2, 0)])
def test_similarities_of_nothing_are_refused(name: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match=" x ".join(map(str, shape))):
        reduce_similarity(torch.zeros(shape), name)


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
@pytest.mark.parametrize("count", [1, 2])
def test_figures_of_one_prompt_and_two_are_those_of_their_similarity(name: str, count: int) -> None:
    found = reduce_similarity(torch.full((count, 1, 1), 0.75), name)
    figures = [figure["median"] if isinstance(figure, dict) else figure for figure in found.values()]
    assert set(figures) <= {0.75, 1.0}, "1 is the share above a half"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_image_one_and_two_are_described(count: int) -> None:
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    by = CONVENTIONS["nemo"]
    if not count:
        with pytest.raises(DataError, match="no images to describe"):
            describe_images(lambda pixels: pixels.flatten(1), images, by=by)
    else:
        assert len(describe_images(lambda pixels: pixels.flatten(1), images, by=by)) == count


def test_a_value_that_is_not_known_is_no_part_of_a_median() -> None:
    assert median_and_mad(torch.tensor([torch.nan, torch.nan])) == {"median": None, "mad": None, "n": 0}
    assert median_and_mad(torch.tensor([torch.nan, 3.0])) == {"median": 3.0, "mad": 0.0, "n": 1}
