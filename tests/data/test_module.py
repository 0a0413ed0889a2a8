"""The data module: what it builds, refuses, drops, and how a run goes on from any checkpoint."""

import json
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from memtrain.data.canaries import Canaries
from memtrain.data.heldout_split import split_heldout
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import Duplicates
from memtrain.data.token_table import tokens_by
from memtrain.errors import ConfigurationError, DataError


class Recorder(LightningModule):
    """Trains one number and writes down what it sees."""

    def __init__(self, tokenizer=None):
        super().__init__()
        self.tokenizer = tokenizer
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []
        self.validated = []

    def encode_images(self, pixel_values):
        return pixel_values[:, :1, ::2, ::2]

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch["key"], batch["caption"]))
        return self.weight.sum() * 0.0

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path, **options):
    defaults = {
        "accelerator": "cpu",
        "default_root_dir": tmp_path,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**defaults, **options})


def keys(dataset):
    return [sample.key for sample in dataset.samples]


def test_split_duplicates_and_exclusion(write_folder):
    path = str(write_folder(20))
    data = TextImageDataModule(
        path,
        heldout_fraction=0.2,
        heldout="split",
        exclude=["image_03.png"],
        duplicates=Duplicates(count=2, repeats=5),
        resolution=8,
    )
    data.build()
    everything = [f"image_{index:02}.png" for index in range(20)]
    split = split_heldout(everything, 0.2)
    train, held = split.train, split.heldout
    assert keys(data.heldout_dataset) == [everything[index] for index in held]
    assert keys(data.train_dataset) == [everything[index] for index in train if index != 3]
    assert sorted(data.visits_per_epoch.values())[-3:] == [1, 5, 5]
    assert len(data.train_dataset) == len(data.train_dataset.samples) + 2 * 4


@pytest.mark.parametrize(("only_in", "planted"), [("images", True), ("elsewhere", False)])
def test_duplicates_are_planted_only_in_the_data_they_are_meant_for(write_folder, caplog, only_in, planted):
    path = write_folder(20)
    duplicates = Duplicates(count=2, repeats=5, only_in=str(path.parent / only_in))
    data = TextImageDataModule(str(path), duplicates=duplicates, resolution=8)
    data.build()
    assert (max(data.visits_per_epoch.values()) == 5) is planted
    assert ("None is planted in" in caplog.text) is not planted


def test_duplicates_are_planted_however_the_path_is_spelt(write_folder, monkeypatch):
    path = write_folder(20)
    monkeypatch.chdir(path.parent)
    (path.parent / "link").symlink_to(path)
    for spelt in ("images", "./images", "images/", "../" + path.parent.name + "/images", str(path), "link"):
        data = TextImageDataModule(spelt, duplicates=Duplicates(count=2, repeats=5, only_in="images"), resolution=8)
        data.build()
        assert list(data.groups.values()).count("planted") == 2, spelt


@pytest.mark.parametrize("resolution", [60, 500, 1023, 1])
def test_a_side_of_no_whole_latents_is_refused_with_the_nearest_ones(resolution):
    nearest = {60: "56 or 64", 500: "496 or 504", 1023: "1016 or 1024", 1: "8 or 16"}[resolution]
    with pytest.raises(ConfigurationError, match=f"resolution={resolution}[\\s\\S]*such as {nearest}"):
        TextImageDataModule("images", resolution=resolution)


TEMPLATES = Duplicates(count=1, repeats=(4, 7), varied_captions=1, varied_images=1, variants=3)


def test_groups_templates_and_canaries(write_folder):
    path, canaries = str(write_folder(20)), Canaries(count=2, repeats=9)
    data = TextImageDataModule(path, heldout="split", duplicates=TEMPLATES, canaries=canaries, resolution=8)
    data.build()
    assert set(data.groups) == set(keys(data.train_dataset)) | set(keys(data.heldout_dataset))
    found = {group: [key for key in data.groups if data.groups[key] == group] for group in data.groups.values()}
    assert {group: len(members) for group, members in found.items()} == {
        **{"unique": 20 - 6 - 4, "planted": 2, "varied_captions": 3, "varied_images": 3, "canary": 2, "heldout": 6}
    }
    visits = {group: sorted(data.visits_per_epoch.get(key, 0) for key in members) for group, members in found.items()}
    assert visits.pop("unique") == [1] * 10
    expected = {"planted": [4, 7], "varied_captions": [2, 2, 3], "varied_images": [2, 2, 3], "canary": [9, 9]}
    assert visits == {**expected, "heldout": [0] * 6}
    assert set(data.template) == {*found["varied_captions"], *found["varied_images"]}
    originals = set(data.template.values())
    assert len(originals) == 2
    assert not originals & set(data.groups), "a template takes the place of its sample"
    assert len(data.train_dataset) == sum(data.visits_per_epoch.values())


