"""Images of flagged samples of a stream are kept as they come again, and are data that an evaluation reads."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from memtrain.callbacks.kept_images import KeptImages
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.images import to_pixel_values
from memtrain.data.source import open_source
from memtrain.errors import ConfigurationError


class Watch(MemorizationMonitor):
    """Says who is flagged, and who is held out."""

    calibration: Any = SimpleNamespace(first_flagged={"a": 3, "../b": 5, "d": 1})
    engine: Any = SimpleNamespace(running=(None, SimpleNamespace(heldout_keys={"c", "d"})))

    def __init__(self) -> None:
        pass


def ready(folder: Path, **options: Any) -> KeptImages:
    made = KeptImages(**options)
    trainer: Any = SimpleNamespace(callbacks=[made, Watch()], default_root_dir=str(folder))
    made.setup(trainer, None, "fit")
    return made


def batch(*keys: str, draw: int = 0) -> dict[str, Any]:
    pixels = torch.rand(len(keys), 3, 16, 16, generator=torch.Generator().manual_seed(draw)) * 2 - 1
    return {"key": list(keys), "caption": [f"caption of {key}" for key in keys], "pixel_values": pixels}


def test_flagged_and_held_out_images_are_kept_once_with_their_captions(tmp_path: Path) -> None:
    first = batch("a", "../b", "c", "d", "e")
    for shown in (first, batch("a", "c", draw=1)):
        ready(tmp_path).on_train_batch_start(None, None, shown, 0)
    flagged = open_source(str(tmp_path / "kept_images" / "flagged"))
    heldout = open_source(str(tmp_path / "kept_images" / "heldout"))
    assert sorted(one.caption for one in flagged.samples) == ["caption of ../b", "caption of a"]
    assert sorted(one.caption for one in heldout.samples) == ["caption of c", "caption of d"]
    for index, sample in enumerate(flagged.samples):
        (row,) = (row for row, caption in enumerate(first["caption"]) if caption == sample.caption)
        kept = to_pixel_values(flagged.load_image(index), 16)
        torch.testing.assert_close(kept, first["pixel_values"][row], atol=1 / 255, rtol=0)
        with Image.open(tmp_path / "kept_images" / "flagged" / sample.key) as image:
            assert f"caption of {image.info['key']}" == sample.caption
    assert len(list(tmp_path.rglob("*"))) == 3 + 8, "nothing lies elsewhere"


def test_no_more_than_asked_for(tmp_path: Path) -> None:
    ready(tmp_path, most=1).on_train_batch_start(None, None, batch("a", "../b", "c", "d"), 0)
    assert len(list(tmp_path.rglob("*.png"))) == 2


def test_what_it_cannot_work_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="most=0"):
        KeptImages(0)
    alone: Any = SimpleNamespace(callbacks=[], default_root_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match="MemorizationMonitor"):
        KeptImages().setup(alone, None, "fit")
    latents = {**batch("a"), "pixel_values": None}
    with pytest.raises(ConfigurationError, match="no pixel_values"):
        ready(tmp_path).on_train_batch_start(None, None, latents, 0)
