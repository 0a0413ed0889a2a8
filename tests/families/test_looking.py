"""Looking at images: every one once, in fixed groups, whatever decodes them; what cannot be read is said."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from memtrain.errors import DataError
from memtrain.families import looking
from memtrain.families.look_parts import COLUMNS, GROUP, Looks
from memtrain.families.looking import groups_of, look_at


class Mean:
    """Describes an image by its mean colour, and notes the groups it was given."""

    def __init__(self) -> None:
        self.groups: list[list[tuple[int, int]]] = []

    def describe(self, images) -> np.ndarray:
        self.groups.append([image.size for image in images])
        return np.stack([np.asarray(image, np.float32).mean(axis=(0, 1)) for image in images])


@dataclass
class Images:
    """Images of one colour each; some are broken. Notes how many were open at the same time."""

    count: int
    broken: tuple[int, ...] = ()
    size: tuple[int, int] = (5, 3)

    def __post_init__(self) -> None:
        self.samples = [SimpleNamespace(key=f"k{row}", caption="x") for row in range(self.count)]
        self.opened: list[int] = []
        self.lock = Lock()

    def load_image(self, index: int) -> Image.Image:
        with self.lock:
            self.opened.append(index)
        if index in self.broken:
            raise DataError(f"image {index} is broken", expected="one that is not", remedy="mend it")
        return Image.new("RGB", self.size, (index % 256, 7, 9))


def looked_at(source: Images, rows: range, *, workers: int = 1, descriptor: Mean | None = None) -> Looks:
    with ThreadPoolExecutor(workers) as pool:
        return Looks.joined(list(look_at(source, descriptor or Mean(), groups_of(rows[0], rows[-1]), pool=pool)))


def test_every_image_is_looked_at_once_and_in_order() -> None:
    source, descriptor = Images(100), Mean()
    found = looked_at(source, range(10, 90), workers=3, descriptor=descriptor)
    assert sorted(source.opened) == list(range(10, 90))
    assert found.rows.tolist() == list(range(10, 90))
    assert found.descriptors[:, 0].tolist() == list(range(10, 90))
    assert (found.thumbnails == np.asarray(found.descriptors, np.uint8)[:, None, None, :]).all()
    assert found.sizes.tolist() == [[5, 3]] * 80
    assert len({bytes(digest) for digest in found.hashes}) == 80
    assert [len(group) for group in descriptor.groups] == [GROUP, GROUP, 80 - 2 * GROUP]


def test_the_number_of_threads_changes_nothing() -> None:
    one, three = (looked_at(Images(70, broken=(3, 40)), range(70), workers=workers) for workers in (1, 3))
    assert one.broken == three.broken == {3: "image 3 is broken", 40: "image 40 is broken"}
    for name in COLUMNS:
        assert (getattr(one, name) == getattr(three, name)).all()


def test_only_some_groups_wait_to_be_described() -> None:
    source = Images(20 * GROUP)
    with ThreadPoolExecutor(2) as pool:
        for number, _ in enumerate(look_at(source, Mean(), groups_of(0, 20 * GROUP - 1), pool=pool), 1):
            assert len(source.opened) <= (number + looking.AHEAD) * GROUP


def test_a_whole_group_may_be_broken() -> None:
    found = looked_at(Images(GROUP + 2, broken=tuple(range(GROUP))), range(GROUP + 2))
    assert found.rows.tolist() == [GROUP, GROUP + 1]
    assert len(found.broken) == GROUP
    nothing = looked_at(Images(2, broken=(0, 1)), range(2))
    assert len(nothing) == 0


@pytest.mark.parametrize(
    ("size", "described"),
    [
        ((1023, 1023), (1023, 1023)),
        ((2048, 1024), (1024, 512)),
        ((9000, 30), (9000, 30)),
        ((3, 4_000_000), (1, 1_333_334)),
    ],
)
def test_large_images_are_made_smaller_before_they_are_described(size, described) -> None:
    descriptor = Mean()
    found = looked_at(Images(1, size=size), range(1), descriptor=descriptor)
    assert descriptor.groups == [[described]]
    assert found.sizes.tolist() == [list(size)]
