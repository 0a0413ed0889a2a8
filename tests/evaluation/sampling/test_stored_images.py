"""Images in a file: what is read again, what a kill leaves, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError, RecordError
from memtrain.evaluation.sampling import stored_images as module
from memtrain.evaluation.sampling.stored_images import stored_images


def picture(row: int) -> Tensor:
    return torch.randint(0, 256, (3, 4, 6), generator=torch.Generator().manual_seed(row)).to(torch.uint8)


def stored(folder: Path, read: object = picture, **identity: object) -> Tensor:
    return stored_images(folder, 7, (4, 6), read, identity, progress=False)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 2 * 3 * 4 * 6)


def test_images_are_read_once_and_come_back_from_the_file(tmp_path: Path) -> None:
    expected = torch.stack([picture(row) for row in range(7)])
    assert torch.equal(stored(tmp_path / "a"), expected)

    def never(row: int) -> Tensor:
        raise AssertionError(row)

    assert torch.equal(stored(tmp_path / "a", never), expected)


def test_what_was_killed_goes_on_with_the_first_block_that_is_not_complete(tmp_path: Path) -> None:
    read: list[int] = []

    def killed(row: int) -> Tensor:
        if row == 5:
            raise KeyboardInterrupt
        return picture(row)

    def counting(row: int) -> Tensor:
        read.append(row)
        return picture(row)

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "a", killed)
    images = stored(tmp_path / "a", counting)
    assert read == [4, 5, 6]  # blocks of two: row 4 was read, and its block was not complete
    assert torch.equal(images, torch.stack([picture(row) for row in range(7)]))
    stored(tmp_path / "whole")
    files = ("images.safetensors", "identity.json", "blocks.json")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in files)


def test_changes_stay_in_memory(tmp_path: Path) -> None:
    stored(tmp_path)[0] = 0
    assert torch.equal(stored(tmp_path)[0], picture(0))


def test_a_folder_of_other_images_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    stored(tmp_path, crop={"side": 4})
    before = (tmp_path / "images.safetensors").read_bytes()
    with pytest.raises(ConfigurationError, match=r"crop\.side was 4 and is 5"):
        stored(tmp_path, crop={"side": 5})
    assert (tmp_path / "images.safetensors").read_bytes() == before


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Image 0 has shape \(3, 2, 2\)"):
        stored(tmp_path, lambda row: torch.zeros(3, 2, 2, dtype=torch.uint8))


def test_a_folder_without_its_file_is_refused(tmp_path: Path) -> None:
    stored(tmp_path)
    (tmp_path / "images.safetensors").unlink()
    with pytest.raises(RecordError, match="is missing"):
        stored(tmp_path)


def test_a_disk_without_room_is_refused_before_an_image_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"needs .* GB on a disk with"):
        stored_images(tmp_path / "a", 10**9, (512, 512), picture, {}, progress=False)
    assert not (tmp_path / "a").exists()


def test_what_is_complete_is_said_in_json(tmp_path: Path) -> None:
    stored(tmp_path)
    assert json.loads((tmp_path / "blocks.json").read_text()) == {"complete": [0, 1, 2, 3]}
