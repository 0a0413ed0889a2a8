"""Buckets, crops, captions and repeats in a training: batches of one shape, resumed exactly, on every process alike."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from memtrain.data.caption_choice import Captions
from memtrain.data.disk_cache import Cache
from memtrain.data.framing import Augment, Buckets
from memtrain.data.module import TextImageDataModule
from memtrain.errors import ConfigurationError
from tests.conftest import ROOT

SIZES = [(48, 24), (24, 48), (32, 32), (40, 30)]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "photos"
    path.mkdir()
    rows = []
    for number in range(34):
        Image.effect_noise(SIZES[number % 4], 50).convert("RGB").save(path / f"{number:02}.png")
        rows.append({"file_name": f"{number:02}.png", "texts": [f"{number}, first", f"{number}, second"]})
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(path)


class Seeing(LightningModule):
    """Trains one number and writes down what it sees."""

    def __init__(self, *, trains_text=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen, self.validated, self.trains_text, self.encoded = [], [], trains_text, 0
        self.epochs = []

    def tokens(self, captions):
        return {"input_ids": torch.tensor([[len(text)] for text in captions])}

    def encode_images(self, pixels):
        self.encoded += len(pixels)
        return pixels[:, :, ::2, ::2]

    def encode_tokens(self, fields):
        text = fields["input_ids"][..., None].float()
        return {"text_embeddings": text * self.weight if self.trains_text else text}

    def encoder_fingerprint(self, what):
        return f"{what} of a test, which is as long as a name"

    def training_step(self, batch, batch_idx):
        image = batch["latents"] if "latents" in batch else batch["pixel_values"]
        self.seen.append((batch["key"], batch["caption"], tuple(image.shape), float(image.sum())))
        self.epochs.append(self.trainer.current_epoch)
        self.batch = batch
        return self.weight.sum() * 0.0

    def validation_step(self, batch, batch_idx):
        self.validated += [(key, len(batch["key"])) for key in batch["key"]]

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches  # as for a schedule: Lightning makes the loader for it
        return torch.optim.SGD(self.parameters(), lr=0.1)


VARIED = {
    "buckets": Buckets(step=8),
    "augment": Augment(random_crop=True, random_flip=True, variants=3),
    "captions": Captions(choose="random", trigger="sks"),
    "repeats": {"00.png": 3},
    "caption_dropout": 0.2,
}


def fit(tmp_path, folder, *, module=None, resume=None, callbacks=(), epochs=3, processes=1, trainer=None, **options):
    module = module or Seeing()
    data = TextImageDataModule(folder, **{"resolution": 32, "batch_size": 4, "seed": 5, **options})
    run = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=epochs,
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        callbacks=list(callbacks),
        **(trainer or {}),
    )
    run.fit(module, data, ckpt_path=resume)
    return module, data


def test_batches_are_of_one_shape_and_say_how_they_were_cut(tmp_path, folder):
    module, data = fit(tmp_path, folder, **VARIED)
    shapes = {shape for _, _, shape, _ in module.seen}
    assert len(shapes) >= 3
    assert all(shape[0] == 4 for shape in shapes)
    assert set(data.train_dataset.shapes) == {shape[2:] for shape in shapes}
    assert len(module.seen) == 3 * (len(data.train_dataset) // 4)
    for field in ("original_size", "crop_top_left", "target_size"):
        assert module.batch[field].shape == (4, 2)
        assert module.batch[field].dtype == torch.int64
    for key, size in zip(module.batch["key"], module.batch["original_size"].tolist(), strict=True):
        assert tuple(size) == SIZES[int(key[:2]) % 4][::-1]
    held = {sample.key for sample in data.heldout_dataset.samples}
    assert {key for key, _ in module.validated} == held
    visits = Counter(key for keys, *_ in module.seen for key in keys)
    assert visits["00.png"] >= 7 or "00.png" in held
    captions = {caption for _, captions, *_ in module.seen for caption in captions}
    assert "" in captions
    assert all(caption.startswith("sks, ") for caption in captions - {""})
    assert {caption[-5:] for caption in captions} >= {"first", "econd"[-5:]}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("cached", [False, True])
def test_a_resumed_run_sees_what_an_uninterrupted_one_does(tmp_path, folder, cached):
    options = {**VARIED, "cache": Cache(str(tmp_path / "cache")) if cached else None}

    def run(name, **more):
        keep = ModelCheckpoint(dirpath=tmp_path / name, filename="{step}", save_top_k=-1, every_n_train_steps=5)
        return fit(tmp_path, folder, callbacks=[keep], **options, **more)[0]

    full = run("kept")
    for done in (5, 15):
        rest = run(f"from {done}", resume=tmp_path / "kept" / f"step={done}.ckpt")
        assert rest.seen == full.seen[done:]
        assert rest.encoded == 0 or not cached
    assert ("text_embeddings" in full.batch) is cached
    if cached:
        assert torch.equal(full.batch["text_embeddings"][..., 0], full.batch["input_ids"].float())


def test_a_text_encoder_that_is_trained_is_not_cached(tmp_path, folder):
    with pytest.raises(ConfigurationError, match=r"before training[\s\S]*cache\.text to false"):
        fit(tmp_path, folder, module=Seeing(trains_text=True), cache=Cache(str(tmp_path / "cache")))
    fit(tmp_path, folder, module=Seeing(trains_text=True), cache=Cache(str(tmp_path / "cache"), text=False), epochs=1)


def test_frozen_crops_are_refused_in_memory_too(tmp_path, folder):
    with pytest.raises(ConfigurationError, match="freeze the random crops"):
        fit(tmp_path, folder, cache_latents=True, augment=Augment(random_crop=True))


def test_the_cache_needs_a_module_that_names_its_encoders(tmp_path, folder):
    class Nameless(Seeing):
        encoder_fingerprint = None

    with pytest.raises(ConfigurationError, match=r"Nameless has no encoder_fingerprint[\s\S]*cache to null"):
        fit(tmp_path, folder, module=Nameless(), cache=Cache(str(tmp_path / "cache")))


def test_the_profile_sees_one_fixed_view_of_each_sample(tmp_path, folder):
    _, data = fit(tmp_path, folder, epochs=1, **VARIED)

    def profile():
        return [
            (batch["key"], batch["caption"], batch["pixel_values"])
            for dataset in (data.train_dataset, data.heldout_dataset)
            for batch in data.unique_dataloader(dataset)
        ]

    first = profile()
    assert len([key for keys, _, _ in first for key in keys]) == 34
    assert all(caption.endswith("first") for _, captions, _ in first for caption in captions)
    for (keys, _, pixels), (again, _, same) in zip(first, profile(), strict=True):
        assert keys == again
        assert torch.equal(pixels, same)
        assert len({tuple(one.shape) for one in pixels}) == 1


def test_buckets_that_fill_no_batch_join_the_nearest(tmp_path, folder, caplog):
    data = TextImageDataModule(folder, resolution=32, batch_size=12, heldout_fraction=0.0, buckets=Buckets(step=8))
    data.build()
    before = len(set(data.train_dataset.shapes))
    data._settle_shapes(1)
    assert before == 3
    assert min(Counter(data.train_dataset.shapes_of_visits()).values()) >= 12
    assert "are in buckets that do not fill a batch of 12" in caplog.text


@pytest.mark.slow
def test_two_processes_have_batches_of_one_shape_at_the_same_step_and_share_the_cache(tmp_path, folder):
    command = [sys.executable, "-m", "tests.data.test_visited_images", str(tmp_path), folder]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    first, second = (rank["seen"] for rank in ranks)
    assert len(first) == len(second) == 3 * (ranks[0]["visits"] // 8)
    for (keys, _, shape, _), (others, _, same, _) in zip(first, second, strict=True):
        assert shape == same
        assert len(keys) == len(others) == 4
    held = [{key for key, _ in rank["validated"]} for rank in ranks]
    assert held[0] | held[1] == set(ranks[0]["held"])
    encoded = [rank["encoded"] for rank in ranks]
    assert max(encoded) - min(encoded) <= 1
    assert sum(encoded) == 3 * (34 - len(ranks[0]["held"])) + len(ranks[0]["held"])


def main() -> None:
    """One of two processes."""
    folder = Path(sys.argv[1])
    options = {**VARIED, "cache": Cache(str(folder / "cache"))}
    module, data = fit(folder, sys.argv[2], processes=2, **options)
    (folder / f"rank-{module.global_rank}.json").write_text(
        json.dumps(
            {
                "seen": module.seen,
                "validated": module.validated,
                "encoded": module.encoded,
                "visits": len(data.train_dataset),
                "held": [sample.key for sample in data.heldout_dataset.samples],
            }
        )
    )


if __name__ == "__main__":
    main()
