"""A part of very many training images in the place of all: what it holds, and what becomes of ratios and copies."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

from memtrain.evaluation.measures.replication import Replication, replication, reproduction_threshold
from memtrain.evaluation.measures.training_index import TrainingIndex
from memtrain.evaluation.stages import many_images
from memtrain.evaluation.stages.many_images import ComparedPart, compared_part, read_images

COUNT, PROMPTS, HELD, COPIED = 400, 12, 20, 5


class OneSample(NamedTuple):
    """What an index asks of a sample."""

    key: str
    caption: str = ""


class Held:
    """Pictures in memory, as a source."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.samples = images, [OneSample(f"k{row}") for row in range(len(images))]

    def load_image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index].permute(1, 2, 0).numpy())


def noise(count: int, *, seed: int) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear") * 255).to(torch.uint8)


class Case(NamedTuple):
    """Training pictures, prompts with two generations each, and the part that is compared."""

    training: Tensor
    own: Tensor
    generated: Tensor
    index: Tensor
    part: ComparedPart


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    training, held = noise(COUNT, seed=0), noise(HELD, seed=1)
    own, index = torch.cat([training[:PROMPTS], held]), torch.tensor([*range(PROMPTS), *[-1] * HELD])
    generated = noise(2 * len(own), seed=2).view(len(own), 2, 3, 16, 16)
    generated[:COPIED, 1] = (own[:COPIED].float() * 0.95).to(torch.uint8)
    generated[PROMPTS - 1, 0] = training[300]  # of another prompt than its own
    made = TrainingIndex(tmp_path_factory.mktemp("index"), Held(training), content="noise")
    made.build(progress=False)
    part = compared_part(
        [f"k{row}" for row in range(COUNT)],
        made,
        lambda row: training[row],
        own=[[row] for row in range(PROMPTS)] + [[]] * HELD,
        own_images=own,
        identity="noise",
        most=200,
        store=None,
    )
    return Case(training, own, generated, index, part.with_candidates(generated, None))


def compared(case: Case, rows: Tensor) -> Replication:
    place = torch.searchsorted(rows, case.index.clamp(min=0))
    own_index = torch.where(case.index < 0, -1, place)
    return replication(case.generated, case.own, training=case.training[rows], own_index=own_index)


def test_the_part_holds_what_is_asked_for(case: Case) -> None:
    part = case.part
    assert len(part.rows) <= 200 < len(part.keys)
    assert part.rows.tolist() == sorted(set(part.rows.tolist()))
    assert set(range(PROMPTS)) <= set(part.rows.tolist())
    assert torch.equal(part.images, case.training[part.rows])
    assert torch.equal(part.rows[part.random_places], part.random)
    assert set(part.looked_at.tolist()) <= set(part.random.tolist())
    assert part.part_keys == [f"k{row}" for row in part.rows.tolist()]
    said = part.said()
    assert (said["images"], said["compared"], said["random"]) == (COUNT, len(part.rows), 50)
    assert said["candidates"] >= 1 and f"{len(part.rows)}" in part.line()


def test_copies_are_found_as_among_all(case: Case) -> None:
    """Own distances and nearest pictures of copies are the same, ratios are lower, what is reproduced is the same."""
    whole, part = compared(case, torch.arange(COUNT)), compared(case, case.part.rows)
    assert torch.equal(whole.own_distance, part.own_distance)
    assert (part.ratio <= whole.ratio + 1e-6).all()
    nearest = case.part.rows[part.nearest]
    assert torch.equal(nearest[:COPIED, 1], whole.nearest[:COPIED, 1])
    assert nearest[PROMPTS - 1, 0] == 300
    reproduced = []
    for one in (whole, part):
        threshold = reproduction_threshold(one.best[PROMPTS:], 0.05)
        reproduced.append((one.best[:PROMPTS] < threshold).nonzero().squeeze(1).tolist())
    assert reproduced[0] == reproduced[1] == list(range(COPIED))


def test_images_that_are_too_many_for_memory_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(9, seed=3)
    expected = read_images(lambda row: images[row], [1, 4, 8], tmp_path, identity="a")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(many_images, "IN_MEMORY", 100)
    asked: list[int] = []

    def read(row: int) -> Tensor:
        asked.append(row)
        return images[row]

    for _ in range(2):
        assert torch.equal(read_images(read, [1, 4, 8], tmp_path, identity="a"), expected)
    assert sorted(asked) == [1, 1, 1, 4, 8], "the first is read for its size"
    assert torch.equal(expected, images[[1, 4, 8]])
