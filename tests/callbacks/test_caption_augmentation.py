"""Which visits see another caption, which one, and what is refused before training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from memtrain.callbacks.caption_augmentation import CaptionAugmentation
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError, DataError, ProbeError
from memtrain.evidence.flags import Flags
from memtrain.models.backbones.base import find_denoiser
from memtrain.models.observation import Observation
from memtrain.monitoring.host import Host
from tests.callbacks.test_monitor import Foreign, batches, fit
from tests.conftest import WordTokenizer

KEYS = ["a", "b", "c", "d"]
NONE = Flags(torch.zeros(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool), torch.zeros(4), keys=KEYS)
SOME = replace(NONE, ever=torch.tensor([True, False, True, False]))


def batch(keys: list[str] = KEYS) -> dict[str, Any]:
    """Words 60, 61, ... by key, so that random tokens below 50 are told apart."""
    ids = torch.tensor([[90, 60 + ord(key) - 97, 70, 71, 91, 92, 92, 92] for key in keys])
    return {"key": keys, "input_ids": ids, "prompt_length": torch.full((len(keys),), 5)}


def visit(mitigation: CaptionAugmentation, number: int, flags: Flags = NONE, keys: list[str] = KEYS) -> dict[str, Any]:
    data = batch(keys)
    mitigation.prepare(data, replace(flags, keys=keys), tokenizer=None, number=number)
    return data


def part(flags: Flags, rows: slice) -> Flags:
    return Flags(flags.now[rows], flags.ever[rows], flags.score[rows], keys=flags.keys[rows])


@pytest.mark.parametrize("kind", ["add", "replace", "repeat"])
def test_the_share_of_visits_and_the_flagged_ones(kind: Any) -> None:
    def share(flags: Flags, samples: Any) -> list[float]:
        mitigation = CaptionAugmentation(kind, probability=0.3, samples=samples, vocabulary=50)
        changed = [(visit(mitigation, number, flags)["prompt_length"] != 5).float() for number in range(400)]
        return torch.stack(changed).mean(dim=0).tolist()

    assert share(NONE, "all") == pytest.approx([0.3] * 4, abs=0.08)
    assert share(SOME, "flagged") == pytest.approx([0.3, 0.0, 0.3, 0.0], abs=0.08)


@pytest.mark.parametrize("kind", ["add", "replace", "repeat"])
def test_a_sample_is_treated_alike_wherever_it_stands(kind: Any) -> None:
    mitigation = CaptionAugmentation(kind, probability=0.5, vocabulary=50, samples="flagged")
    seen = set()
    for number in range(20):
        whole = visit(mitigation, number, SOME)
        halves = [visit(mitigation, number, part(SOME, rows), KEYS[rows]) for rows in (slice(0, 2), slice(2, 4))]
        for name in ("input_ids", "prompt_length"):
            assert torch.equal(torch.cat([half[name] for half in halves]), whole[name])
        seen.add(str(whole["input_ids"].tolist()))
    assert len(seen) > 5


def test_two_kinds_choose_visits_independently_and_seeds_differ() -> None:
    def changed(**arguments: Any) -> list[list[bool]]:
        mitigation = CaptionAugmentation(probability=0.5, vocabulary=50, **arguments)
        return [(visit(mitigation, number)["prompt_length"] != 5).tolist() for number in range(20)]

    results = [changed(kind="replace"), changed(kind="add"), changed(kind="replace", seed=1)]
    assert results[0] == changed(kind="replace")
    assert results[0] != results[1] != results[2] != results[0]


def test_empty_captions_stay_empty() -> None:
    mitigation = CaptionAugmentation("add", probability=1.0, vocabulary=50)
    data = batch()
    data["prompt_length"][1] = 2
    before = data["input_ids"].clone()
    mitigation.prepare(data, NONE, tokenizer=None, number=0)
    assert data["prompt_length"].tolist() == [7, 2, 7, 7]
    assert torch.equal(data["input_ids"][1], before[1])


def test_batches_without_tokens_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="turn off the cache of text embeddings"):
        CaptionAugmentation().prepare({"key": KEYS}, NONE, tokenizer=None, number=0)
    with pytest.raises(ConfigurationError, match="set vocabulary"):
        visit(CaptionAugmentation(), 0)
    visit(CaptionAugmentation("repeat"), 0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "shout"},
        {"kind": "add", "captions": "file"},
        {"probability": 0.0},
        {"tokens": 0},
        {"kind": "noise", "strength": 0.0},
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"set kind to|set such values"):
        CaptionAugmentation(**arguments)


# Several captions


def with_captions(**others: tuple[str, ...]) -> CaptionAugmentation:
    mitigation = CaptionAugmentation("multiple")
    data = SimpleNamespace(alternatives=lambda: others)
    host = Host(None, data=data)
    mitigation.open(host)
    module: Any = SimpleNamespace(tokenizer=WordTokenizer())
    mitigation.attach(None, backbone=None, module=module)  # type: ignore[arg-type]
    return mitigation


def caption_batch() -> dict[str, Any]:
    encoded = WordTokenizer()(
        ["one", "two", "three", ""], padding="max_length", max_length=6, truncation=True, return_tensors="pt"
    )
    lengths = encoded["attention_mask"].sum(dim=1)
    return {"key": list(KEYS), "input_ids": encoded["input_ids"], "prompt_length": lengths}


def test_each_of_the_captions_is_as_likely_and_the_others_stay() -> None:
    mitigation = with_captions(a=("one more", "yet another one"), c=("three more",), d=("not this",))
    texts = ["one", "one more", "yet another one", "three", "three more"]
    ids = WordTokenizer()(texts, padding="max_length", max_length=6, truncation=True, return_tensors="pt")["input_ids"]
    counts = torch.zeros(5)
    for number in range(1500):
        data, before = caption_batch(), caption_batch()
        mitigation.prepare(data, NONE, tokenizer=None, number=number)
        assert torch.equal(data["input_ids"][[1, 3]], before["input_ids"][[1, 3]])
        assert torch.equal((data["input_ids"] > 0).sum(dim=1), data["prompt_length"])
        for row, own in ((0, slice(0, 3)), (2, slice(3, 5))):
            found = (ids[own] == data["input_ids"][row]).all(dim=1)
            assert int(found.sum()) == 1
            counts[own] += found
    assert (counts / 1500).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2], abs=0.05)


def test_captions_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"key": "a", "captions": ["one more"]}) + "\n\n", encoding="utf-8")
    mitigation = CaptionAugmentation("multiple", captions=str(path))
    samples = [SimpleNamespace(key="a", caption="x"), SimpleNamespace(key="b", caption="y")]
    data = SimpleNamespace(train_dataset=SimpleNamespace(samples=samples))
    host = Host(None, data=data)
    mitigation.open(host)
    samples[0].key = "c"
    with pytest.raises(ConfigurationError, match=r"No training sample has another caption in .*captions\.jsonl"):
        mitigation.open(host)


@pytest.mark.parametrize(
    "line", ["no json", "[]", '{"key": "a"}', '{"key": "a", "captions": "x"}', '{"key": "k", "captions": []}']
)
def test_a_bad_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"key": "k", "captions": []}\n' + line, encoding="utf-8")
    mitigation = CaptionAugmentation("multiple", captions=str(path))
    host = Host(None, data=None)
    with pytest.raises(DataError, match="Line 2 of"):
        mitigation.open(host)


def test_no_other_captions_are_refused_before_training() -> None:
    with pytest.raises(ConfigurationError, match="No training sample has another caption"):
        with_captions(a=())


# Noise on the embeddings


class WithNoise(Foreign):
    """Keeps the embeddings that the denoiser got."""

    def __init__(self, unet: UNet2DConditionModel, compiled: str = "") -> None:
        super().__init__(unet)
        self.got: list[Tensor] = []
        if compiled == "in place":
            self.unet.compile(backend="eager")
        if compiled == "wrapped":
            self.unet = torch.compile(self.unet, backend="eager")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        monitor = next(c for c in self.trainer.callbacks if isinstance(c, MemorizationMonitor))  # type: ignore[attr-defined]
        loss = super().training_step(batch, batch_idx)
        self.got.append(monitor.engine.running[0].current.text_embeddings - batch["text"])
        with torch.no_grad():
            timesteps = torch.zeros(len(batch["text"]))
            again = [self.unet(batch["latents"], timesteps, batch["text"]).sample for _ in range(2)]
        assert torch.equal(*again)
        return loss


compiling = pytest.mark.filterwarnings(
    # torch.compile looks at `.grad` of every input while it traces: https://github.com/pytorch/pytorch/pull/30531
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning"
)


@compiling
@pytest.mark.parametrize("compiled", ["", "in place", "wrapped"])
def test_noise_is_added_in_training_forwards_only(
    compiled: str, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    module = WithNoise(pipeline.unet, compiled)
    mitigation = CaptionAugmentation("noise", strength=0.1)
    fit(module, tmp_path, [MemorizationMonitor(reference=False), mitigation], max_epochs=1)
    noise = torch.cat(module.got)
    assert noise.shape == (16, 5, 16)
    torch.testing.assert_close(noise.std(), torch.tensor(0.1), atol=0.005, rtol=0)
    assert len(noise.flatten(1).unique(dim=0)) == 16
    unet = module.unet if compiled != "wrapped" else module.unet._orig_mod
    assert not unet._forward_pre_hooks
    assert not module.unet._forward_pre_hooks


def test_noise_is_for_flagged_samples_where_asked_and_the_same_in_any_order(pipeline: StableDiffusionPipeline) -> None:
    module = Foreign(pipeline.unet)
    _, denoiser, backbone = find_denoiser(module)
    mitigation = CaptionAugmentation("noise", samples="flagged")
    mitigation.attach(denoiser, backbone=backbone, module=module)
    text = torch.zeros(4, 5, 16)
    mitigation.prepare({"key": KEYS}, SOME, tokenizer=None, number=3)
    whole = mitigation._add_noise(text)
    assert (whole.flatten(1).abs().sum(1) > 0).tolist() == [True, False, True, False]
    mitigation.prepare({"key": KEYS[2:]}, part(SOME, slice(2, 4)), tokenizer=None, number=3)
    assert torch.equal(mitigation._add_noise(text[2:]), whole[2:])
    assert mitigation._add_noise(text[2:].bfloat16()).dtype == torch.bfloat16
    mitigation.batch_done()
    assert torch.equal(mitigation._add_noise(text), text)
    mitigation.detach()
    assert not denoiser._forward_pre_hooks


def test_a_hook_that_did_not_run_is_an_error() -> None:
    mitigation = CaptionAugmentation("noise")
    mitigation.prepare({"key": KEYS}, NONE, tokenizer=None, number=3)
    with pytest.raises(ProbeError, match="the hook on the denoiser did not run"):
        mitigation.weights(Observation(KEYS), NONE)
    mitigation._add_noise(torch.zeros(4, 5, 16))
    assert mitigation.weights(Observation(KEYS), NONE).tolist() == [1.0] * 4


# In a run


class WithoutTokens(LightningDataModule):
    train_dataset = [{"key": "a", "latents": torch.zeros(4, 8, 8), "text": torch.zeros(5, 16)}]

    def train_dataloader(self) -> Any:
        return batches()


@pytest.mark.parametrize("kind", ["replace", "multiple"])
def test_data_without_tokens_are_refused_before_training(
    kind: Any, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    trainer = Trainer(
        default_root_dir=tmp_path,
        callbacks=[MemorizationMonitor(reference=False), CaptionAugmentation(kind)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=1,
        accelerator="cpu",
    )
    with pytest.raises(ConfigurationError, match="the training item has no"):
        trainer.fit(Foreign(pipeline.unet), WithoutTokens())
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize("kind", ["add", "replace", "repeat", "multiple"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_batches_of_no_sample_one_and_two(kind: Any, count: int) -> None:
    mitigation = CaptionAugmentation(kind, vocabulary=50)
    # What attaching makes of other captions: one for the first sample.
    mitigation._rows, mitigation._ids, mitigation._lengths = {"a": range(1)}, torch.ones(1, 8).long(), torch.tensor([4])
    none = torch.zeros(count, dtype=torch.bool)
    data = {name: rows[:count] for name, rows in batch().items()}
    mitigation.prepare(data, Flags(none, none, none.float(), keys=KEYS[:count]), tokenizer=None, number=0)
    assert (data["input_ids"].shape, data["prompt_length"].shape) == ((count, 8), (count,))
    assert data["input_ids"].dtype == torch.long


def test_captions_that_are_read_by_two_tokenizers_are_refused() -> None:
    """Tokens of one would be changed, and those of the other would go on telling the caption."""
    none = torch.zeros(3, dtype=torch.bool)
    data = {**batch(), "input_ids_2": batch()["input_ids"]}
    with pytest.raises(ConfigurationError, match="has input_ids_2 as well"):
        CaptionAugmentation("add", vocabulary=50).prepare(
            data, Flags(none, none, none.float(), keys=KEYS), tokenizer=None, number=0
        )
