"""Flagged samples train without their neurons, others as ever; the mask is found, resumed, saved and exported."""

from __future__ import annotations

import copy
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.neuron_masking import NeuronMasking
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evidence.flags import Flags
from memtrain.functional.neurons import neuron_activation
from memtrain.models import neuron_search
from memtrain.models.backbones.base import find_backbone
from memtrain.models.neuron_mask import NeuronMask
from memtrain.monitoring.host import Host
from tests.callbacks.test_monitor import Foreign, batches
from tests.conformance.families import build, gradient_checkpointing

DOWN = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
MID = "mid_block.attentions.0.transformer_blocks.0.attn2"
UP = "up_blocks.1.attentions.1.transformer_blocks.0.attn2"
SITES = [DOWN, MID, UP]
LISTED = NeuronMask({DOWN: [0, 3], UP: [1]})


def flags(*ever: bool) -> Flags:
    chosen = torch.tensor(ever)
    return Flags(chosen, chosen, torch.zeros(len(ever)), keys=[f"k{index}" for index in range(len(ever))])


def listed(folder: Path, mask: NeuronMask = LISTED) -> str:
    mask.save(folder / "listed.safetensors")
    return str(folder / "listed.safetensors")


def attach(masking: NeuronMasking, unet: Any) -> NeuronMasking:
    module: Any = SimpleNamespace(device=torch.device("cpu"), global_rank=0, current_epoch=0)
    backbone = find_backbone(unet)
    assert backbone is not None
    masking.attach(unet, backbone=backbone, module=module)
    return masking


