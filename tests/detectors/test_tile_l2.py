"""The tile distance and its cliques, against every subset and networkx."""

from __future__ import annotations

import itertools

import networkx
import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.detectors.tile_l2 import TileL2, clique_distance, tile_distance
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.generate import generate, read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling


def test_the_worst_tile_counts() -> None:
    """A difference of 51 grey levels in one of 16 tiles is a distance of 0.2, wherever the rest agrees."""
    images = torch.full((3, 3, 16, 20), 100, dtype=torch.uint8)
    images[1, :, 4:8, 15:] += 51
    images[2, 0, 0, 0] += 51
    distances = tile_distance(images)
    assert torch.equal(distances, distances.T)
    assert float(distances[0, 1]) == pytest.approx(0.2)
    assert float(distances[0, 2]) == pytest.approx(0.2 / (3 * 4 * 5) ** 0.5)
    assert not distances.diagonal().any()


def test_equal_pairs_are_equally_far_apart() -> None:
    """To the last bit and whatever lies between, so no clique is found by rounding; negatives are as far apart."""
    images = torch.randint(0, 256, (6, 3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[3] = images[1]
    distances, mirrored = tile_distance(images), tile_distance(255 - images)
    assert torch.equal(distances, distances.T)
    assert torch.equal(distances[1], distances[3])
    assert distances[1, 3] == 0
    assert torch.equal(distances, mirrored)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    assert torch.equal(tile_distance(images[order]), distances[order][:, order])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_clique_distance_is_the_best_of_all_subsets(size: int) -> None:
    points = torch.rand(7, 2, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    distances = (points[:, None] - points).norm(dim=-1).float()
    best = torch.full((7,), torch.inf)
    for subset in itertools.combinations(range(7), size):
        width = max(distances[a, b] for a, b in itertools.combinations(subset, 2))
        best[list(subset)] = torch.minimum(best[list(subset)], width)
    found = clique_distance(distances, size)
    torch.testing.assert_close(found, best, rtol=0, atol=0)
    for level in (0.2, 0.4, 0.6):
        graph = networkx.from_numpy_array((distances <= level).numpy())
        exists = max(map(len, networkx.find_cliques(graph))) >= size
        assert exists == bool((found <= level).any())


def test_a_chain_is_no_clique() -> None:
    """Neighbours are near, ends are not: one connected component, but no three images alike."""
    distances = (torch.arange(4.0)[:, None] - torch.arange(4.0)).abs()
    assert clique_distance(distances, 3).tolist() == [2, 2, 2, 2]


def test_reads_the_finished_images(pipeline: StableDiffusionPipeline) -> None:
    sampling = Sampling(seeds=range(4), steps=2, batch_size=3, progress=False)
    detector = TileL2()
    trace = generate(pipeline, ["a cat", "b"], detectors=[detector], sampling=sampling)
    assert torch.equal(trace.readings[detector.name][:, :, 0], trace.images)
    alone = read_prompts_with(pipeline, ["a cat", "b"], [detector], sampling=sampling)[detector.name]
    assert torch.equal(alone, trace.readings[detector.name])
    scores = detector.score_images(alone)
    assert scores.shape == (2, 4)
    assert torch.equal(detector.score(alone), scores.amin(dim=1))
    alone[1, 1:3] = alone[1, :1]
    assert float(detector.score(alone)[1]) == 0


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="3 images alike among 2"):
        TileL2().score(torch.zeros(1, 2, 1, 3, 8, 8))
    with pytest.raises(ConfigurationError, match="clique=1"):
        TileL2(1)
    assert TileL2(10).name == "tile_l2_10"
