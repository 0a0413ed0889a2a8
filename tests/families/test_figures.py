"""A picture is known again by its values, in a mirror, and after small changes; another one is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from memtrain.families.figures import (
    caption_name,
    embedding_hashes,
    even_frequencies,
    figures,
    fingerprints,
    looks,
    row_hashes,
    similarity,
)


def pictures(count: int, *shape: int) -> Tensor:
    """Smooth pictures `(count, *shape)`, as photographs are: noise at few places, spread."""
    coarse = torch.randn(count, shape[0], 6, 6, generator=torch.Generator().manual_seed(count))
    return torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic")


def packed(values: Tensor) -> Tensor:
    found = looks(values)
    assert found is not None
    return found


def alike(first: Tensor, second: Tensor) -> Tensor:
    one, two = figures(packed(first)), figures(packed(second))
    return similarity(one, two)


@pytest.mark.parametrize("shape", [(3, 64, 64), (4, 32, 32), (16, 16, 24), (1, 40, 40), (8, 8, 8)])
def test_a_picture_is_like_itself_its_mirror_image_and_its_brighter_copy_and_like_no_other(
    shape: tuple[int, ...],
) -> None:
    one = pictures(5, *shape)
    for other in (one, one.flip(-1), 0.7 * one + 0.1, one + 0.01 * torch.randn(one.shape)):
        found = alike(one, other)
        assert (found.diagonal() > 0.99).all()
        assert (found - torch.eye(5)).max() < 0.9


def test_fingerprints_are_those_of_the_values() -> None:
    one = pictures(4, 3, 64, 64)
    assert fingerprints(packed(one)) == fingerprints(packed(one.clone()))
    assert len({*fingerprints(packed(one)), *fingerprints(packed(one.flip(-1)))}) == 8
    small = pictures(1, 3, 16, 16)
    changed = small.clone()
    changed[0, 2, 15, 15] += 1e-3
    assert row_hashes(small).tolist() != row_hashes(changed).tolist(), "of a small picture every value counts"


def test_one_row_and_many_give_the_same_looks() -> None:
    one = pictures(3, 3, 32, 32)
    assert torch.equal(packed(one)[1:2], packed(one[1:2]))
    assert fingerprints(packed(one))[1:2] == fingerprints(packed(one[1:2]))


def test_a_cosine_has_one_frequency() -> None:
    """The closed form: a picture that is one cosine across has one number in its figure, an odd one changes sign."""
    places = (torch.arange(16) + 0.5) / 16
    wave = torch.cos(math.pi * 3 * places).expand(1, 1, 16, 16)
    (figure,), (turned,) = figures(packed(wave)), figures(packed(wave.flip(-1)))
    (place,) = figure.nonzero().flatten().tolist()
    assert figure[place] == 127
    assert turned[place] == -127
    assert place >= even_frequencies(len(figure))


def test_what_is_plain_has_no_figure_and_what_is_no_picture_no_look() -> None:
    assert not figures(packed(torch.full((2, 3, 32, 32), 0.3))).any()
    assert looks(torch.zeros(2, 10)) is None
    assert looks(torch.zeros(2, 15, 8)) is None, "15 tokens are no square"
    assert looks(torch.zeros(0, 3, 8, 8)) is None


def test_rows_of_patches_and_videos_are_read_as_pictures() -> None:
    one = pictures(3, 16, 8, 8)
    tokens = one.flatten(2).transpose(1, 2)
    assert torch.equal(figures(packed(tokens)), figures(packed(one)))
    assert torch.equal(figures(packed(one[:, :, None].expand(-1, -1, 5, -1, -1))), figures(packed(one)))


def test_similarities_do_not_depend_on_the_order_of_summation() -> None:
    one = figures(packed(pictures(64, 4, 32, 32)))
    even = even_frequencies(one.shape[1])
    order = torch.cat([torch.randperm(even), even + torch.randperm(one.shape[1] - even)])
    assert torch.equal(similarity(one, one), similarity(one[:, order], one[:, order]))


def test_captions_are_known_without_case_and_space() -> None:
    assert caption_name("A  Red\nfox ") == caption_name("a red fox")
    assert caption_name("a red fox") != caption_name("a red ox")
    assert caption_name(" \n") is None


def test_embeddings_are_known_but_for_rounding() -> None:
    text = torch.randn(6, 7, 16)
    found = embedding_hashes(text).tolist()
    assert len(set(found)) == 6
    assert embedding_hashes(text * (1 + 1e-7)).tolist() == found
    changed = text.clone()
    changed[:, 3] = torch.randn(6, 16)
    assert not set(embedding_hashes(changed).tolist()) & set(found)
