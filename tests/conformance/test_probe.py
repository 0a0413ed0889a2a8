"""Every backbone in every situation: the probe reads what the attention computes, and changes nothing.

The oracle taps what reaches scaled_dot_product_attention in an eager forward without any hook, and computes the
readings from it in double precision (probe_oracle.py). Compiled and distributed denoisers have files of their own.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn

from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.errors import ProbeError
from memtrain.evidence.flags import Flags
from memtrain.models.backbones.base import backbones, find_backbone
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.models.transfer import to_device
from memtrain.monitoring.visits import Visits
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.denoising_loss import DenoisingLoss
from tests.conformance.families import FAMILIES, TEXT, build, call, gradient_checkpointing
from tests.conformance.probe_oracle import (
    EVERY,
    JOINT,
    assert_no_hooks,
    assert_reads,
    assert_same,
    gradients,
    observe,
    oracle,
    plain,
)

LORA = LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)


def test_every_backbone_has_a_family_here() -> None:
    assert {type(find_backbone(build(family))) for family in FAMILIES} == set(backbones())


@EVERY
def test_eager(family: str, model: nn.Module) -> None:
    """Queries and keys bit for bit, readings to 1e-6, and not a bit of any gradient changed."""
    expected, untouched = oracle(family, model), plain(family, model)
    with DenoiserProbe(model, sites="*") as probe:
        seen = []
        project = probe.backbone.project
        probe.backbone.project = lambda *a, **k: seen.append(project(*a, **k)) or seen[-1]  # type: ignore[method-assign]
        observation, found = observe(family, model, probe)
        assert list(observation.token_attention) == list(probe.sites)
    assert_reads(observation, expected)
    for projection, truth in zip(seen, expected, strict=True):
        assert torch.equal(projection.query, truth["query"])
        assert torch.equal(projection.key, truth["key"])
    assert_same(found, untouched)
    torch.testing.assert_close(observation.timesteps.double(), call(family)[1].double(), atol=1e-4, rtol=0)
    assert observation.text_embeddings.shape[:2] == (3, TEXT)


@pytest.mark.parametrize("family", JOINT)
def test_mass_on_text(family: str, model: nn.Module) -> None:
    expected = oracle(family, model)
    with DenoiserProbe(model, sites="*", text_mass=True) as probe:
        observation, _ = observe(family, model, probe)
    for mass, truth in zip(observation.text_mass.values(), expected, strict=True):
        torch.testing.assert_close(mass.double(), truth["mass"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["unet", "pixart"])
def test_mass_on_text_is_refused_where_it_is_everything(family: str, model: nn.Module) -> None:
    with pytest.raises(ProbeError, match="no joint attention"):
        DenoiserProbe(model, text_mass=True)


def by_hand(family: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Gradients of loss + 10 × mean entropy, the entropy taken from what reaches the attention, graph and all."""
    kept: list[Tensor] = []
    original = F.scaled_dot_product_attention

    def tap(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if key.shape[2] in (TEXT, TEXT + 16):
            image = slice(0, 16) if family == "sd3" else slice(TEXT, None) if family == "flux" else slice(None)
            text = slice(16, None) if family == "sd3" else slice(0, TEXT)
            logits = query[:, :, image] @ key[:, :, text].transpose(-1, -2) / query.shape[-1] ** 0.5
            mask = kwargs.get("attn_mask")
            average = torch.softmax(logits if mask is None else logits + mask, dim=-1).mean(dim=(1, 2))
            kept.append(-(average * average.clamp(min=1e-30).log()).sum(-1))
        return original(query, key, value, *args, **kwargs)

    model.zero_grad()
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", tap)
        patch.setattr("diffusers.models.attention_dispatch.F.scaled_dot_product_attention", tap)
        loss = model(**call(family)[0]).sample.square().mean()
        (loss + 10 * torch.stack(kept).mean()).backward()
    return gradients(model)


@EVERY
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_penalty_has_the_gradient_of_the_definition(
    family: str, model: nn.Module, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, without = by_hand(family, model, monkeypatch), plain(family, model)
    if checkpointing:
        gradient_checkpointing(model, reentrant=False)
    with DenoiserProbe(model, sites="*", differentiable=True) as probe:
        _, found = observe(family, model, probe, penalty=10.0)
    assert_same(found, expected, exact=False)
    assert max(float((a - b).abs().max()) for a, b in zip(expected, without, strict=True)) > 1e-4


@EVERY
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(family: str, model: nn.Module, reentrant: bool) -> None:
    expected = oracle(family, model)
    gradient_checkpointing(model, reentrant)
    # Reentrant checkpointing hands no gradient through inputs that need none.
    arguments = call(family)[0]
    first = next(iter(arguments))
    arguments[first] = arguments[first].clone().requires_grad_()
    model.zero_grad()
    model(**arguments).sample.square().mean().backward()
    untouched = gradients(model)
    with DenoiserProbe(model, sites="*") as probe:
        observation, found = observe(family, model, probe, lambda: model(**arguments))
    assert_reads(observation, expected)
    assert_same(found, untouched)


@EVERY
def test_a_penalty_under_reentrant_checkpointing_is_refused(family: str, model: nn.Module) -> None:
    gradient_checkpointing(model, reentrant=True)
    with pytest.raises(ProbeError, match=r"is checkpointed reentrantly(.|\n)*use_reentrant=False"):
        DenoiserProbe(model, differentiable=True).attach()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    DenoiserProbe(model).attach().detach()
    model.disable_gradient_checkpointing()
    with DenoiserProbe(model, differentiable=True) as probe:
        gradient_checkpointing(model, reentrant=True)
        with pytest.raises(ProbeError, match="use_reentrant=False"):
            observe(family, model, probe, penalty=10.0)


@EVERY
@pytest.mark.parametrize("order", ["lora first", "probe first", "peft wrapper"])
def test_lora(family: str, model: Any, order: str) -> None:
    before = oracle(family, model)
    host: Any = model
    if order == "lora first":
        inject_adapter_in_model(LORA, model)
    elif order == "peft wrapper":
        host = get_peft_model(model, LORA)
    with DenoiserProbe(host, sites="*") as probe:
        if order == "probe first":
            inject_adapter_in_model(LORA, model)
        observation, found = observe(family, host, probe, lambda: host(**call(family)[0]))
    expected = oracle(family, model)
    assert_reads(observation, expected)
    assert (before[0]["attention"] - expected[0]["attention"]).abs().max() > 1e-6
    assert any(gradient.any() for gradient in found)
    assert_no_hooks(host)


@pytest.mark.filterwarnings(
    # Flux's norms mix types under autocast, with or without a probe: https://docs.pytorch.org/docs/stable/amp.html
    "ignore:Mismatch dtype between input and weight:UserWarning"
)
@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(family: str, model: nn.Module, dtype: torch.dtype) -> None:
    """Half-precision queries and keys, arithmetic in fp32."""
    if family == "sana" and dtype == torch.float16:
        pytest.skip("its linear attention divides 0 by 0 in fp16, where no feature is positive")

    def forward() -> Any:
        with torch.autocast("cpu", dtype):
            return model(**call(family)[0])

    expected = oracle(family, model, forward)
    assert expected[0]["query"].dtype == dtype or family in ("sana", "sd3", "flux")
    with DenoiserProbe(model, sites="*") as probe:
        observation, _ = observe(family, model, probe, forward)
    assert_reads(observation, expected)


@EVERY
def test_weights_that_are_swapped_are_read_as_they_are(family: str, model: nn.Module) -> None:
    """An average that is copied in for a while."""
    with DenoiserProbe(model, sites="*") as probe:
        observe(family, model, probe)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        expected = oracle(family, model)
        assert_reads(observe(family, model, probe)[0], expected)


@EVERY
def test_sampling_and_extra_forwards_are_not_counted(family: str, model: nn.Module) -> None:
    arguments, timesteps = call(family)
    with DenoiserProbe(model, sites="*") as probe:
        with torch.no_grad():
            model(**call(family, 2)[0])

        def forward() -> Any:
            with torch.no_grad():
                model(**call(family, 2)[0])
            model.eval()
            result = model(**arguments)
            with torch.no_grad():
                model(**call(family, 1)[0])
            return result

        observation, _ = observe(family, model, probe, forward)
    assert_reads(observation, oracle(family, model))
    assert len(observation.timesteps) == len(timesteps)


@EVERY
def test_accumulated_batches_are_observed_one_by_one(family: str, model: nn.Module) -> None:
    expected, twice = oracle(family, model), [2 * gradient for gradient in plain(family, model)]
    model.zero_grad()
    with DenoiserProbe(model, sites="*") as probe:
        for _ in range(2):
            probe.begin(Observation(["a", "b", "c"]))
            model(**call(family)[0]).sample.square().mean().backward()
            assert_reads(probe.end(), expected)
    assert_same(gradients(model), twice)


@EVERY
def test_fused_projections_raise(family: str, model: Any) -> None:
    if hasattr(model, "fuse_qkv_projections"):
        model.fuse_qkv_projections()
    for module in DenoiserProbe(model, sites="*").sites.values():
        module.fused_projections = True
    with DenoiserProbe(model) as probe, pytest.raises(ProbeError, match="unfuse_qkv_projections"):
        observe(family, model, probe)


@EVERY
def test_no_hook_is_left_after_an_exception(family: str, model: nn.Module) -> None:
    arguments = call(family)[0]
    arguments["encoder_hidden_states"] = torch.randn(3, TEXT, 5)
    with pytest.raises(RuntimeError), DenoiserProbe(model) as probe:
        observe(family, model, probe, lambda: model(**arguments))
    assert_no_hooks(model)


@EVERY
def test_a_measurement_needs_no_gradient(family: str, model: nn.Module) -> None:
    with (
        DenoiserProbe(model, sites="*", differentiable=True) as probe,
        probe.measure(Observation(["a", "b", "c"])) as observation,
    ):
        model(**call(family)[0])
    assert_reads(observation, oracle(family, model))


@EVERY
def test_nothing_waits_for_the_device(family: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device every read of a value raises, as every read on a GPU would wait."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # knows no meta device
    model.to("meta")
    arguments, _ = call(family)
    arguments = {key: value.to("meta") if isinstance(value, Tensor) else value for key, value in arguments.items()}
    if family == "sdxl":
        arguments["added_cond_kwargs"] = {k: v.to("meta") for k, v in arguments["added_cond_kwargs"].items()}
    sent: list[Tensor] = []
    monkeypatch.setattr("memtrain.monitoring.visits.HostCopy", sent.append)
    flags = Flags(
        *(to_device(part, torch.device("meta")) for part in (torch.ones(3) > 0, torch.ones(3) > 0, torch.ones(3)))
    )
    signals = (DenoisingLoss(), AttentionEntropy())
    with DenoiserProbe(model) as probe:
        probe.begin(Observation(["a", "b", "c"]), lambda seen: SampleSkipping().weights(seen, flags))
        model(**arguments).sample.square().mean().backward()
        observation = probe.end()
    Visits.pack(observation, torch.ones(3), torch.cat([signal(observation) for signal in signals], dim=1))
    assert [tensor.device.type for tensor in sent] == ["meta"]
    assert sent[0].shape == (3, 3 + 1 + len(probe.sites))


@pytest.mark.parametrize("family", ["pixart"])
def test_a_predicted_variance_is_no_residual(family: str, model: nn.Module) -> None:
    """PixArt returns noise and variance; only the gradient of the noise says how well it was denoised."""
    with DenoiserProbe(model) as probe:
        probe.begin(observation := Observation(["a", "b", "c"]))
        model(**call(family)[0]).sample.chunk(2, dim=1)[0].square().mean().backward()
        probe.end()
    assert observation.gradient is not None
    assert observation.gradient.shape == (3, 4, 8, 8)