def run(unet: Any, rows: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    latents, words = torch.randn(rows, 4, 8, 8, generator=generator), torch.randn(rows, 5, 16, generator=generator)
    sample: Tensor = unet(latents, torch.tensor([10, 500, 900])[:rows], words).sample
    return sample


def prepare(masking: NeuronMasking, *ever: bool, **batch: Any) -> None:
    masking.prepare(batch, flags(*ever), tokenizer=None, number=0)


def seen(masking: NeuronMasking) -> None:
    """What the engine does before the backward pass."""
    masking.forward_done(Host(None))


def test_only_training_rows_of_flagged_samples_are_masked(tmp_path: Path) -> None:
    unet: Any = build("unet")
    plain = run(unet).detach()
    with LISTED.on(unet):
        masked = run(unet).detach()
    masking = attach(NeuronMasking(listed(tmp_path), neurons=0), unet)
    prepare(masking, True, False, True)
    found = run(unet).detach()
    torch.testing.assert_close(found[[0, 2]], masked[[0, 2]], atol=1e-6, rtol=0)
    assert torch.equal(found[1], plain[1])
    assert (masked - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    with torch.no_grad():
        assert torch.equal(run(unet), plain)
    prepare(masking, False, False, False)
    assert torch.equal(run(unet), plain)
    masking.detach()
    everyone = attach(NeuronMasking(listed(tmp_path), neurons=0, samples="all"), unet)
    prepare(everyone, False, False, False)
    assert torch.equal(run(unet), masked)
    everyone.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_masked_channels_get_a_gradient_of_exactly_zero_from_flagged_rows(tmp_path: Path) -> None:
    unet: Any = build("unet")
    masking = attach(NeuronMasking(listed(tmp_path), neurons=0), unet)
    weight = unet.get_submodule(f"{DOWN}.to_v").weight

    def gradient(*ever: bool) -> Tensor:
        unet.zero_grad()
        prepare(masking, *ever)
        run(unet, len(ever)).square().mean().backward()
        assert all(parameter.grad is not None for parameter in unet.parameters())
        kept: Tensor = weight.grad.clone()
        return kept

    flagged, some = gradient(True, True, True), gradient(True, False, True)
    masked = torch.zeros(16, dtype=torch.bool)
    masked[[0, 3]] = True
    assert not flagged[masked].any()
    assert flagged[~masked].abs().amax(dim=1).min() > 0
    assert some[masked].abs().amax(dim=1).min() > 0
    masking.detach()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient_and_no_activation(tmp_path: Path, reentrant: bool) -> None:
    results = []
    for checkpointing in (False, True):
        unet: Any = build("unet")
        if checkpointing:
            gradient_checkpointing(unet, reentrant)
        masking = attach(NeuronMasking(listed(tmp_path)), unet)
        prepare(masking, True, False, True)
        loss = run(unet).square().mean()
        seen(masking)
        loss.backward()
        (visit,) = masking._search._visits
        results.append([visit.activation.read(), *(p.grad for p in unet.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)


def test_an_adapter_that_trains_is_masked_too_and_cannot_be_baked(tmp_path: Path) -> None:
    unet: Any = build("unet")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["attn2.to_v"], init_lora_weights=False), unet)
    with pytest.raises(ConfigurationError, match="cannot be baked"):
        attach(NeuronMasking(listed(tmp_path)), unet)
    masking = attach(NeuronMasking(listed(tmp_path), export="file"), unet)
    prepare(masking, True, True, True)
    run(unet).square().mean().backward()
    gradient = unet.get_submodule(f"{DOWN}.to_v").lora_B["default"].weight.grad
    assert not gradient[[0, 3]].any()
    assert gradient[[1, 2]].abs().min() > 0
    masking.detach()


def test_the_activation_is_that_of_the_unmasked_values_and_dropped_captions_are_left_out(tmp_path: Path) -> None:
    unet: Any = build("unet")
    values: dict[str, Tensor] = {}
    handles = [
        unet.get_submodule(f"{site}.to_v").register_forward_hook(
            lambda module, args, out, site=site: values.__setitem__(site, out)
        )
        for site in SITES
    ]
    run(unet)
    for handle in handles:
        handle.remove()
    masking = attach(NeuronMasking(listed(tmp_path)), unet)
    assert masking._searched == SITES
    prepare(masking, True, False, True, caption=["a", "b", ""])
    run(unet)
    with torch.no_grad():
        run(unet, 2)
    seen(masking)
    (visit,) = masking._search._visits
    expected = torch.cat([neuron_activation(values[site]) for site in SITES], dim=1)
    assert torch.equal(visit.activation.read(), expected)
    assert visit.samples == [(0, "k0", True), (1, "k1", False)]
    masking.detach()


def test_a_forward_that_passes_by_the_mask_raises(tmp_path: Path) -> None:
    unet: Any = build("unet")
    masking = attach(NeuronMasking(listed(tmp_path)), unet)
    prepare(masking, True, False, True)
    unet.get_submodule(f"{DOWN}.to_v")._forward_hooks.clear()
    run(unet)
    with pytest.raises(ProbeError, match="1 of 3 masked sites were not reached"):
        seen(masking)
    masking.detach()


def test_exported_weights_give_what_the_mask_gave_and_come_back(tmp_path: Path) -> None:
    unet: Any = build("unet")
    with LISTED.on(unet), torch.no_grad():
        masked = run(unet)
    before = copy.deepcopy(unet.state_dict())
    masking = attach(NeuronMasking(listed(tmp_path)), unet)
    with masking.exporting(unet), torch.no_grad():
        torch.testing.assert_close(run(unet), masked, atol=1e-6, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    masking.detach()
    masking = attach(NeuronMasking(listed(tmp_path), export="file"), unet)
    with masking.exporting(unet):
        assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    masking.detach()


class Marked(NeuronMasking):
    """Takes `a` for flagged from the fifth batch on."""

    def prepare(self, batch: dict[str, Any], flags: Flags, *, tokenizer: Any, number: int) -> None:
        ever = torch.tensor([key == "a" and number > 3 for key in flags.keys])
        super().prepare(batch, replace(flags, ever=ever), tokenizer=tokenizer, number=number)


def fit(module: Foreign, folder: Path, masking: NeuronMasking, *, epochs: int = 6, resume: Path | None = None) -> None:
    keep = [ModelCheckpoint(folder / "checkpoints", "{epoch}", save_top_k=-1)] if resume is None else []
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[MemorizationMonitor(reference=False), masking, *keep],
        logger=False,
        enable_checkpointing=resume is None,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=epochs,
        accelerator="cpu",
    )
    trainer.fit(module, batches(), ckpt_path=resume)


@pytest.fixture
def few_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches of the tests have three other captions, counted once an epoch."""
    monkeypatch.setattr(neuron_search, "MINIMUM_CAPTIONS", 3)


@pytest.mark.usefixtures("few_captions")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_resumed_run_equals_the_uninterrupted_one(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    through, masking = Foreign(pipeline.unet), Marked(neurons=3)
    fit(through, tmp_path / "through", masking)
    assert masking.mask is not None
    assert len(masking.mask) == 3
    saved = NeuronMask.load(tmp_path / "through" / "neuron_mask.safetensors")
    assert saved.channels == masking.mask.channels
    assert saved.factor == 0

    # After one and three epochs there are visits that were not merged yet, after four the neurons are known.
    for done in (1, 3, 4):
        folder = tmp_path / str(done)
        shutil.copytree(tmp_path / "through", folder)
        checkpoint = folder / "checkpoints" / f"epoch={done - 1}.ckpt"
        resumed, again = Foreign(pipeline.unet), Marked(neurons=3)
        fit(resumed, folder, again, resume=checkpoint)
        assert again.mask is not None
        assert again.mask.channels == masking.mask.channels
        assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), through.parameters(), strict=True))

    with pytest.raises(ConfigurationError, match="The checkpoint searched the sites"):
        fit(resumed, folder, Marked(sites="*"), resume=checkpoint)
    unmasked = Foreign(pipeline.unet)
    fit(unmasked, tmp_path / "unmasked", NeuronMasking())
    assert not all(torch.equal(a, b) for a, b in zip(unmasked.parameters(), through.parameters(), strict=True))


def test_a_run_without_flags_says_that_nothing_is_masked(
    pipeline: StableDiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LISTED.save(tmp_path / "neuron_mask.safetensors")
    module, masking = Foreign(pipeline.unet), NeuronMasking()
    with caplog.at_level(logging.WARNING, "memtrain"):
        fit(module, tmp_path, masking, epochs=1)
    assert "the pipeline is exported without a mask" in caplog.text
    assert not (tmp_path / "neuron_mask.safetensors").exists(), "an earlier run's"
    weights = [parameter.clone() for parameter in module.unet.parameters()]
    with masking.exporting(module.unet):
        assert all(torch.equal(a, b) for a, b in zip(module.unet.parameters(), weights, strict=True))


def test_the_neurons_of_a_planted_caption_are_found_and_join_the_listed_ones(tmp_path: Path) -> None:
    unet: Any = build("unet")
    masking = attach(NeuronMasking(listed(tmp_path), neurons=2), unet)
    generator = torch.Generator().manual_seed(4)
    text = torch.randn(20, 5, 16, generator=generator)
    # Words along the rows of one neuron's weights drive that neuron, and the next one of another site.
    rows = [unet.get_submodule(f"{site}.to_v").weight[channel].detach() for site, channel in ((DOWN, 7), (UP, 9))]
    text[0] = 300 * rows[0] / rows[0].norm() + 300 * rows[1] / rows[1].norm()
    masking.prepare({}, flags(True, *[False] * 19), tokenizer=None, number=0)
    unet(torch.randn(20, 4, 8, 8, generator=generator), torch.full((20,), 10), text)
    seen(masking)
    masking.synchronize(lambda value: [value])
    masking.detach()
    assert masking.mask is not None
    values = torch.cat([neuron_activation(unet.get_submodule(f"{site}.to_v")(text)) for site in SITES], dim=1)
    z = (values[0] - values[1:].mean(0)).abs() / values[1:].std(0)
    expected: dict[str, set[int]] = {DOWN: {0, 3}, MID: set(), UP: {1}}
    for neuron in z.topk(2).indices.tolist():
        expected[SITES[neuron // 16]].add(neuron % 16)
    assert masking.mask.channels == {site: sorted(channels) for site, channels in expected.items() if channels}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"neurons": 0}, "neurons=0 and mask=None"), ({"neurons": -1}, "neurons=-1")],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        NeuronMasking(**settings)


def test_a_listed_mask_of_another_model_is_refused(tmp_path: Path) -> None:
    for mask, message in (({"nowhere": [1]}, "masked sites are not in"), ({DOWN: [99]}, "names channels 99")):
        with pytest.raises(ProbeError, match=message):
            attach(NeuronMasking(listed(tmp_path, NeuronMask(mask))), build("unet"))
    with pytest.raises(ProbeError, match="is not a neuron mask"):
        NeuronMasking(str(tmp_path / "missing.safetensors"))


@pytest.mark.parametrize("count", [1, 2])
def test_captions_that_are_no_strings_are_the_hosts_own_business(tmp_path: Path, count: int) -> None:
    masking = attach(NeuronMasking(listed(tmp_path)), build("unet"))
    prepare(masking, *[True] * count, caption=torch.zeros(count, 4))
    assert [row for row, _, _ in masking._wanted] == list(range(count))
    masking.detach()


def test_a_picture_is_searched_once_for_all_its_files() -> None:
    unet: Any = build("unet")
    masking, ever = attach(NeuronMasking(), unet), torch.tensor([True, True, False])
    found = Flags(ever, ever, torch.zeros(3), keys=["k0", "k1", "k2"], families=["k0", "k0", "k2"])
    masking.prepare({}, found, tokenizer=None, number=0)
    run(unet)
    seen(masking)
    masking._search._moments = replace(masking._search._moments, count=20)
    masking.synchronize(lambda value: [value])
    assert set(masking._search.found) == {"k0"}
    assert masking._search.wanted(["k0"], [True], epoch=0) == []
    masking.prepare({}, found, tokenizer=None, number=1)
    assert masking._rows is not None
    assert masking._rows.tolist() == [True, True, False], "the rows of all files are masked"
    masking.detach()