def test_without_made_samples_order_and_contents_are_those_of_the_source(write_folder):
    data = TextImageDataModule(str(write_folder(20)), duplicates=Duplicates(count=2, repeats=3), resolution=8)
    data.build()
    assert not data.template
    assert keys(data.train_dataset) == sorted(data.visits_per_epoch)
    more = TextImageDataModule(
        str(write_folder(20)), duplicates=Duplicates(count=2, repeats=3), canaries=Canaries(count=1), resolution=8
    )
    more.build()
    assert keys(more.train_dataset) == [*keys(data.train_dataset), "canary#0"], "made samples come last"
    assert keys(more.heldout_dataset) == keys(data.heldout_dataset)


def test_what_an_earlier_run_flagged_is_left_out_and_nothing_takes_its_place(write_folder):
    path, canaries = str(write_folder(20)), Canaries(count=2, repeats=9)
    first = TextImageDataModule(path, duplicates=TEMPLATES, canaries=canaries, resolution=8)
    first.build()
    flagged = [key for key, group in first.groups.items() if group in ("planted", "varied_captions")] + ["canary#1"]
    second = TextImageDataModule(path, duplicates=TEMPLATES, canaries=canaries, resolution=8, exclude=flagged)
    second.build()
    expected = {key: count for key, count in first.visits_per_epoch.items() if key not in flagged}
    assert second.visits_per_epoch == expected
    whole = next(key for key in first.template.values() if f"{key}#image0" in first.groups)
    third = TextImageDataModule(path, duplicates=TEMPLATES, canaries=canaries, resolution=8, exclude=[whole])
    third.build()
    assert "varied_images" not in third.groups.values(), "the original's key stands for all its variants"


def test_what_an_earlier_run_made_and_flagged_is_no_obstacle(write_folder, caplog):
    path = str(write_folder(20))
    first = TextImageDataModule(path, duplicates=TEMPLATES, canaries=Canaries(count=2), resolution=8)
    first.build()
    flagged = [key for key, group in first.groups.items() if group not in ("heldout", "unique")]
    second = TextImageDataModule(path, resolution=8, exclude=flagged)
    second.build()
    repeated = {key for key, group in first.groups.items() if group == "planted"}
    assert set(second.visits_per_epoch) == (set(first.visits_per_epoch) | set(first.template.values())) - repeated - {
        key for key in flagged if "#" in key
    }
    assert "made sample(s) that this run does not make" in caplog.text


def test_held_out_source_that_shares_the_key_of_a_canary(write_folder):
    held = write_folder({"canary#0": "another"}, name="held")
    with pytest.raises(DataError, match=r"1 key\(s\) are both in"):
        TextImageDataModule(str(write_folder(6)), heldout_path=str(held), canaries=Canaries(), resolution=8).build()


def test_settings_come_from_yaml_and_go_back(write_folder, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about Lightning, as in memtrain.cli.chatter
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")

    def parse(duplicates):
        arguments = {"path": str(write_folder(20)), "duplicates": duplicates, "canaries": {"count": 3}}
        return parser.parse_object({"data": {"class_path": "TextImageDataModule", "init_args": arguments}})

    for repeats, expected in ((200, 200), ([12, 25, 50], (12, 25, 50))):
        config = parse({"count": 1, "repeats": repeats})
        again = parser.parse_string(parser.dump(config))
        for one in (config, again):
            data = parser.instantiate_classes(one).data
            assert data.duplicates == Duplicates(count=1, repeats=expected)
            assert data.canaries == Canaries(count=3)


def test_other_captions_of_training_samples(write_folder):
    folder = write_folder(6)
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "texts": [f"another {number}"] * (number % 2)} for number, line in enumerate(lines)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = TextImageDataModule(str(folder), heldout_fraction=0.0, resolution=8, canaries=Canaries(count=1))
    with pytest.raises(ConfigurationError, match="was not set up"):
        data.alternatives()
    data.build()
    expected = {f"image_{n:02}.png": (f"another {n}",) * (n % 2) for n in range(6)}
    assert data.alternatives() == {**expected, "canary#0": ()}
    assert data.train_dataset[1].keys() == {"key", "caption", "pixel_values"}


