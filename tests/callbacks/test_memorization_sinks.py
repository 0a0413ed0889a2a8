"""Each sample trains with its own neurons of the pool, and nothing else ever sees them."""

from __future__ import annotations

import copy
import hashlib
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from memtrain.callbacks.memorization_sinks import MemorizationSinks, cheapest, sink
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evidence.flags import Flags
from memtrain.models.backbones.base import find_backbone
from memtrain.models.neuron_mask import NeuronMask
from memtrain.monitoring.host import Host
from tests.callbacks.test_monitor import Foreign, batches
from tests.conformance.families import build, call, gradient_checkpointing

DOWN = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
KEYS = ["a", "b", "c"]


def attach(unet: Any, sinks: MemorizationSinks | None = None) -> MemorizationSinks:
    sinks = sinks or MemorizationSinks(0.25, active=0.5)
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    backbone = find_backbone(unet)
    assert backbone is not None
    sinks.attach(unet, backbone=backbone, module=module)
    return sinks


def fill(unet: Any, pool: NeuronMask) -> None:
    """Put something into the pool, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for site, channels in pool.channels.items():
            weight = unet.get_submodule(f"{site}.to_v").weight
            weight[channels] = torch.randn(len(channels), weight.shape[1], generator=generator)


def prepare(sinks: MemorizationSinks, keys: list[str]) -> None:
    none = torch.zeros(len(keys), dtype=torch.bool)
    sinks.prepare({}, Flags(none, none, none.float(), keys=keys), tokenizer=None, number=0)


def test_a_sink_is_a_function_of_key_and_seed_alone() -> None:
    on = sink("a", [8, 10], active=0.25, seed=0)
    assert [int(part.sum()) for part in on.split([8, 10])] == [2, 2]
    assert torch.equal(on, sink("a", [8, 10], active=0.25, seed=0))
    others = [sink(key, [8, 10], active=0.25, seed=seed) for key, seed in (("b", 0), ("a", 1))]
    assert not any(torch.equal(on, other) for other in others)
    assert int(sink("a", [3], active=0.01, seed=0).sum()) == 1
    # So that no other version or machine draws other sinks.
    draws = struct.unpack("<18q", hashlib.shake_256(b"0:a").digest(8 * 18))
    smallest = [sorted(part, key=draws.__getitem__)[:2] for part in (range(8), range(8, 18))]
    assert on.nonzero().flatten().tolist() == sorted(smallest[0]) + sorted(smallest[1]) == [6, 7, 12, 14]


def test_all_neurons_of_the_pool_are_used_alike() -> None:
    counts = torch.stack([sink(f"sample {index}", [20], active=0.25, seed=0) for index in range(4000)]).sum(0)
    # Binomial with 4,000 draws of ¼: standard deviation 27.
    assert bool(((counts - 1000).abs() < 5 * 27).all())


def test_the_pool_is_what_adds_least() -> None:
    attention = nn.Module()
    attention.to_out = nn.ModuleList([nn.Linear(4, 2, bias=False)])
    values = nn.Linear(2, 4, bias=False)
    with torch.no_grad():
        values.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [0.0, 2.0]]))
        attention.to_out[0].weight.copy_(torch.tensor([[0.0, 3.0, 0.0, 9.0], [1.0, 4.0, 0.1, 0.0]]))
    # Products of norms: 5, 5, 1, 18; of equals the first.
    assert cheapest(attention, values, 0.25) == [2]
    assert cheapest(attention, values, 0.5) == [0, 2]
    assert cheapest(attention, values, 0.01) == [2]


def test_at_the_start_the_sinks_change_nothing_but_that_the_pool_is_gone() -> None:
    unet: Any = build("unet")
    arguments, _ = call("unet")
    plain = unet(**arguments).sample
    sinks = attach(unet)
    assert sinks.pool is not None
    assert all(len(channels) == 4 for channels in sinks.pool.channels.values())
    prepare(sinks, KEYS)
    training = unet(**arguments).sample
    with torch.no_grad():
        measured = unet(**arguments).sample
    assert torch.equal(training, measured)
    assert (training - plain).abs().max() > 1e-4
    fresh: Any = build("unet")
    with sinks.pool.on(fresh):
        assert torch.equal(fresh(**arguments).sample, measured)
    sinks.detach()
    assert torch.equal(unet(**arguments).sample, measured), "the weights are zero"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())


def test_training_rows_see_their_own_sink_and_other_forwards_none() -> None:
    unet: Any = build("unet")
    sinks = attach(unet)
    assert sinks.pool is not None
    fill(unet, sinks.pool)
    arguments, _ = call("unet")
    prepare(sinks, ["a", "b", "a"])
    kept: list[Tensor] = []
    unet.get_submodule(f"{DOWN}.to_v").register_forward_hook(lambda module, args, out: kept.append(out.detach()))
    unet(**arguments)
    with torch.no_grad():
        unet(**arguments)
    raw = unet.get_submodule(f"{DOWN}.to_v").weight @ arguments["encoder_hidden_states"].mT
    pools = sinks.pool.channels
    sizes = [len(channels) for channels in pools.values()]
    first = list(pools).index(DOWN)
    for row, key in enumerate(["a", "b", "a"]):
        own = sink(key, sizes, active=0.5, seed=0).split(sizes)[first]
        assert int(own.sum()) == 2
        off = torch.tensor(pools[DOWN])[~own]
        expected = raw[row].T.clone()
        expected[:, off] = 0
        torch.testing.assert_close(kept[0][row], expected)
        assert not kept[0][row][:, off].any()
        expected[:, pools[DOWN]] = 0
        torch.testing.assert_close(kept[1][row], expected)
        assert not kept[1][row][:, pools[DOWN]].any()
    sinks.detach()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_sample_changes_its_own_sink_and_no_other(checkpointing: bool) -> None:
    unet: Any = build("unet")
    if checkpointing:
        gradient_checkpointing(unet, reentrant=False)
    sinks = attach(unet)
    assert sinks.pool is not None
    fill(unet, sinks.pool)
    arguments, _ = call("unet", batch=1)
    prepare(sinks, ["a"])
    unet(**arguments).sample.square().mean().backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())
    sizes = [len(channels) for channels in sinks.pool.channels.values()]
    parts = sink("a", sizes, active=0.5, seed=0).split(sizes)
    for (site, channels), own in zip(sinks.pool.channels.items(), parts, strict=True):
        gradient = unet.get_submodule(f"{site}.to_v").weight.grad.abs().amax(dim=1)
        shared = torch.ones(16, dtype=torch.bool)
        shared[channels] = False
        assert not gradient[channels][~own].any()
        assert gradient[channels][own].min() > 0
        assert gradient[shared].min() > 0
    sinks.detach()


def test_the_exported_weights_are_the_model_without_its_pool() -> None:
    unet: Any = build("unet")
    sinks = attach(unet)
    assert sinks.pool is not None
    fill(unet, sinks.pool)
    arguments, _ = call("unet")
    with torch.no_grad():
        hooked = unet(**arguments).sample
    sinks.detach()
    before = copy.deepcopy(unet.state_dict())
    with sinks.exporting(unet), torch.no_grad():
        torch.testing.assert_close(unet(**arguments).sample, hooked, atol=1e-6, rtol=0)
        for site, channels in sinks.pool.channels.items():
            assert not unet.get_submodule(f"{site}.to_v").weight[channels].any()
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    with torch.no_grad():
        assert (unet(**arguments).sample - hooked).abs().max() > 1e-3


def test_a_resumed_run_keeps_its_pool_and_what_is_in_it() -> None:
    unet: Any = build("unet")
    sinks = attach(unet)
    sinks.detach()
    trained: Any = build("unet")
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    before = copy.deepcopy(trained.state_dict())
    resumed = MemorizationSinks(0.25, active=0.5)
    resumed.load_state_dict(sinks.state_dict())
    attach(trained, resumed).detach()
    assert resumed.pool is not None
    assert sinks.pool is not None
    assert resumed.pool.channels == sinks.pool.channels
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize("family", ["pixart", "sd3"])
def test_other_families(family: str) -> None:
    model: Any = build(family)
    sinks = attach(model)
    prepare(sinks, KEYS)
    arguments, _ = call(family)
    training = model(**arguments).sample
    with torch.no_grad():
        assert torch.equal(model(**arguments).sample, training)
    sinks.forward_done(Host(None))
    sinks.detach()


def fit(module: Foreign, folder: Path, sinks: MemorizationSinks, *, resume: Path | None = None) -> None:
    keep = [ModelCheckpoint(folder / "checkpoints", "{epoch}", save_top_k=-1)] if resume is None else []
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[MemorizationMonitor(reference=False), sinks, *keep],
        logger=False,
        enable_checkpointing=resume is None,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
        accelerator="cpu",
    )
    trainer.fit(module, batches(), ckpt_path=resume)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_a_resumed_run_equals_the_uninterrupted_one(
    pipeline: StableDiffusionPipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    through, sinks = Foreign(pipeline.unet), MemorizationSinks(0.25)
    fit(through, tmp_path / "through", sinks)
    assert sinks.pool is not None
    shutil.copytree(tmp_path / "through", tmp_path / "again")
    resumed, again = Foreign(pipeline.unet), MemorizationSinks(0.25)
    checkpoint = tmp_path / "again" / "checkpoints" / "epoch=0.ckpt"
    fit(resumed, tmp_path / "again", again, resume=checkpoint)
    assert again.pool is not None
    assert again.pool.channels == sinks.pool.channels
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), through.parameters(), strict=True))
    for site, channels in again.pool.channels.items():
        assert resumed.unet.get_submodule(f"{site}.to_v").weight[channels].any(), "the sinks took something up"
    left = NeuronMask.load(tmp_path / "through" / "memorization_sinks.safetensors")
    assert "NeuronMask.load" in caplog.text, "nothing exports it"
    left.bake(through.unet)
    for site, channels in again.pool.channels.items():
        assert not through.unet.get_submodule(f"{site}.to_v").weight[channels].any()
    with pytest.raises(ConfigurationError, match="The checkpoint has sinks at"):
        fit(resumed, tmp_path / "again", MemorizationSinks(sites="*"), resume=checkpoint)


def test_a_forward_that_passes_by_a_site_raises() -> None:
    unet: Any = build("unet")
    sinks = attach(unet)
    prepare(sinks, KEYS)
    unet.get_submodule(f"{DOWN}.to_v")._forward_hooks.clear()
    unet(**call("unet")[0]).sample.mean()
    with pytest.raises(ProbeError, match="1 of 3 masked sites were not reached"):
        sinks.forward_done(Host(None))
    sinks.detach()


def test_values_that_do_not_train_or_have_adapters_are_refused() -> None:
    unet: Any = build("unet")
    unet.get_submodule(f"{DOWN}.to_v").requires_grad_(False)
    with pytest.raises(ConfigurationError, match="The value projections of 1 of 3 sites do not train"):
        attach(unet)
    adapted: Any = build("unet")
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["attn2.to_v"]), adapted)
    adapted.requires_grad_(True)
    with pytest.raises(ProbeError, match="merge adapters"):
        attach(adapted)


@pytest.mark.parametrize("settings", [{"pool": 0.0}, {"pool": 1.0}, {"active": 0.0}, {"active": 1.5}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="above 0"):
        MemorizationSinks(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_sample_one_and_two_have_a_sink_each(count: int) -> None:
    sinks = attach(build("unet"))
    assert sinks.pool is not None
    prepare(sinks, KEYS[:count])
    for site, channels in sinks.pool.channels.items():
        on = sinks._on[site]
        assert len(on) == count
        assert on[:, channels].sum(dim=1).tolist() == [2] * count, "half of a pool of four"
    sinks.detach()


def test_the_files_of_a_picture_share_a_sink(pipeline: StableDiffusionPipeline) -> None:
    sinks, none = attach(copy.deepcopy(pipeline.unet)), torch.zeros(3, dtype=torch.bool)
    flags = Flags(none, none, none.float(), keys=["a", "b", "c"], families=["a", "a", "c"])
    sinks.prepare({}, flags, tokenizer=None, number=0)
    on = sinks._on[DOWN]
    assert torch.equal(on[0], on[1])
    assert not torch.equal(on[0], on[2])
    sinks.detach()
