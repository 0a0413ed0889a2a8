"""Cliques among generations: found where images come back, at the stated rate elsewhere."""

import pytest
import torch

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.measure.counting.cliques import (
    clique_distances,
    clique_level,
    count_cliques,
    tile_distances,
)


@pytest.fixture(scope="module")
def distances():
    torch.manual_seed(0)
    generated = torch.randint(256, (22, 6, 3, 16, 16)).to(torch.uint8)
    generated[0, 1:4] = generated[0, 0]  # four alike
    generated[1, 1] = generated[1, 0]  # two alike
    return tile_distances(generated)


def test_a_clique_of_four_is_one_of_three_and_none_of_five(distances):
    assert count_cliques(distances, 0.05, size=3)["found"] == [0]
    assert count_cliques(distances, 0.05, size=2)["found"] == [0, 1]
    assert count_cliques(distances, 0.05, size=5)["cliques"] == 0
    named = count_cliques(distances, 0.05, size=4, names=[f"p{row}" for row in range(22)])
    assert (named["found"], named["n"], named["share"]) == (["p0"], 22, 1 / 22)


def test_the_smallest_distance_of_a_clique_decides(distances):
    smallest = clique_distances(distances, 3)
    for level in (smallest[2].item(), smallest[2].item() + 1e-4):
        found = count_cliques(distances, level, size=3)["found"]
        assert found == (smallest < level).nonzero().squeeze(1).tolist()


def test_the_level_lets_no_more_of_the_null_through_than_stated(distances):
    null = clique_distances(distances[2:], 3)
    level = clique_level(null, 0.1)
    held = torch.arange(22) >= 2
    assert count_cliques(distances, level, size=3, among=held)["cliques"] <= 0.1 * (20 + 1)
    assert count_cliques(distances, level, size=3, among=~held)["found"] == [0]


def test_a_chain_is_no_clique():
    chain = torch.tensor([[[0.0, 1, 2], [1, 0, 1], [2, 1, 0]]])
    assert count_cliques(chain, 1.5, size=3)["cliques"] == 0
    assert count_cliques(chain, 1.5, size=2)["cliques"] == 1


def test_fewer_generations_than_a_clique_has(distances):
    with pytest.raises(ConfigurationError, match=r"Cliques of 7 among 6[\s\S]*sample more"):
        count_cliques(distances, 0.1, size=7)