def test_exclusion_does_not_change_what_is_held_out(write_folder):
    path = str(write_folder(20))
    plain = TextImageDataModule(path, heldout="split", resolution=8)
    plain.build()
    excluding = TextImageDataModule(path, heldout="split", resolution=8, exclude=keys(plain.train_dataset)[:5])
    excluding.build()
    assert keys(excluding.heldout_dataset) == keys(plain.heldout_dataset)


def test_held_out_samples_from_another_source(write_folder):
    held = write_folder({"other.png": "another"}, name="held")
    data = TextImageDataModule(str(write_folder(6)), heldout_path=str(held), resolution=8)
    data.build()
    assert len(data.train_dataset) == 6
    assert keys(data.heldout_dataset) == ["other.png"]


def test_held_out_source_that_shares_a_key(write_folder):
    held = write_folder({"image_01.png": "another"}, name="held")
    with pytest.raises(DataError, match=r"1 key\(s\) are both in .*images and in .*held"):
        TextImageDataModule(str(write_folder(6)), heldout_path=str(held), resolution=8).build()


def test_exclusion_of_an_unknown_key(write_folder):
    with pytest.raises(DataError, match=r"exclude names 1 key\(s\) that are not in .*, first \['cat\.png'\]"):
        TextImageDataModule(str(write_folder(6)), exclude=["cat.png"], resolution=8).build()


@pytest.mark.parametrize("where", ["images", "held"])
def test_broken_image_stops_the_run_before_it_starts(write_folder, where):
    train, held = write_folder(6), write_folder({"a.png": "x", "b.png": "y"}, name="held")
    broken = next((train if where == "images" else held).glob("*.png"))
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=f"'{broken.name}' in .* cannot be read"):
        TextImageDataModule(str(train), heldout_path=str(held), resolution=8).build()


@pytest.mark.parametrize("settings", [{"caption_dropout": 1.0}, {"batch_size": 0}, {"resolution": 0}])
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        TextImageDataModule("anywhere", **settings)


def test_loader_before_setup():
    with pytest.raises(ConfigurationError, match=r"was not set up[\s\S]*call setup\(\) or build\(\)"):
        TextImageDataModule("anywhere").train_dataloader()


def test_fewer_images_than_a_batch_make_a_smaller_one(write_folder, caplog):
    data = TextImageDataModule(str(write_folder(6)), heldout_fraction=0.0, resolution=8, batch_size=16)
    data.build()
    (batch,) = data.train_dataloader()
    assert len(batch["key"]) == 6
    assert "Batches hold 6 sample(s) instead of 16" in caplog.text


def test_nothing_to_train_on(write_folder):
    everything = [f"image_{index:02}.png" for index in range(3)]
    data = TextImageDataModule(str(write_folder(3)), heldout_fraction=0.0, exclude=everything, resolution=8)
    data.build()
    with pytest.raises(ConfigurationError, match="There is nothing to train on"):
        data.train_dataloader()


def test_validation_after_more_batches_than_an_epoch_has(write_folder, tmp_path, tokenizer):
    path = str(write_folder(20))

    def fit(**validation):
        data = TextImageDataModule(path, heldout="split", resolution=8, batch_size=4, cache_latents=True)
        module = Recorder(tokenizer)
        trainer(tmp_path, max_steps=4, **validation).fit(module, data)
        return len(module.validated)

    with pytest.raises(ConfigurationError, match=r"and 3 batch\(es\) per[\s\S]*--trainer\.val_check_interval 1\.0"):
        fit(val_check_interval=4, check_val_every_n_epoch=1)
    assert fit(val_check_interval=1.0, check_val_every_n_epoch=1) > 0, "what the remedy asks for"
    assert fit(val_check_interval=3, check_val_every_n_epoch=1) > 0
    assert fit(val_check_interval=4, check_val_every_n_epoch=None) > 0
    assert fit(val_check_interval=4, check_val_every_n_epoch=1, limit_val_batches=0) == 0


