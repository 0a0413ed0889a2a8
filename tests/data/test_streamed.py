"""Streams of Hugging Face's `datasets`: every row once an epoch, in an order of its own, watched without a profile."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data import shard_reading
from memtrain.data.stream_loader import Begin, Stream, StreamLoader
from memtrain.data.stream_place import Place
from memtrain.data.streamed import StreamedImages
from memtrain.data.streamed_rows import RowFeed
from memtrain.errors import ConfigurationError, DataError
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from memtrain.training.text_to_image import TextToImageModule

from ..conftest import encoded_image, train

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


class Counting(LightningModule):
    """Writes down what it trains on."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.ones(1)), []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["key"])
        return self.weight.sum() * 0.0

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, folder, *, epochs=2, resume=None, path=None, **options):
    given = {"resolution": 16, "batch_size": 4, "seed": 3, **options}
    data = StreamedImages(path or f"datasets:{folder}?{OPTIONS}", **given)
    keep = ModelCheckpoint(tmp_path / "kept", filename="{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        max_epochs=epochs,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=resume is None,
        callbacks=[keep] if resume is None else [],
    )
    module = Counting()
    trainer.fit(module, data, ckpt_path=resume)
    return module.seen


class Rows(list):
    """Rows of a stream that is not shuffled."""

    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_done_of_a_stream_is_left_out_once(workers):
    rows = Rows({"image": {"bytes": encoded_image(n)}, "text": f"picture {n}", "key": n} for n in range(12))
    feed = RowFeed(rows, ("image", "text", "key"), path="rows")
    loader = StreamLoader(Stream(feed, batch_size=2, resolution=8, tokens=None), num_workers=workers)
    starts = iter([Begin(3, (Place(6),), 0, 3), Begin(4)])
    loader.begin = lambda epoch: next(starts)
    assert [key for batch in loader for key in batch["key"]] == [str(n) for n in range(6, 12)]
    assert len(list(loader)) == 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__`")
def test_a_stream_goes_on_where_a_checkpoint_stopped(tmp_path, folder):
    """In the middle, at the end of an epoch, and in the next; in other batches, as far as these do not matter."""
    whole = fit(tmp_path, folder)
    assert len(whole) == 12
    for done in (2, 6):
        assert fit(tmp_path, folder, resume=tmp_path / "kept" / f"step={done}.ckpt") == whole[done:], done
    first = [key for batch in whole for key in batch]
    smaller = fit(tmp_path, folder, resume=tmp_path / "kept" / "step=4.ckpt", batch_size=2)
    assert [key for batch in smaller for key in batch] == first[16:]
    for options in ({"shuffle_buffer": 5}, {"num_workers": 1}):
        with pytest.raises(ConfigurationError, match="stream_order: the checkpoint was trained with"):
            fit(tmp_path, folder, resume=tmp_path / "kept" / "step=2.ckpt", **options)


@pytest.fixture
def shards(write_shard):
    """Three of eight samples."""
    for number in range(3):
        files = {}
        for name in (f"{number}{index}" for index in range(8)):
            files |= {f"{name}.png": encoded_image(int(name) % 25), f"{name}.txt": b"a picture"}
        path = write_shard(files, name=f"shards/{number}.tar")
    return path.parent


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_streamed_shards_go_on_where_a_checkpoint_stopped(tmp_path, shards):
    options = {"path": str(shards), "shuffle_buffer": 6}
    whole = fit(tmp_path, None, **options)
    assert len(whole) == 12 and len({key for batch in whole[:6] for key in batch}) == 24
    for done in (2, 5, 6, 9):
        assert fit(tmp_path, None, resume=tmp_path / "kept" / f"step={done}.ckpt", **options) == whole[done:], done
    moved = shards.rename(shards.parent / "moved")
    again = tmp_path / "kept" / "step=2.ckpt"
    assert fit(tmp_path, None, resume=again, **{**options, "path": str(moved)}) == whole[2:], "wherever they lie"
    (moved / "2.tar").unlink()
    with pytest.raises(ConfigurationError, match="stream_order"):
        fit(tmp_path, None, resume=again, **{**options, "path": str(moved)})


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_broken_shard_and_sample_stop_the_run_or_are_left_out_and_listed(tmp_path, shards, monkeypatch):
    monkeypatch.setattr(shard_reading, "WAIT", 0.0)
    first = shards / "0.tar"
    first.write_bytes(first.read_bytes()[:5000])
    options = {"path": str(shards / "{0..3}.tar"), "epochs": 1}
    with pytest.raises(DataError, match="1 of 4 shards do not exist"):
        fit(tmp_path, None, **options)
    with pytest.raises(DataError, match=r"0.tar cannot be read beyond its first \d samples"):
        fit(tmp_path, None, **{**options, "path": str(shards)})
    seen = fit(tmp_path, None, broken="skip", **options)
    assert 4 <= len(seen) <= 5
    listed = (tmp_path / "broken.csv").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 3 and {line.split(",")[0] for line in listed} == {"key", ""}
    with pytest.raises(DataError, match="broken_share"):
        fit(tmp_path / "strict", None, broken="skip", broken_share=0.0, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_place_of_an_earlier_version_is_that_of_workers_who_took_turns(workers):
    data = StreamedImages("datasets:somewhere?key=name", resolution=16, batch_size=4, num_workers=workers, seed=0)
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), world_size=1, global_rank=0)
    data.load_state_dict({"settings": data._settings(), "epoch": 3, "samples": 20})
    places = (Place(20),) if not workers else (Place(12), Place(8))
    assert data._begin(7) == Begin(3, places, 5 % max(1, workers), 5)
    assert data._begin(4) == Begin(4), "the next epoch begins at its beginning"
    data.load_state_dict({"settings": data._settings(), "epoch": 3, "samples": 0})
    assert data._begin(7) == Begin(3)
