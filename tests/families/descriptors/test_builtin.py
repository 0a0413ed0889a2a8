"""The built-in descriptor: the same for mirror images, near for edits, unlike for others, fast."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import pytest
from PIL import Image

from memtrain.families.descriptors.builtin import BuiltIn
from memtrain.families.search import NEIGHBOURS
from tests.families.pictures import EDITS, clip_art, spread

CHOSEN = np.arange(0, 1200, 30)


@cache
def collection() -> np.ndarray:
    return BuiltIn().describe([image for image, _ in clip_art()])


def test_a_mirror_image_has_the_same_descriptor() -> None:
    images = spread(20)
    mirrored = BuiltIn().describe([EDITS["mirror"](image) for image in images])
    assert ((BuiltIn().describe(images) * mirrored).sum(axis=1) > 0.97).all()


@pytest.mark.parametrize("edit", EDITS)
def test_edits_have_their_picture_among_the_nearest(edit: str) -> None:
    similarity = BuiltIn().describe([EDITS[edit](clip_art()[number][0]) for number in CHOSEN]) @ collection().T
    own = similarity[np.arange(len(CHOSEN)), CHOSEN]
    assert ((similarity > own[:, None]).sum(axis=1) < NEIGHBOURS).mean() >= 0.9


def test_any_size_and_mode_and_batch_gives_vectors_of_unit_length() -> None:
    images = [Image.new("L", (3, 200), 7), Image.new("RGBA", (1, 1)), *spread(40)]
    found = BuiltIn().describe(images)
    assert found.shape == (42, 832)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(BuiltIn().describe(images[10:11]), found[10:11], atol=1e-5)
    assert BuiltIn().describe([]).shape[0] == 0


def test_it_takes_about_a_millisecond_an_image() -> None:
    images = [image for image, _ in clip_art()[:256]]
    began = time.process_time()
    BuiltIn().describe(images)
    assert (time.process_time() - began) / len(images) < 0.004