def test_cache_needs_a_module_that_encodes(write_folder):
    data = TextImageDataModule(str(write_folder(6)), resolution=8, cache_latents=True)
    with pytest.raises(ConfigurationError, match=r"has no encode_images[\s\S]*cache_latents to false"):
        data.setup("fit")


def test_seed_defaults_to_that_of_seed_everything(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert TextImageDataModule("anywhere").seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert TextImageDataModule("anywhere").seed == 7
    assert TextImageDataModule("anywhere", seed=3).seed == 3


def test_fit_visits_everything_as_often_as_planned(write_folder, tmp_path, tokenizer):
    path = str(write_folder(20))
    data = TextImageDataModule(
        path,
        duplicates=Duplicates(count=1, repeats=6, varied_captions=1, varied_images=1, variants=2),
        canaries=Canaries(count=1, repeats=2),
        resolution=8,
        batch_size=1,
        cache_latents=True,
    )
    module = Recorder(tokenizer)
    trainer(tmp_path, max_epochs=2).fit(module, data)
    seen = [key for _, batch, _ in module.seen for key in batch]
    assert {key: seen.count(key) for key in seen} == {key: 2 * n for key, n in data.visits_per_epoch.items()}
    assert {"canary#0", *data.template} < set(seen)
    held = module.validated[: len(module.validated) // 2]
    assert [key for batch in held for key in batch["key"]] == keys(data.heldout_dataset)
    assert held[0]["latents"].shape == (1, 1, 4, 4)
    assert held[0]["input_ids"].shape == (1, 6)


@pytest.mark.parametrize(
    ("saving", "run"),
    [
        ({"every_n_train_steps": 1}, {"max_epochs": 3}),
        ({"every_n_train_steps": 1}, {"max_steps": 8, "val_check_interval": 2}),
        ({"save_on_train_epoch_end": True}, {"max_epochs": 3}),
        ({"save_on_train_epoch_end": True}, {"max_steps": 8}),
        ({"save_on_train_epoch_end": False}, {"max_steps": 8}),
    ],
    ids=["steps, by epochs", "steps, by steps", "epochs, by epochs", "epochs, by steps", "validations, by steps"],
)
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`, callbacks"
)  # a resumed run keeps no checkpoints
def test_run_resumed_from_any_checkpoint_sees_what_it_would_have_seen(write_folder, tmp_path, saving, run, workers):
    path = str(write_folder(20))

    def fit(checkpoint=None, callbacks=()):
        module = Recorder()
        data = TextImageDataModule(
            path,
            heldout_fraction=0.4,
            duplicates=Duplicates(varied_captions=1, variants=2, repeats=2),
            canaries=Canaries(count=1, repeats=1),
            resolution=8,
            batch_size=4,
            num_workers=workers,
            caption_dropout=0.5,
        )
        trainer(tmp_path, callbacks=list(callbacks), enable_checkpointing=bool(callbacks), **run).fit(
            module, data, ckpt_path=checkpoint
        )
        return module.seen

    keep = ModelCheckpoint(dirpath=tmp_path / "checkpoints", filename="{step}", save_top_k=-1, **saving)
    full = fit(callbacks=[keep])
    assert len(full) == run.get("max_steps", 9)
    assert len({tuple(batch) for _, batch, _ in full}) == len(full)
    checkpoints = sorted((tmp_path / "checkpoints").glob("*.ckpt"))
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints:
        done = int(checkpoint.stem.removeprefix("step="))
        assert fit(checkpoint) == full[done:], f"resumed after {done} steps"


@pytest.fixture
def dropping(write_folder, tokenizer):
    """A module with caption dropout in a pretended training, and a way to make batches for it."""
    data = TextImageDataModule(str(write_folder(20)), resolution=8, caption_dropout=0.3)
    data.build(tokens_by(tokenizer))
    data.trainer = SimpleNamespace(training=True, current_epoch=0)

    def batch(number, *, tokens=True):
        captions = [f"caption {number}"] * 50
        result = {"key": [f"{number} {index}" for index in range(50)], "caption": captions}
        if tokens:
            ids = tokenizer(captions, padding="max_length", max_length=6, truncation=True, return_tensors="pt")[
                "input_ids"
            ]
            result |= {"input_ids": ids, "prompt_length": (ids > 0).sum(1)}
        return result

    return data, batch


def test_dropout_takes_its_share_of_captions(dropping):
    data, batch = dropping
    dropped = 0
    for number in range(40):
        result = data.on_before_batch_transfer(batch(number), 0)
        gone = torch.tensor([caption == "" for caption in result["caption"]])
        assert torch.equal(gone, result["prompt_length"] == 2)
        assert torch.equal(gone, (result["input_ids"] == torch.tensor([1, 2, 0, 0, 0, 0])).all(1))
        assert result["key"] == batch(number)["key"]
        dropped += int(gone.sum())
    assert 0.26 < dropped / 2000 < 0.34


def test_dropout_is_a_function_of_seed_epoch_and_keys(dropping):
    data, batch = dropping

    def captions():
        return data.on_before_batch_transfer(batch(0), 0)["caption"]

    first = captions()
    assert captions() == first
    data.trainer.current_epoch = 1
    assert captions() != first
    data.trainer.current_epoch = 0
    data.seed += 1
    assert captions() != first


def test_dropout_works_without_tokens(dropping):
    data, batch = dropping
    data.build()
    result = data.on_before_batch_transfer(batch(0, tokens=False), 0)
    assert set(result["caption"]) == {"", "caption 0"}


def test_no_dropout_outside_training(dropping):
    data, batch = dropping
    data.trainer.training = False
    assert set(data.on_before_batch_transfer(batch(0), 0)["caption"]) == {"caption 0"}


def test_lightning_applies_dropout_to_training_batches_only(write_folder, tmp_path, tokenizer):
    data = TextImageDataModule(str(write_folder(20)), resolution=8, batch_size=4, caption_dropout=0.5)
    module = Recorder(tokenizer)
    trainer(tmp_path, max_epochs=3).fit(module, data)
    trained = [caption for _, _, captions in module.seen for caption in captions]
    assert 0.2 < trained.count("") / len(trained) < 0.8
    assert not any(caption == "" for batch in module.validated for caption in batch["caption"])


def test_a_null_given_by_a_dotted_option_plants_in_any_data(monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # about Lightning, as in memtrain.cli.chatter
    parser = ArgumentParser()
    parser.add_subclass_arguments(TextImageDataModule, "data")
    words = ["--data", "TextImageDataModule", "--data.path", "x", "--data.duplicates.only_in", "null"]
    assert parser.instantiate_classes(parser.parse_args(words)).data.duplicates.only_in is None


def test_dropout_replaces_every_field_of_the_tokens(write_folder):
    def tokens(captions):
        return {"input_ids": torch.tensor([[len(text)] * 3 for text in captions]), "length": torch.ones(len(captions))}

    data = TextImageDataModule(str(write_folder(6)), resolution=8, caption_dropout=0.5)
    data.build(tokens)
    data.trainer = SimpleNamespace(training=True, current_epoch=0)
    captions = [f"caption {number}" for number in range(40)]
    batch = {"key": captions, "caption": captions, **tokens(captions)}
    batch = data.on_before_batch_transfer({**batch, "length": torch.full((40,), 2.0)}, 0)
    gone = torch.tensor([caption == "" for caption in batch["caption"]])
    assert 0 < gone.sum() < 40
    assert torch.equal(gone, (batch["input_ids"] == 0).all(1))
    assert torch.equal(gone, batch["length"] == 1)


def test_tokens_are_made_by_the_module_where_it_can(write_folder, tmp_path, tokenizer):
    class Making(Recorder):
        def tokens(self, captions):
            return {"input_ids_2": torch.tensor([[len(text)] for text in captions])}

    data, module = TextImageDataModule(str(write_folder(6)), resolution=8, batch_size=2), Making(tokenizer)
    trainer(tmp_path, max_steps=1).fit(module, data)
    assert data.train_dataset[0].keys() == {"key", "caption", "pixel_values", "input_ids_2"}


@pytest.mark.parametrize("resolution", [0, 60, 500])
def test_a_resolution_that_nothing_samples_in_is_refused(resolution, tmp_path):
    with pytest.raises(ConfigurationError, match=f"resolution={resolution}"):
        TextImageDataModule(str(tmp_path), resolution=resolution)
