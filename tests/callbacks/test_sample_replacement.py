"""Sample replacement: whose place is taken, by whom, and what a batch then holds."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.callbacks.caption_augmentation import CaptionAugmentation
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_replacement import SampleReplacement
from memtrain.data.caption_choice import Captions
from memtrain.data.dataset import CaptionedImages, Visit
from memtrain.data.source import open_source
from memtrain.data.token_table import tokens_by
from memtrain.errors import ConfigurationError
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.flags import Flags
from memtrain.families.table import Families
from memtrain.models.observation import Observation
from memtrain.monitoring.host import Host
from tests.callbacks.test_monitor import Foreign, fit
from tests.conftest import WordTokenizer


@pytest.fixture
def dataset(write_folder: Callable[..., Path], tokenizer: WordTokenizer) -> CaptionedImages:
    source = open_source(str(write_folder(6)))
    return CaptionedImages(source, range(6), resolution=8, tokens=tokens_by(tokenizer), visits=[1, 9, 1, 1, 1, 1])


@pytest.fixture
def mitigation(dataset: CaptionedImages) -> SampleReplacement:
    made = SampleReplacement(seed=3)
    made.open(Host(None, data=SimpleNamespace(train_dataset=dataset)))
    return made


def collate(dataset: CaptionedImages, rows: list[int]) -> dict[str, Any]:
    batch: dict[str, Any] = torch.utils.data.default_collate([dataset.unique()[row] for row in rows])
    return batch


def flags(keys: list[str], flagged: set[str]) -> Flags:
    ever = torch.tensor([key in flagged for key in keys])
    return Flags(ever, ever, torch.zeros(len(keys)), 1.0, keys, flagged)


def test_flagged_rows_hold_another_sample_and_the_others_stay(
    mitigation: SampleReplacement, dataset: CaptionedImages
) -> None:
    keys = [sample.key for sample in dataset.samples]
    flagged = {keys[1], keys[4]}
    drawn = set()
    for number in range(40):
        batch = collate(dataset, [0, 1, 1, 4])
        before = collate(dataset, [0, 1, 1, 4])
        mitigation.prepare(batch, flags(batch["key"], flagged), tokenizer=None, number=number)
        assert not set(batch["key"]) & flagged
        expected = collate(dataset, [keys.index(key) for key in batch["key"]])
        for name, values in expected.items():
            assert torch.equal(batch[name], values) if isinstance(values, torch.Tensor) else batch[name] == values
        assert torch.equal(batch["pixel_values"][0], before["pixel_values"][0])
        drawn |= set(batch["key"][1:])
    assert drawn == set(keys) - flagged, "every other sample is drawn sooner or later"


def test_the_choice_depends_on_number_and_place_in_the_global_batch(
    mitigation: SampleReplacement, dataset: CaptionedImages
) -> None:
    keys = [sample.key for sample in dataset.samples]
    flagged = {keys[1], keys[4]}
    whole = collate(dataset, [1, 1, 4, 2])
    mitigation.prepare(whole, flags(whole["key"], flagged), tokenizer=None, number=7)
    dealt = []
    for rank in range(2):
        part = collate(dataset, [1, 1, 4, 2][2 * rank : 2 * rank + 2])
        mitigation._rank = rank
        mitigation.prepare(part, flags(part["key"], flagged), tokenizer=None, number=7)
        dealt += part["key"]
    assert dealt == whole["key"]
    drawn = set()
    for number in range(20):
        copies = collate(dataset, [1, 1, 1, 1])
        mitigation.prepare(copies, flags(copies["key"], flagged), tokenizer=None, number=number)
        drawn.add(len(set(copies["key"])))
    assert max(drawn) > 2, "copies get substitutes of their own"


def test_no_sample_inherits_the_places_of_its_flagged_neighbours(
    mitigation: SampleReplacement, dataset: CaptionedImages
) -> None:
    keys = [sample.key for sample in dataset.samples]
    drawn: Counter[str] = Counter()
    for number in range(600):
        batch = collate(dataset, [1])
        mitigation.prepare(batch, flags(batch["key"], set(keys[1:4])), tokenizer=None, number=number)
        drawn[batch["key"][0]] += 1
    assert sorted(drawn) == [keys[0], keys[4], keys[5]]
    # Four standard deviations of a binomial distribution around 200.
    assert all(abs(count - 200) < 46 for count in drawn.values())


def test_the_least_visited_of_those_drawn_takes_the_place(
    mitigation: SampleReplacement, dataset: CaptionedImages
) -> None:
    keys = [sample.key for sample in dataset.samples]
    drawn: Counter[str] = Counter()

    def visits(asked: Sequence[str]) -> list[int]:
        return [drawn[key] for key in asked]

    for number in range(300):
        batch = collate(dataset, [1])
        verdict = replace(flags(batch["key"], {keys[1]}), visits=visits)
        mitigation.prepare(batch, verdict, tokenizer=None, number=number)
        drawn[batch["key"][0]] += 1
    assert len(drawn) == 5 and max(drawn.values()) - min(drawn.values()) <= 3


def test_a_dropped_caption_stays_dropped(mitigation: SampleReplacement, dataset: CaptionedImages) -> None:
    batch = collate(dataset, [1, 2])
    ids, length = batch["input_ids"][0].clone().zero_(), torch.tensor(2)
    batch["caption"][0], batch["input_ids"][0], batch["prompt_length"][0] = "", ids, length
    mitigation.prepare(batch, flags(batch["key"], {batch["key"][0]}), tokenizer=None, number=0)
    assert batch["key"][0] != dataset.samples[1].key
    assert (batch["caption"][0], batch["prompt_length"][0].item()) == ("", 2)
    assert torch.equal(batch["input_ids"][0], ids)


def test_without_a_substitute_a_flagged_sample_gets_no_gradient(
    mitigation: SampleReplacement, dataset: CaptionedImages
) -> None:
    keys = [sample.key for sample in dataset.samples]
    batch = collate(dataset, [1, 2])
    everyone = flags(batch["key"], set(keys))
    mitigation.prepare(batch, everyone, tokenizer=None, number=0)
    assert batch["key"] == [keys[1], keys[2]]
    assert mitigation.weights(Observation(batch["key"]), everyone).tolist() == [0.0, 0.0]


def test_a_field_that_the_data_set_does_not_know_is_an_error(
    mitigation: SampleReplacement, dataset: CaptionedImages
) -> None:
    batch = collate(dataset, [1, 2]) | {"depth": torch.zeros(2)}
    with pytest.raises(ConfigurationError, match="no \\['depth'\\]"):
        mitigation.prepare(batch, flags(batch["key"], {batch["key"][0]}), tokenizer=None, number=0)


def test_a_field_that_cannot_be_replaced_is_an_error(mitigation: SampleReplacement, dataset: CaptionedImages) -> None:
    batch = collate(dataset, [1, 2])
    batch["key"] = tuple(batch["key"])
    with pytest.raises(ConfigurationError, match="'key' is a tuple"):
        mitigation.prepare(batch, flags(list(batch["key"]), {batch["key"][0]}), tokenizer=None, number=0)


def test_data_without_single_samples_are_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="use SampleSkipping"):
        fit(Foreign(pipeline.unet), tmp_path, [MemorizationMonitor(reference=False), SampleReplacement()])


def test_what_acts_on_flagged_samples_only_is_refused_beside_it(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    callbacks = [MemorizationMonitor(reference=False), SampleReplacement(), CaptionAugmentation(samples="flagged")]
    with pytest.raises(ConfigurationError, match="takes them out of the batches"):
        fit(Foreign(pipeline.unet), tmp_path, callbacks)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_batches_of_no_sample_one_and_two_are_replaced_whole(
    mitigation: SampleReplacement, dataset: CaptionedImages, count: int
) -> None:
    keys = [sample.key for sample in dataset.unique().samples][:count]
    batch = {"key": list(keys), "pixel_values": torch.full((count, 3, 8, 8), 9.0)}
    ever = torch.ones(count, dtype=torch.bool)
    for name in set(dataset.unique()[0]) - set(batch):
        batch[name] = [""] * count
    flags = Flags(ever, ever, torch.zeros(count), keys=keys, everyone=keys)
    mitigation.prepare(batch, flags, tokenizer=None, number=0)
    assert not set(batch["key"]) & set(keys)
    assert not (batch["pixel_values"] == 9).all(dim=(1, 2, 3)).any()
    assert mitigation.weights(Observation(keys), flags).tolist() == [0.0] * count


def test_no_file_of_a_flagged_picture_takes_a_place_and_that_of_fewest_visits_does(
    mitigation: SampleReplacement, dataset: CaptionedImages
) -> None:
    keys = [sample.key for sample in dataset.samples]
    calibration = Calibration(1, scored=slice(0, 1), memorized_when="high", buckets=1, minimum_visits=2)
    pictures = dict.fromkeys(keys[1:4], keys[1]) | dict.fromkeys(keys[4:], keys[4])
    calibration.group_by(Families(pictures), pictures=3)
    for values in torch.randn(4, 30, 1, generator=torch.Generator().manual_seed(0)):
        calibration.add_heldout([f"held {index}" for index in range(30)], [0] * 30, values)
    calibration.add([keys[1], keys[2], keys[1]], [0] * 3, torch.full((3, 1), 9.0), step=0)
    calibration.add([keys[5]], [0], torch.zeros(1, 1), step=1)
    asked = Flags(
        *(calibration.flagged(keys[1:2]), calibration.ever_flagged(keys[1:2]), calibration.scores(keys[1:2])),
        keys=keys[1:2],
        everyone=calibration.first_flagged.keys(),
        visits=calibration.counted_visits,
    )
    drawn = Counter()
    for number in range(100):
        batch = collate(dataset, [1])
        mitigation.prepare(batch, asked, tokenizer=None, number=number)
        drawn.update(batch["key"])
    assert not set(drawn) & set(keys[1:4]), "the last of them was never visited"
    # Of the last two files one was never visited, but their picture was.
    assert drawn[keys[0]] > 90


def test_substitutes_have_the_shape_of_the_batch_and_are_no_regularisation_images(dataset: CaptionedImages) -> None:
    keys = [sample.key for sample in dataset.samples]
    dataset.shapes = [(8, 8), (8, 16), (8, 8), (8, 16), (8, 16), (8, 8)]
    one = dataset.unique()
    one.shapes = dataset.shapes
    data = SimpleNamespace(
        train_dataset=SimpleNamespace(unique=lambda: one, samples=dataset.samples),
        groups={keys[4]: "regularisation"},
    )
    mitigation = SampleReplacement(seed=3)
    mitigation.open(Host(None, data=data))
    for number in range(20):
        batch: dict[str, Any] = torch.utils.data.default_collate([one[0], one[2]])
        mitigation.prepare(batch, flags(batch["key"], {keys[0], keys[1]}), tokenizer=None, number=number)
        assert batch["key"][0] in (keys[2], keys[5])
        wide: dict[str, Any] = torch.utils.data.default_collate([one[1], one[4]])
        mitigation.prepare(wide, flags(wide["key"], {keys[0], keys[1]}), tokenizer=None, number=number)
        assert wide["key"] == [keys[3], keys[4]]


def test_substitutes_are_seen_as_a_visit_sees_them(dataset: CaptionedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their own crop, flip and choice of captions, not in the fixed view that is measured."""
    asked, own = [], CaptionedImages.__getitem__
    dataset.captions = Captions(choose="random")
    mitigation = SampleReplacement(seed=3)
    mitigation.open(Host(None, data=SimpleNamespace(train_dataset=dataset)))
    batch = collate(dataset, [0, 1])
    monkeypatch.setattr(CaptionedImages, "__getitem__", lambda self, index: asked.append(index) or own(self, index))
    mitigation.prepare(batch, flags(batch["key"], {batch["key"][1]}), tokenizer=None, number=7)
    assert [(type(index), index.epoch) for index in asked] == [(Visit, 7)]


def test_a_dropped_caption_stays_dropped_in_all_its_fields(
    mitigation: SampleReplacement, dataset: CaptionedImages
) -> None:
    embeddings = {row: {"text_embeddings": torch.full((2, 3), float(row))} for row in range(6)}
    dataset.use(text=lambda row: embeddings[row])
    mitigation._samples = dataset.unique()
    keys = [sample.key for sample in dataset.samples]
    batch = collate(dataset, [1, 4])
    batch["caption"][0] = ""
    batch["text_embeddings"][0] = -1.0
    mitigation.prepare(batch, flags(batch["key"], {keys[1], keys[4]}), tokenizer=None, number=0)
    assert (batch["text_embeddings"][0] == -1).all()
    assert (batch["text_embeddings"][1] == keys.index(batch["key"][1])).all()
