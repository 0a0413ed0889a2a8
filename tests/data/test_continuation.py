"""What a checkpoint's data may have become: other batches, data moved, fewer samples; and what is refused."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from memtrain.data.framing import Buckets
from memtrain.errors import ConfigurationError
from tests.data.test_visited_images import SIZES, Seeing, fit

ALONE = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "photos"
    path.mkdir()
    rows = []
    for number in range(34):
        Image.effect_noise(SIZES[number % 3], 50).convert("RGB").save(path / f"{number:02}.png")
        rows.append({"file_name": f"{number:02}.png", "texts": [f"{number}, first", f"{number}, second"]})
    (path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@ALONE
@pytest.mark.parametrize("bucketed", [False, True])
def test_a_run_that_continues_in_other_batches_visits_the_rest_of_its_epoch_once(tmp_path, folder, bucketed):
    """5 batches of 4 are an epoch: from its middle, its end, where no batch is filled, and from the next epoch."""
    options = {"buckets": Buckets(step=8)} if bucketed else {}
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="{step}", save_top_k=-1, every_n_train_steps=1)
    first, data = fit(tmp_path, folder, callbacks=[keep], epochs=2, **options)
    visits = len(data.train_dataset)
    for done, batch_size in ((2, 2), (5, 2), (6, 3)) if bucketed else ((2, 2), (4, 9), (5, 2), (6, 3)):
        checkpoint = tmp_path / "kept" / f"step={done}.ckpt"
        again, _ = fit(tmp_path, folder, resume=checkpoint, epochs=2, batch_size=batch_size, **options)
        epochs, begun = divmod(done, 5)
        left = (visits - 4 * begun) // batch_size if begun else 0
        assert len(again.seen) == left + (2 - epochs - bool(begun)) * (visits // batch_size)
        before, rest = first.seen[5 * epochs : done], again.seen[:left]
        seen = [key for keys, *_ in [*before, *rest] for key in keys]
        if bucketed:
            assert all(len({shape}) == 1 and len(keys) == batch_size for keys, _, shape, _ in again.seen)
            seen = [key for keys, *_ in [*first.seen[:done], *again.seen] for key in keys]
            assert max(Counter(seen).values()) <= 3
        else:
            assert len(set(seen)) == len(seen) == 4 * begun + batch_size * left


def test_other_data_are_refused_before_any_work(tmp_path, folder):
    """Samples that came, went or have another caption, other buckets and seeds: one error that names what it is."""
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="{step}", save_top_k=-1, every_n_train_steps=2)
    _, data = fit(tmp_path, folder, callbacks=[keep], epochs=1)
    checkpoint, module = tmp_path / "kept" / "step=2.ckpt", Seeing()
    for options, message in (
        ({"resolution": 16}, "resolution: the checkpoint was trained with 32, this run has 16"),
        ({"buckets": Buckets(step=8)}, "buckets: the checkpoint was trained with null"),
        ({"heldout_fraction": 0.2}, "heldout_fraction: the checkpoint was trained with 0.1, this run has 0.2"),
        ({"repeats": 2}, "repeats: the checkpoint was trained with 1, this run has 2"),
    ):
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            fit(tmp_path, folder, module=module, resume=checkpoint, **options)
    keys = sorted(data.visits_per_epoch)
    rows = [json.loads(line) for line in (Path(folder) / "metadata.jsonl").read_text().splitlines()]
    changed = [{**row, "texts": ["another"]} if row["file_name"] == keys[0] else row for row in rows]
    fewer = [row for row in rows if row["file_name"] != keys[0]]
    for written, message in (
        (changed, f"1 of {len(keys)} samples have another caption than in the checkpoint, first '{keys[0]}'"),
        (fewer, f"of the {len(keys)} samples that the checkpoint was trained on, "),
    ):
        (Path(folder) / "metadata.jsonl").write_text("\n".join(map(json.dumps, written)))
        if written is fewer:
            (Path(folder) / keys[0]).unlink()
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            fit(tmp_path, folder, module=module, resume=checkpoint)
    assert not module.seen


@ALONE
def test_samples_that_are_left_out_since_leave_the_rest_of_the_epoch_as_it_was(tmp_path, folder, caplog):
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="{step}", save_top_k=-1, every_n_train_steps=2)
    first, data = fit(tmp_path, folder, callbacks=[keep], epochs=1)
    seen = [key for keys, *_ in first.seen[:2] for key in keys]
    excluded = [seen[0], next(key for key in sorted(data.visits_per_epoch) if key not in seen)]
    moved = tmp_path / "moved"
    Path(folder).rename(moved)
    again, _ = fit(
        tmp_path, str(moved), resume=tmp_path / "kept" / "step=2.ckpt", epochs=1, batch_size=2, exclude=excluded
    )
    rest = [key for keys, *_ in again.seen for key in keys]
    assert len(set(rest)) == len(rest) == (len(data.visits_per_epoch) - 9) // 2 * 2
    assert not set(rest) & {*seen, *excluded}
    assert "2 of 23 visits per epoch are left out from now on" in caplog.text
    assert "batch_size was 4, and is 2 now" in caplog.text


@ALONE
@pytest.mark.parametrize(
    ("saving", "run"),
    [
        ({"save_on_train_epoch_end": False}, {"val_check_interval": 2}),
        pytest.param({"save_on_train_epoch_end": True}, {"accumulate_grad_batches": 2}, marks=pytest.mark.slow),
        pytest.param({"every_n_train_steps": 1}, {"limit_train_batches": 4}, marks=pytest.mark.slow),
        pytest.param({"every_n_train_steps": 1}, {"overfit_batches": 4}, marks=pytest.mark.slow),
        ({"save_on_train_epoch_end": False}, {"accumulate_grad_batches": 2, "val_check_interval": 3}),
    ],
    ids=["validation", "end of an epoch", "limited", "overfitted", "unfinished step"],
)
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_every_kind_of_checkpoint_continues_in_every_kind_of_epoch(tmp_path, folder, saving, run):
    """With the same settings exactly; in other batches, no sample comes twice in an epoch."""
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="{step}-{epoch}", save_top_k=-1, **saving)
    full, _ = fit(tmp_path, folder, callbacks=[keep], epochs=2, trainer=run)
    checkpoints = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints[:: max(1, len(checkpoints) // 3)]:
        state = torch.load(checkpoint, weights_only=True)
        done = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
        same, _ = fit(tmp_path, folder, resume=checkpoint, epochs=2, trainer=run)
        assert same.seen == full.seen[done:]
        for batch_size in (2, 7):
            other, _ = fit(tmp_path, folder, resume=checkpoint, epochs=2, batch_size=batch_size, trainer=run)
            epochs = [*full.epochs[:done], *other.epochs]
            seen = [*full.seen[:done], *other.seen]
            times = Counter((epoch, key) for epoch, (keys, *_) in zip(epochs, seen, strict=True) for key in keys)
            assert max(times.values()) == 1
            assert max(epochs) == 1


@ALONE
def test_a_finished_run_goes_on_to_a_later_end(tmp_path, folder):
    whole, _ = fit(tmp_path, folder, epochs=None, trainer={"max_steps": 12})
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", save_last=True, save_top_k=0, every_n_train_steps=1)
    fit(tmp_path, folder, callbacks=[keep], epochs=None, trainer={"max_steps": 7})
    longer, _ = fit(tmp_path, folder, resume=tmp_path / "kept" / "last.ckpt", epochs=None, trainer={"max_steps": 12})
    assert longer.seen == whole.seen[7:]
