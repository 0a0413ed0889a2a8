"""The distance ratio: closed forms, copies against noise, chunks, and the held-out threshold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memtrain.errors import CalibrationError, ConfigurationError, DataError
from memtrain.evaluation.measures.replication import replication, reproduction_threshold


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
        assert torch.equal(chunked.ratio, whole.ratio)
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


def test_variants_of_an_image_are_no_neighbours_of_it() -> None:
    """Three times the same image at 0, others at 20, 40 and 250: 10 / mean(10, 30), as if it were there once."""
    arguments = {"own_index": torch.tensor([1]), "neighbours": 2}
    once = replication(flat(10)[:, None], flat(0), training=flat(20, 0, 40, 250), **arguments)  # type: ignore[arg-type]
    training, family = flat(20, 0, 0, 40, 0, 250), torch.tensor([7, 3, 3, 8, 3, 1])
    for images in (1, 2, 100):
        again = replication(
            flat(10)[:, None],
            flat(0),
            training=training,
            family=family,
            chunk_bytes=4 * 48 * images,
            **arguments,  # type: ignore[arg-type]
        )
        torch.testing.assert_close(again.ratio, once.ratio)
        torch.testing.assert_close(again.ratio, torch.tensor([[0.5]]), atol=1e-4, rtol=1e-4)
        assert again.neighbours == 2
        assert again.looks.tolist() == [1]  # type: ignore[union-attr]
    spoiled = replication(flat(10)[:, None], flat(0), training=training, **arguments)  # type: ignore[arg-type]
    assert spoiled.ratio.item() == pytest.approx(1, abs=1e-3), "what would come out otherwise"


def test_the_nearest_variant_is_the_own_image() -> None:
    """Variants at 0, 100 and 200, generations at 10, 110 and 190: always 10 away, and other images at 60 and 150."""
    training, family = flat(0, 60, 100, 150, 200, 100), torch.tensor([0, 1, 0, 2, 0, 0])
    generated = flat(10, 110, 190)[None]
    result = replication(
        generated, flat(0), training=training, own_index=torch.tensor([0]), family=family, neighbours=2
    )
    unit = 48**0.5 / 255
    torch.testing.assert_close(result.own_distance, torch.full((1, 3), 10 * unit))
    expected = torch.tensor([[(50 + 140) / 2, (50 + 40) / 2, (130 + 40) / 2]]) * unit
    torch.testing.assert_close(result.neighbour_distance, expected, atol=1e-3, rtol=1e-3)
    assert result.nearest.tolist() == [[0, 2, 4]]
    assert result.looks.tolist() == [3], "two of the four are the same picture"  # type: ignore[union-attr]


def test_variants_are_one_neighbour_of_other_prompts() -> None:
    """Against the full matrix, with families reduced by hand, in whatever blocks the images come."""
    training, family = noise(40, 3, 8, 8), torch.arange(40) % 25  # 15 families of two, scattered
    generated, own_index = noise(4, 3, 3, 8, 8, seed=1), torch.tensor([3, 30, 20, -1])
    own = torch.cat([training[own_index[:3]], noise(1, 3, 8, 8, seed=2)])
    distances = torch.cdist(generated.flatten(2).double() / 255, training.flatten(1).double() / 255)
    by_family = torch.stack([distances[:, :, family == number].amin(2) for number in range(25)], dim=2)
    own_distance = torch.stack([by_family[row, :, family[own_index[row]]] for row in range(3)])
    for row in range(3):
        by_family[row, :, family[own_index[row]]] = torch.inf
    expected = by_family.sort(2).values[:, :, :10].mean(2)
    for images in (1, 7, 40):
        result = replication(
            generated,
            own,
            training=training,
            own_index=own_index,
            family=family,
            neighbours=10,
            chunk_bytes=4 * 192 * images,
        )
        torch.testing.assert_close(result.neighbour_distance.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(result.own_distance[:3].double(), own_distance)
        assert torch.equal(result.nearest, distances.argmin(2))
        assert result.looks.tolist() == [2, 2, 1, 1]  # type: ignore[union-attr]
    most = replication(generated, own, training=training, own_index=own_index, family=family)
    assert most.neighbours == 24


def test_families_of_one_change_nothing() -> None:
    """To the last bit, whatever they are called."""
    training, generated, own_index = noise(60, 3, 8, 8), noise(5, 2, 3, 8, 8, seed=1), torch.tensor([0, 9, -1, 3, 59])
    own = noise(5, 3, 8, 8, seed=2)
    plain = replication(generated, own, training=training, own_index=own_index, chunk_bytes=1 << 14)
    names = torch.randperm(60, generator=torch.Generator().manual_seed(0)) * 7
    named = replication(generated, own, training=training, own_index=own_index, family=names, chunk_bytes=1 << 14)
    assert torch.equal(plain.ratio, named.ratio)
    assert torch.equal(plain.nearest, named.nearest)


@pytest.mark.parametrize("side", [4, 20])
def test_results_do_not_depend_on_how_they_are_computed(side: int) -> None:
    """Blocks, their order, threads and duplicates: the same to the last bit, and of equal images the first is nearest.

    Against integers. Near-copies differ from each other in one pixel by one grey level, far less than what single
    precision rounds off a squared norm.
    """
    base, generator = noise(6, 3, side, side), torch.Generator().manual_seed(3)
    near = base.clone()
    near[:, 0, 0, 0] ^= 1
    training = torch.cat([base, near, base, noise(9, 3, side, side, seed=4), near])
    generated = torch.stack([base, near, noise(6, 3, side, side, seed=5), 255 - base], dim=1)
    generated[:3, 2, 1] = base[:3, 1]
    own = noise(6, 3, side, side, seed=6)
    flatter = [images.flatten(-3).long() for images in (generated, training)]
    exact = (flatter[0][:, :, None] - flatter[1]).square().sum(dim=-1)
    first: Tensor | None = None
    for trial in range(12):
        order = torch.randperm(len(training), generator=generator) if trial else torch.arange(len(training))
        threads = torch.get_num_threads()
        torch.set_num_threads(1 + trial % 2)
        try:
            found = replication(
                generated,
                own,
                training=training[order],
                own_index=torch.full((6,), -1),
                neighbours=7,
                chunk_bytes=4 * 3 * side * side * (1 + 3 * trial),
            )
        finally:
            torch.set_num_threads(threads)
        shuffled = exact[:, :, order]
        equally_near = shuffled == shuffled.amin(dim=2, keepdim=True)
        assert torch.equal(found.nearest, equally_near.int().argmax(dim=2)), "the lowest index of the nearest"
        assert torch.equal(found.nearest_distance, (shuffled.amin(dim=2).double().sqrt() / 255).float())
        torch.testing.assert_close(
            found.neighbour_distance.double(), shuffled.sort(dim=2).values[:, :, :7].double().sqrt().mean(dim=2) / 255
        )
        first = found.ratio if first is None else first
        assert torch.equal(found.ratio, first)


def test_sums_are_exact_where_pixels_are_extreme() -> None:
    """Black against white and almost white, at the size at which single precision has no place for the difference."""
    training = torch.stack([torch.full((3, 64, 64), 255, dtype=torch.uint8)] * 3)
    training[2, 0, 0, 0] = 254
    result = replication(
        torch.zeros(1, 1, 3, 64, 64, dtype=torch.uint8), training[:1], training=training, own_index=torch.tensor([-1])
    )
    assert result.nearest.item() == 2
    squared = torch.tensor(12288 * 255**2 - 255**2 + 254**2, dtype=torch.float64)
    assert torch.equal(result.nearest_distance, (squared.sqrt() / 255).float().view(1, 1))


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
    with pytest.raises(DataError, match=r"only 1 training image\(s\)"):
        replication(generated, own, training=training, own_index=index, family=torch.zeros(5))
    with pytest.raises(ConfigurationError, match="neighbours=0"):
        replication(generated, own, training=training, own_index=index, neighbours=0)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_prompt_one_and_two_are_compared_with_two_training_images(count: int) -> None:
    training = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4) * 200
    own = training[:count]
    arguments = {"training": training, "own_index": torch.arange(count)}
    if count:
        found = replication(own[:, None], own, **arguments)
        assert found.ratio.tolist() == [[0.0]] * count
        assert reproduction_threshold(found.best, 1 / (count + 1)) == 0
    else:
        with pytest.raises(DataError, match="0 prompts with 1 generations each"):
            replication(own[:, None], own, **arguments)
    with pytest.raises(CalibrationError, match=f"found {count}"):
        reproduction_threshold(torch.zeros(count), 0.3)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_training_images_are_no_comparison(count: int) -> None:
    own = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match=f"only {count} training image"):
        replication(own[:, None], own, training=own[:count], own_index=torch.tensor([-1]))


def test_of_pictures_under_one_caption_the_nearest_is_compared_with_the_others() -> None:
    """Three images under one caption; the generation is 10 from the last, 90 and 190 from the others."""
    result = replication(
        flat(190)[:, None],
        flat(0),
        training=flat(0, 100, 200),
        own_index=torch.tensor([0]),
        shared=[[0, 1, 2]],
        neighbours=2,
    )
    torch.testing.assert_close(result.ratio, torch.tensor([[10 / 140]]), atol=1e-4, rtol=1e-4)
    assert result.variants == [[1, 2]]
    assert result.looks is not None
    assert result.looks.tolist() == [3]
