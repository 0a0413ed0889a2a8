"""A cache that training fills: the same weights as one that was filled before, nothing made twice, mixed batches."""

from collections import Counter

import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from memtrain.data.collating import LATENTS, TEXT, collated
from memtrain.data.dataset import Visit
from memtrain.data.disk_cache import Cache, Processes, cache_latents, cache_text
from memtrain.data.filling import Entries, Filling
from memtrain.data.framing import Augment
from memtrain.data.module import TextImageDataModule
from memtrain.data.one_shape import loader
from memtrain.data.tensor_shards import TensorShards
from memtrain.errors import ConfigurationError
from memtrain.training.text_to_image import TextToImageModule

from ..conftest import train
from .test_caching import photos  # noqa: F401
from .test_disk_cache import Encoder, dataset, folder_of, tokens


def filling_of(cache, encoder, datasets):
    """What keeps in the folders that `cached` of test_disk_cache has."""
    latents = Entries(
        cache / "latents",
        lambda fields: {"latents": encoder.encode_images(fields["pixel_values"]).float()},
        processes=Processes(),
    )
    filling = Filling(latents, Entries(cache / "text", encoder.encode_text, processes=Processes()))
    filling.serve(datasets)
    return filling


def completed(filling, items):
    """A batch as a data module hands it over, without any placeholders of embeddings."""
    batch = collated(items)
    if TEXT in batch:
        part = batch[TEXT]
        count = len(part["names"])
        batch |= {"text_embeddings": torch.zeros(count, 2, 4), "pooled_embeddings": torch.zeros(count, 1)}
        known = [row for row, name in enumerate(part["names"]) if not name]
        for name, values in part["known"].items():
            batch[name][known] = values
    return filling.complete(batch, ["input_ids"])


def expected(data, items, visits):
    plain = default_collate([data[visit] for visit in visits])
    encoder = Encoder()
    plain["latents"] = encoder.encode_images(plain.pop("pixel_values")).float()
    return plain | encoder.encode_text(plain)


def equal(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]) if isinstance(values, torch.Tensor) else values == other[name], name


def test_a_batch_of_mixed_state_is_right_item_by_item(tmp_path):
    folder, encoder, plain = folder_of(tmp_path), Encoder(), dataset(folder_of(tmp_path), shapes=((8, 8),))
    data = dataset(folder, shapes=((8, 8),))
    filling = filling_of(tmp_path / "cache", encoder, [data])
    for rows in ([0, 1], [2, 0, 3, 1], [3, 3, 4, 4], [0, 1, 2, 3], [5, 5]):
        items = [data[row] for row in rows]
        assert [bool(item[LATENTS]) for item in items] == ["pixel_values" in item for item in items]
        equal(completed(filling, items), expected(plain, items, rows))
        if rows == [2, 0, 3, 1]:
            assert encoder.images == 4
            filling.flush()
    assert (encoder.images, encoder.captions) == (6, 6), "each once, also what is in a batch twice"
    filling.flush()
    assert all(not data[row][LATENTS] and not data[row][TEXT] for row in range(6))
    other = dataset(folder, shapes=((8, 8),))
    cache_latents([other], tmp_path / "cache" / "latents", encoder.encode_images)
    cache_text([other], tmp_path / "cache" / "text", encoder.encode_text, empty=tokens([""]))
    assert (encoder.images, encoder.captions) == (6, 7), "a cache that is filled before finds what training made"


def test_variants_have_entries_of_their_own(tmp_path):
    augment = Augment(random_flip=True, random_crop=True, variants=3)
    folder, encoder = folder_of(tmp_path, 2), Encoder()
    data = dataset(folder, shapes=((8, 8),), augment=augment)
    filling = filling_of(tmp_path / "cache", encoder, [data])
    for epoch in range(20):
        items = [data[Visit(row, epoch)] for row in range(2)]
        batch = completed(filling, items)
        for row in range(2):
            frame = data.view(row, data.framing.variant_of(batch["key"][row], (epoch, 0)))
            own = Encoder().encode_images(data.pixel_values(row, frame)[None])[0].float()
            assert torch.equal(batch["latents"][row], own)
    assert encoder.images == 6


