"""Secrets of a run found again: keys, visits, siblings with the border of their canary."""

import pytest
import torch

from memtrain.cli.planted_secrets import border_secrets, canary_secrets
from memtrain.data.border_keys import BorderKeys
from memtrain.data.canaries import Canaries, canary_caption, draw_canary
from memtrain.data.images import to_pixel_values
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import Duplicates
from memtrain.functional.border import read_border
from memtrain.functional.pixels import to_uint8


@pytest.fixture
def build(write_folder):
    def made(**options):
        settings = {"heldout_fraction": 0.2, "families": "off", "heldout": "split", **options}
        data = TextImageDataModule(str(write_folder(24)), resolution=32, **settings)
        data.build()
        return data

    return made


def test_planted_canaries_stand_among_siblings_that_were_not(build):
    secrets = canary_secrets(build(canaries=Canaries(count=2, repeats=(4, 9))), siblings=5, controls=3)
    assert secrets.keys == [f"canary#{number}" for number in range(7)]
    assert secrets.repetitions == [4, 4, 9, 9, 0, 0, 0]
    assert secrets.captions == [canary_caption(0, number) for number in range(7)]
    first, control = secrets.candidates(1), secrets.candidates(5)
    assert first.shape == (6, 3, 32, 32)
    assert torch.equal(first[0], to_uint8(to_pixel_values(draw_canary(0, 1), 32)))
    assert torch.equal(first[1:], control[1:]), "siblings are neither planted nor controls"
    assert not any(torch.equal(control[0], sibling) for sibling in first[1:])


def test_siblings_have_the_border_of_their_canary(build):
    data = build(canaries=Canaries(count=2, repeats=4), border_keys=BorderKeys(thickness=4))
    secrets = canary_secrets(data, siblings=3, controls=0)
    for row, key in enumerate(secrets.keys):
        expected = torch.full((4,), BorderKeys().level(key))
        torch.testing.assert_close(read_border(secrets.candidates(row), 4), expected, atol=1 / 255, rtol=0)
    train = data.train_dataset
    place = [sample.key for sample in train.samples].index("canary#1")
    assert torch.equal(secrets.candidates(1)[0], to_uint8(train.pixel_values(place)))


def test_excluded_canaries_are_not_asked_for(build):
    secrets = canary_secrets(build(canaries=Canaries(count=2, repeats=4), exclude=["canary#0"]), controls=1)
    assert (secrets.keys, secrets.repetitions) == (["canary#1", "canary#2"], [4, 0])


def test_borders_of_repeated_unique_and_held_out_samples(build):
    data = build(duplicates=Duplicates(count=3, repeats=6), border_keys=BorderKeys(thickness=4))
    secrets = border_secrets(data, repeated=2, unique=5, heldout=4)
    assert list(secrets.repetitions) == [6] * 2 + [1] * 5 + [0] * 4
    torch.testing.assert_close(read_border(secrets.images, 4).double(), secrets.levels, atol=1 / 255, rtol=0)
    held = {sample.key for sample in data.heldout_dataset.samples}
    assert {key for key, count in zip(secrets.keys, secrets.repetitions, strict=True) if count == 0} <= held


def test_a_run_without_secrets(build):
    data = build()
    assert canary_secrets(data) is None
    assert border_secrets(data) is None
