"""The index of training images: parts, gone on with, shared, taken over from a scan; its searches; copies found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from memtrain.errors import ConfigurationError, RecordError
from memtrain.evaluation.measures import training_index
from memtrain.evaluation.measures.edits import LIGHT
from memtrain.evaluation.measures.known_looks import known_looks
from memtrain.evaluation.measures.training_index import TrainingIndex
from memtrain.families.descriptors.builtin import BuiltIn
from memtrain.families.look_parts import GROUP, LookParts, Looks

NUMBER = 70
"""Of pictures: three parts."""


@dataclass(frozen=True)
class OneSample:
    """What an index asks of a sample."""

    key: str
    caption: str = ""


class Drawn:
    """Pictures of coarse noise, drawn when they are asked for."""

    def __init__(self, count: int, *, fails_at: int | None = None) -> None:
        self.samples = [OneSample(f"picture {number}") for number in range(count)]
        self.asked: list[int] = []
        self.fails_at = fails_at

    def load_image(self, index: int) -> Image.Image:
        if self.fails_at is not None and index >= self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(index)
        return picture(index)


def picture(number: int) -> Image.Image:
    """A picture of its own for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC)


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def made(folder: Path, source: Drawn, part: tuple[int, int] = (0, 1)) -> TrainingIndex:
    index = TrainingIndex(folder, source, content="drawn")
    index.build(part, workers=1, progress=False)
    return index


def test_a_picture_and_its_edits_are_nearest_to_itself(tmp_path: Path) -> None:
    """Recall of the search: every light edit of each of five pictures has it among its nearest."""
    index = made(tmp_path, Drawn(NUMBER))
    for name, edit in LIGHT.items():
        edited = torch.stack([tensor(edit(picture(one), np.random.default_rng(0))) for one in range(5)])
        nearest = index.nearest(edited, 8)
        assert nearest.shape == (5, 8)
        assert all(one in nearest[one].tolist() for one in range(5)), name
        assert all(len(set(row)) == 8 for row in nearest.tolist())
    assert index.nearest(torch.stack([tensor(picture(3))]), 500).shape == (1, NUMBER)


def test_an_index_goes_on_where_it_was_killed_and_is_made_once(tmp_path: Path) -> None:
    """What is described is not described again, and the file is that of one process at a stretch."""
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "killed", Drawn(NUMBER, fails_at=GROUP))
    rest = Drawn(NUMBER)
    killed = made(tmp_path / "killed", rest)
    assert min(rest.asked) == GROUP
    whole = made(tmp_path / "whole", Drawn(NUMBER))
    images = torch.stack([tensor(picture(2))])
    assert torch.equal(killed.nearest(images, 5), whole.nearest(images, 5))
    one, other = (index.folder / "looks.safetensors" for index in (killed, whole))
    assert one.read_bytes() == other.read_bytes()
    again = Drawn(NUMBER)
    made(tmp_path / "whole", again)
    assert not again.asked


def test_processes_share_the_parts(tmp_path: Path) -> None:
    """A process begins with its own part, and leaves what another one has done."""
    first = Drawn(NUMBER, fails_at=2 * GROUP)
    with pytest.raises(KeyboardInterrupt):  # its own parts are the first and the third
        made(tmp_path, first, (0, 2))
    second = Drawn(NUMBER)
    made(tmp_path, second, (1, 2))
    assert second.asked == list(range(GROUP, NUMBER))
    assert set(first.asked) == set(range(GROUP))


def test_an_incomplete_index_is_not_searched(tmp_path: Path) -> None:
    index = TrainingIndex(tmp_path, Drawn(NUMBER), content="drawn")
    with pytest.raises(RecordError, match="parts are missing"):
        index.nearest(torch.stack([tensor(picture(0))]), 1)


def test_what_a_scan_knows_is_not_computed_again(tmp_path: Path) -> None:
    """Descriptors of square pictures are taken over, those of pictures that training cuts are not."""
    descriptors = BuiltIn().describe([picture(one) for one in range(NUMBER)])
    scan = LookParts(
        tmp_path / "looks", {"content": "files", "descriptor": f"{BuiltIn.name} {BuiltIn.version}"}, samples=70
    )
    sizes = np.full((NUMBER, 2), 32, np.int32)
    sizes[7] = 32, 48
    for first, last in scan.ranges:
        rows = np.arange(first, last + 1)
        hashes, thumbnails = np.zeros((len(rows), 32), np.uint8), np.zeros((len(rows), 32, 32, 3), np.uint8)
        scan.append((first, last), Looks(rows, hashes, descriptors[rows], thumbnails, sizes[rows], {}))
    scan.merged()
    source = Drawn(NUMBER)
    known = known_looks(tmp_path, "files", [*range(NUMBER - 1), -1], descriptor=BuiltIn())
    assert known is not None
    index = TrainingIndex(tmp_path / "index", source, content="drawn", known=known)
    index.build(progress=False)
    assert source.asked == [7, NUMBER - 1]
    images = torch.stack([tensor(picture(one)) for one in (6, 7, 69)])
    assert torch.equal(index.nearest(images, 5), made(tmp_path / "other", Drawn(NUMBER)).nearest(images, 5))
    assert known_looks(tmp_path, "other files", [0], descriptor=BuiltIn()) is None


def test_many_images_are_searched_by_faiss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit shortened descriptors are compared; the nearest stay the nearest by all numbers."""
    exact = made(tmp_path, Drawn(NUMBER))
    images = torch.stack([tensor(picture(one)) for one in range(6)])
    wanted = exact.nearest(images, 4)
    monkeypatch.setattr(training_index, "EXACT_UP_TO", NUMBER - 1)
    many = made(tmp_path, Drawn(NUMBER))
    assert many.search == "faiss"
    assert (many.nearest(images, 4)[:, 0] == wanted[:, 0]).all()


def test_without_faiss_many_images_are_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_index, "EXACT_UP_TO", NUMBER - 1)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    source = Drawn(NUMBER)
    with pytest.raises(ConfigurationError, match=r"pip install 'memtrain\[scan\]'"):
        made(tmp_path, source)
    assert not source.asked
