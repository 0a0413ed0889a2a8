"""The distance ratio: closed forms, copies against noise, chunks, and the held-out threshold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memtrain.errors import CalibrationError, ConfigurationError, DataError
from memtrain.evaluation.replication import replication, reproduction_threshold


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Random images."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def flat(*levels: int) -> Tensor:
    """Images of one grey level each, `(n, 3, 4, 4)`; the distance of two is their difference / 255 · √48."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()


def test_ratio_in_closed_form() -> None:
    """A generation at 10, own image at 0 (index 0), others at 20, 40 and 250: 10 / mean(10, 30) with 2 neighbours."""
    training = flat(0, 20, 40, 250)
    result = replication(
        flat(10)[:, None], flat(0), training=training, own_index=torch.tensor([0]), neighbours=2, chunk_bytes=1
    )
    unit = 48**0.5 / 255
    torch.testing.assert_close(result.own_distance, torch.tensor([[10 * unit]]))
    torch.testing.assert_close(result.neighbour_distance, torch.tensor([[20 * unit]]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(result.ratio, torch.tensor([[0.5]]), atol=1e-4, rtol=1e-4)
    assert result.neighbours == 2


def test_own_image_counts_as_nearest_but_not_as_neighbour() -> None:
    """A held-out prompt has no own image to leave out, so all training images are neighbours."""
    training, generated = flat(0, 100, 200), flat(1, 1)[:, None]
    result = replication(generated, flat(0, 0), training=training, own_index=torch.tensor([0, -1]), neighbours=1)
    assert result.nearest.tolist() == [[0], [0]]
    unit = 48**0.5 / 255
    torch.testing.assert_close(result.neighbour_distance, torch.tensor([[99 * unit], [unit]]), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(result.nearest_distance, torch.tensor([[unit], [unit]]))


def test_chunks_do_not_change_the_result() -> None:
    """Whatever fits into memory at once; neighbours are capped at what is there."""
    training = noise(23, 3, 8, 8)
    arguments = {"training": training, "own_index": torch.tensor([3, 22, -1, 0])}
    generated, own = noise(4, 3, 3, 8, 8, seed=1), noise(4, 3, 8, 8, seed=2)
    whole = replication(generated, own, **arguments)  # type: ignore[arg-type]
    assert whole.neighbours == 22
    for images in (1, 2, 7, 12):
        chunked = replication(generated, own, chunk_bytes=4 * 192 * images, **arguments)  # type: ignore[arg-type]
        torch.testing.assert_close(chunked.ratio, whole.ratio)
        assert torch.equal(chunked.nearest, whole.nearest)


def test_distances_equal_the_full_matrix() -> None:
    """Against torch.cdist in double precision."""
    training, generated = noise(60, 3, 8, 8), noise(5, 2, 3, 8, 8, seed=1)
    own_index = torch.tensor([0, 10, 20, 30, 59])
    result = replication(generated, training[own_index], training=training, own_index=own_index, chunk_bytes=1 << 14)
    matrix = torch.cdist(generated.flatten(2).double() / 255, training.flatten(1).double() / 255)
    assert torch.equal(result.nearest, matrix.argmin(2))
    torch.testing.assert_close(result.nearest_distance.double(), matrix.amin(2))
    others = matrix.clone()
    others[torch.arange(5), :, own_index] = torch.inf
    torch.testing.assert_close(
        result.neighbour_distance.double(), others.sort(2).values[:, :, :50].mean(2), atol=1e-5, rtol=1e-5
    )


def test_a_copying_generator_is_found_and_noise_is_not() -> None:
    """Twelve prompts: four copied in one of three seeds, four never, four held out and calibrating nothing here."""
    training, held = noise(200, 3, 8, 8), noise(40, 3, 8, 8, seed=1)
    own_index = torch.cat([torch.arange(8), torch.full((40,), -1)])
    own = torch.cat([training[:8], held])
    generated = noise(48, 3, 3, 8, 8, seed=2)
    jitter = noise(4, 3, 8, 8, seed=3).int() // 16
    generated[:4, 1] = (training[:4].int() + jitter).clamp(max=255).to(torch.uint8)
    result = replication(generated, own, training=training, own_index=own_index)
    threshold = reproduction_threshold(result.best[8:], 0.05)
    reproduced = result.best < threshold
    assert reproduced[:4].all()
    assert not reproduced[4:8].any()
    assert (result.ratio[:4, 1] < 0.2).all()
    assert (result.ratio[:4, 0] > 0.9).all()
    assert result.nearest[:4, 1].tolist() == [0, 1, 2, 3]
    assert int(reproduced[8:].sum()) == 1  # 41 · 5 % is 2: the second smallest is the threshold


def test_too_few_heldout_prompts_say_how_many_are_needed() -> None:
    """19 are needed for 5 %."""
    with pytest.raises(CalibrationError, match="at least 19"):
        reproduction_threshold(torch.rand(18), 0.05)


def test_images_that_cannot_be_compared_are_refused() -> None:
    """Sizes, types and counts."""
    generated, own, training = noise(2, 1, 3, 8, 8), noise(2, 3, 8, 8), noise(5, 3, 8, 8)
    index = torch.tensor([0, 1])
    for wrong in (
        (generated, own, noise(5, 3, 16, 16)),
        (generated, own.float(), training),
        (generated, own[:1], training),
    ):
        with pytest.raises(DataError, match="cannot be compared"):
            replication(wrong[0], wrong[1], training=wrong[2], own_index=index)
    with pytest.raises(DataError, match="at least 2"):
        replication(generated, own, training=training[:1], own_index=index)
    with pytest.raises(ConfigurationError, match="neighbours=0"):
        replication(generated, own, training=training, own_index=index, neighbours=0)
