"""Streams of Hugging Face's `datasets`: every row once an epoch, in an order of its own, watched without a profile."""

import pytest
from PIL import Image

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.streamed import StreamedImages
from memtrain.errors import ConfigurationError, DataError
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from memtrain.training.text_to_image import TextToImageModule

from ..conftest import train

OPTIONS = "image=picture&caption=words&key=name"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("stream")
    columns = {
        "picture": [Image.effect_noise((16 + number, 20), 50).convert("RGB") for number in range(24)],
        "words": ["abc" + "defghijklmnopqrstuvwxyz_"[number] for number in range(24)],
        "name": [1000 + number for number in range(24)],
    }
    data = datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())
    data.to_parquet(folder / "train.parquet")
    return folder


def keys(data, epoch=0):
    loader = data.train_dataloader()
    loader.epoch = lambda: epoch
    return [key for batch in loader for key in batch["key"]]


@pytest.mark.slow
def test_every_row_comes_once_an_epoch_in_an_order_that_depends_on_seed_and_epoch(folder):
    data = StreamedImages(f"datasets:{folder}?{OPTIONS}", resolution=16, batch_size=4, seed=3)
    first = keys(data)
    assert sorted(first) == [f"{1000 + number}" for number in range(24)]
    assert keys(data) == first != keys(data, 1)
    batch = next(iter(data.train_dataloader()))
    assert batch["pixel_values"].shape == (4, 3, 16, 16)
    assert all(caption.startswith("abc") for caption in batch["caption"])
    ordered = StreamedImages(f"datasets:{folder}?{OPTIONS}", resolution=16, batch_size=4, shuffle_buffer=0)
    assert keys(ordered) == sorted(first)


@pytest.mark.slow
def test_a_stream_is_watched_against_the_base_model_on_the_same_noise(folder, pipeline_folder, tmp_path):
    module = TextToImageModule(str(pipeline_folder), learning_rate=1e-4, ema_decay=None, seed=0)
    data = StreamedImages(f"datasets:{folder}?{OPTIONS}", resolution=16, batch_size=4, seed=3)
    watch = MemorizationMonitor(reference="paired", settings=WatchSettings(heldout_share=0.2))
    train(tmp_path, module, data, callbacks=[watch], stop=7)
    steps = read_steps(tmp_path / "records")
    assert len(steps) == 28
    assert len(set(steps["key"].to_pylist())) == 24


@pytest.mark.parametrize("options", ["image=picture&caption=words", "image=picture&caption=words&id=name"])
def test_a_stream_without_names_is_refused(options):
    with pytest.raises(ConfigurationError, match=r"Remedy"):
        StreamedImages(f"datasets:somewhere?{options}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "found"),
    [("image=picture&caption=no&key=name", r"no \['no'\]"), ("image=no&caption=words&key=name", "cannot be opened|no")],
)
def test_columns_that_are_not_there(folder, options, found):
    with pytest.raises((DataError, KeyError), match=found):
        keys(StreamedImages(f"datasets:{folder}?{options}", resolution=16, batch_size=4))
