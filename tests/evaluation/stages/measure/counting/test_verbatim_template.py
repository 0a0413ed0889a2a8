"""Verbatim and template copies of drawn pictures."""

import pytest
import torch

from memtrain.evaluation.stages.measure.counting.verbatim_template import (
    PUBLISHED,
    edge_strength,
    picture_distances,
    verbatim_and_template,
)


def drawing(generator, colours=None):
    """A rectangle on a plain ground, somewhere."""
    corner = torch.randint(4, 20, (2,), generator=generator).tolist()
    size = torch.randint(20, 36, (2,), generator=generator).tolist()
    colours = torch.randint(256, (3, 2), generator=generator) if colours is None else colours
    image = colours[:, :1, None].expand(3, 64, 64).clone()
    image[:, corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] = colours[:, 1:, None]
    return image.to(torch.uint8)


@pytest.fixture(scope="module")
def distances():
    generator = torch.Generator().manual_seed(0)
    own = torch.stack([drawing(generator) for _ in range(203)])
    generated = torch.stack([torch.stack([drawing(generator) for _ in range(2)]) for _ in range(203)])
    noise = torch.randint(-6, 7, (3, 64, 64), generator=generator)
    generated[0, 1] = (own[0].int() + noise).clamp(0, 255).to(torch.uint8)  # verbatim
    generated[1, 0] = 255 - own[1]  # the same rectangle in other colours
    generated[2, 0] = own[2]
    generated[2, 0, :, :30] = torch.randint(256, (3, 30, 64), generator=generator).to(torch.uint8)  # one half alone
    return picture_distances(generated, own)


def test_each_kind_is_told(distances):
    trained = torch.arange(203) < 3
    found = verbatim_and_template(distances, trained=trained, heldout=~trained)
    assert found["kinds"] == ["verbatim", "template", "template"]
    assert (found["verbatim"]["prompts"], found["template"]["prompts"], found["n"]) == (1, 2, 3)
    assert found["rate"] == 0.01


def test_held_out_prompts_are_named_at_most_at_the_stated_rates(distances):
    trained = torch.arange(203) < 3
    found = verbatim_and_template(distances, trained=~trained, heldout=~trained)
    assert found["verbatim"]["prompts"] <= 2
    assert found["template"]["prompts"] <= 2 * 2


def test_without_held_out_prompts_no_template_is_named(distances):
    everything = torch.ones(203).bool()
    found = verbatim_and_template(distances, trained=everything, heldout=~everything)
    assert found["levels"] == {"whole": PUBLISHED, "masked": None, "edges": None}
    assert (found["template"]["prompts"], found["rate"]) == (0, None)
    assert found["kinds"][0] == "verbatim"


def test_the_published_level_is_the_sum_of_squares_at_256_pixels():
    assert pytest.approx(2500) == PUBLISHED**2 * 3 * 256**2
    own = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    generated = torch.full((1, 1, 3, 32, 32), 51, dtype=torch.uint8)
    assert picture_distances(generated, own).whole.item() == pytest.approx(0.2)


def test_edges_are_those_of_torch_functions():
    ramp = torch.arange(8.0).expand(1, 3, 8, 8) / 8
    inner = edge_strength(ramp).view(8, 8)[1:-1, 1:-1]
    torch.testing.assert_close(inner, torch.full((6, 6), 8 / 8))
    assert picture_distances(torch.zeros(1, 1, 3, 8, 8).byte(), torch.zeros(1, 3, 8, 8).byte()).edges.item() == 1