def test_an_image_is_decoded_once_a_visit_and_what_is_seen_of_it_is_remembered(tmp_path, monkeypatch):
    data, encoder, decoded = dataset(folder_of(tmp_path), shapes=((8, 8),)), Encoder(), Counter()
    filling = filling_of(tmp_path / "cache", encoder, [data])
    load = data.source.load_image
    monkeypatch.setattr(data.source, "load_image", lambda index: decoded.update([index]) or load(index))
    data.source._looks.clear()
    completed(filling, [data[row] for row in range(6)])
    filling.flush()
    assert set(decoded.values()) == {1}
    completed(filling, [data[row] for row in range(6)])
    assert set(decoded.values()) == {1}, "an image that is known is not even opened"


def test_what_was_made_in_validation_serves_training(tmp_path):
    data, encoder = dataset(folder_of(tmp_path), shapes=((8, 8),)), Encoder()
    filling = filling_of(tmp_path / "cache", encoder, [data])
    with torch.inference_mode():
        first = completed(filling, [data[0], data[1]])["latents"]
    again = completed(filling, [data[0], data[2]])
    assert encoder.images == 3
    assert torch.equal(again["latents"][0], first[0])
    weight = torch.ones(1, requires_grad=True)
    (weight * again["latents"]).square().mean().backward()
    assert weight.grad is not None


def test_loader_processes_find_what_was_written_since_they_began(tmp_path):
    data, encoder = dataset(folder_of(tmp_path), shapes=((8, 8),)), Encoder()
    filling = filling_of(tmp_path / "cache", encoder, [data])
    batches = loader(data.unique(), batch_size=3, num_workers=1, persistent_workers=True)
    for batch in batches:
        assert LATENTS in batch
        filling.complete(
            batch | dict.fromkeys(("text_embeddings",), torch.zeros(3, 2, 4)) | {TEXT: None}, ["input_ids"]
        )
    filling.flush()
    assert all("latents" in batch and LATENTS not in batch for batch in batches)


def test_a_damaged_shard_is_made_again_while_training_goes_on(tmp_path):
    data, encoder = dataset(folder_of(tmp_path), shapes=((8, 8),)), Encoder()
    filling = filling_of(tmp_path / "cache", encoder, [data])
    completed(filling, [data[row] for row in range(6)])
    filling.flush()
    (shard,) = (tmp_path / "cache" / "latents").glob("*.safetensors")
    kept = bytearray(shard.read_bytes())
    kept[-1] ^= 1
    shard.write_bytes(kept)
    data = dataset(tmp_path / "images", shapes=((8, 8),))
    filling = filling_of(tmp_path / "cache", encoder, [data])
    latents = torch.stack([completed(filling, [data[row]])["latents"][0] for row in range(6)])
    assert torch.equal(
        latents, Encoder().encode_images(torch.stack([data.pixel_values(row) for row in range(6)])).float()
    )
    assert 6 < encoder.images <= 12


def test_what_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    data, encoder = dataset(folder_of(tmp_path), shapes=((8, 8),)), Encoder()
    (tmp_path / "cache").mkdir()
    filling = filling_of(tmp_path / "cache", encoder, [data])
    completed(filling, [data[row] for row in range(6)])
    (tmp_path / "cache" / "latents").write_text("a file in the place of the folder")
    filling.flush()
    assert "cannot be kept" in caplog.text
    assert completed(filling, [data[0]])["latents"].shape == (1, 1, 4, 4)


def test_an_unknown_time_of_filling_is_refused():
    with pytest.raises(ConfigurationError, match=r"fill='later'[\s\S]*before, or training"):
        Cache("cache", fill="later")


def trained(pipeline_folder, folder, images, *, stop=6, callbacks=(), resume=False, **options):
    """A module after some steps, its data, and what it encoded."""
    torch.manual_seed(0)
    module = TextToImageModule(str(pipeline_folder), learning_rate=1e-3, ema_decay=None, seed=1)
    made = Counter()
    images_by, text_by = module.parts.encode_images, module.parts.encode_text
    module.parts.encode_images = lambda pixels: made.update(images=len(pixels)) or images_by(pixels)
    module.parts.encode_text = lambda fields: made.update(text=len(fields["input_ids"])) or text_by(fields)
    settings = {"resolution": 16, "batch_size": 4, "seed": 2, "heldout": "split", "caption_dropout": 0.3} | options
    data = TextImageDataModule(str(images), **settings)
    train(folder, module, data, callbacks=callbacks, stop=stop, resume=resume)
    return module, data, made


def same_weights(one, other):
    theirs = dict(other.denoiser.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in one.denoiser.named_parameters())


OPTIONS = {
    "plain": {},
    "buckets": {"buckets": {"step": 8}, "augment": {"random_crop": True, "random_flip": True, "variants": 2}},
    "workers": {"num_workers": 2, "families": "off"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_weights_equal_those_of_a_cache_that_was_filled_before(pipeline_folder, photos, tmp_path, name):  # noqa: F811
    from memtrain.data.framing import Buckets

    options = dict(OPTIONS[name])
    if "buckets" in options:
        options = {"buckets": Buckets(**options["buckets"]), "augment": Augment(**options["augment"])}
    before, _, _ = trained(pipeline_folder, tmp_path / "a", photos, cache=Cache(str(tmp_path / "before")), **options)
    cache = Cache(str(tmp_path / "cache"), fill="training")
    module, data, made = trained(pipeline_folder, tmp_path / "b", photos, cache=cache, **options)
    same_weights(module, before)
    assert 0 < made["images"] <= len(data.train_dataset.samples) * data.train_dataset.framing.variants
    again, _, made = trained(pipeline_folder, tmp_path / "c", photos, cache=cache, **options)
    same_weights(again, before)
    assert made["images"] == 0
    assert made["text"] <= 1, "the empty caption alone is asked whether it is trained"


@pytest.mark.slow
def test_a_killed_run_leaves_what_it_made_until_its_last_checkpoint(pipeline_folder, photos, tmp_path):  # noqa: F811
    from lightning.pytorch import Callback

    class Killed(BaseException):
        pass

    class Kill(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 4:
                trainer.datamodule._filling = None  # nothing more is written, as by a process that is gone
                raise Killed

    cache = Cache(str(tmp_path / "cache"), fill="training")
    with pytest.raises(Killed):
        trained(pipeline_folder, tmp_path / "run", photos, cache=cache, callbacks=[Kill()])
    shards = TensorShards(next((tmp_path / "cache").glob("latents-*")))
    shards.look()
    assert len(shards._where) == 12, "three batches of four"
    module, data, made = trained(pipeline_folder, tmp_path / "run", photos, cache=cache, resume=True)
    assert made["images"] <= len(data.train_dataset.samples) - 12
    whole, _, _ = trained(pipeline_folder, tmp_path / "whole", photos, cache=Cache(str(tmp_path / "before")))
    same_weights(module, whole)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [True, "first_visit"])
@pytest.mark.parametrize("masks", [False, True])
def test_profiles_and_held_out_samples_fill_the_cache_too(pipeline_folder, photos, tmp_path, reference, masks):  # noqa: F811
    import shutil

    import pyarrow.parquet as pq

    from memtrain.callbacks.monitor import MemorizationMonitor
    from memtrain.records import read_steps

    images = tmp_path / "images"
    shutil.copytree(photos, images)
    if masks:
        Image.new("L", (19, 20), 255).save(images / "03.mask.png")

    def run(folder, cache):
        monitor = MemorizationMonitor(reference=reference, false_positive_rate=0.1, minimum_visits=2)
        module, _, made = trained(
            pipeline_folder, tmp_path / folder, images, cache=cache, callbacks=[monitor], heldout_fraction=0.5
        )
        return module, made

    def measured(folder):
        (profile,) = (tmp_path / folder / "profiles").iterdir()
        tables = [pq.read_table(path).to_pylist() for path in profile.glob("*.parquet")]
        rows = [str(row) for table in tables for row in table]
        return sorted(rows), str(read_steps(tmp_path / folder / "records").to_pylist())

    before = run("a", Cache(str(tmp_path / "before")))[0]
    cache = Cache(str(tmp_path / "cache"), fill="training")
    module, made = run("b", cache)
    same_weights(module, before)
    assert measured("b") == measured("a")
    assert made["images"] <= 20 + masks
    _, made = run("c", cache)
    assert made["images"] <= int(masks), "a mask asks for the size of latents"


@pytest.mark.slow
def test_what_breaks_while_training_is_replaced(pipeline_folder, photos, tmp_path):  # noqa: F811
    import shutil

    from lightning.pytorch import Callback

    class Break(Callback):
        def on_train_start(self, trainer, module):
            for path in sorted(images.glob("*.png"))[::3]:
                path.write_bytes(b"no image")

    images = tmp_path / "images"
    shutil.copytree(photos, images)
    cache = Cache(str(tmp_path / "cache"), fill="training")
    options = {"broken": "skip", "broken_share": 0.6, "families": "off"}
    _, data, made = trained(pipeline_folder, tmp_path / "run", images, cache=cache, callbacks=[Break()], **options)
    assert made["images"] <= 13
    assert len(data.broken) >= 1


@pytest.mark.slow
def test_substitutes_of_flagged_samples_have_latents(pipeline_folder, photos, tmp_path):  # noqa: F811
    from types import SimpleNamespace

    from lightning.pytorch import Callback

    from memtrain.callbacks.lightning_host import LightningHost
    from memtrain.callbacks.sample_replacement import SampleReplacement

    class Replace(Callback):
        """Puts others in the place of a batch's first two."""

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            mitigation = SampleReplacement(seed=3)
            mitigation.open(LightningHost(trainer, module))
            ever = torch.tensor([True, True, False, False])
            before = batch["latents"].clone()
            flags = SimpleNamespace(ever=ever, keys=batch["key"], everyone=set(batch["key"]), visits=lambda keys: keys)
            mitigation.prepare(batch, flags, tokenizer=None, number=batch_idx)
            changed = [not torch.equal(one, other) for one, other in zip(batch["latents"], before, strict=True)]
            assert changed == ever.tolist()
            for key, latents in zip(batch["key"][:2], batch["latents"], strict=False):
                dataset = trainer.datamodule.train_dataset
                row = [sample.key for sample in dataset.samples].index(key)
                assert torch.equal(latents, module.encode_images(dataset.pixel_values(row)[None])[0])

    cache = Cache(str(tmp_path / "cache"), fill="training")
    trained(pipeline_folder, tmp_path / "run", photos, cache=cache, callbacks=[Replace()])


@pytest.mark.slow
def test_two_processes_fill_one_folder_with_what_one_would_make(pipeline_folder, photos, tmp_path):  # noqa: F811
    from lightning.pytorch import Trainer

    trained(pipeline_folder, tmp_path / "one", photos, stop=1, cache=Cache(str(tmp_path / "before")))
    module = TextToImageModule(str(pipeline_folder), learning_rate=1e-3, ema_decay=None, seed=1)
    cache = Cache(str(tmp_path / "cache"), fill="training")
    data = TextImageDataModule(str(photos), resolution=16, batch_size=2, seed=2, heldout="split", cache=cache)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    Trainer(
        default_root_dir=tmp_path / "two", max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_fork", **quiet
    ).fit(module, data)
    for kind, count in (("latents", 12), ("text", 13)):
        found = [TensorShards(next((tmp_path / name).glob(f"{kind}-*"))) for name in ("before", "cache")]
        for shards in found:
            shards.look()
        assert len(found[1]._where) == count
        for key in found[1]._where:
            equal(found[1].read(key), found[0].read(key))
