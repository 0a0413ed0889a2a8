"""MemAttn's two scores against the published formula, in double precision from what reaches the attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.overrides import TorchFunctionMode

from memtrain.detectors.memattn import MemAttn
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evaluation.generate import generate

PROMPTS = ["a cat", "the dogs", "b"]
TOKENS = 12


class Tap(TorchFunctionMode):
    """Token attention `(rows, heads, T)` of every cross-attention, averaged over image tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and args[1].shape[2] == TOKENS != args[0].shape[2]:
            logits = args[0].double() @ args[1].double().transpose(-1, -2) / args[0].shape[-1] ** 0.5
            self.seen.append(logits.softmax(-1).mean(dim=2))
        return func(*args, **(kwargs or {}))


def published(pipeline: StableDiffusionPipeline, prompt: str, seed: int, steps: int) -> dict[str, float]:
    """One prompt and one image at a time, as the authors' scripts go."""
    with Tap() as tap:
        pipeline(
            prompt,
            num_inference_steps=steps,
            guidance_scale=4.0,
            output_type="latent",
            generator=torch.Generator().manual_seed(seed),
        )
    maps = torch.stack([conditional[1] for conditional in tap.seen]).view(steps, -1, 2, TOKENS)
    length = len(pipeline.tokenizer(prompt).input_ids)

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.log()).sum(-1)

    average = maps.mean(dim=(1, 2))
    every, padding = entropy(average), entropy(average[:, length - 1 :])
    last = steps // 5
    change = padding[-last:] - padding[0]
    return {
        "E": float(entropy(maps[0, 3].mean(dim=0))),
        "D reference": float(every[-last:].mean() + change.mean()),
        "D": float(every[-last:].mean() + change.abs().mean()),
    }


def test_both_scores_are_the_published_ones_in_any_batch(pipeline: StableDiffusionPipeline) -> None:
    pipeline.set_progress_bar_config(disable=True)
    detectors = {"E": MemAttn("E"), "D": MemAttn("D"), "D reference": MemAttn("D", reference=True)}
    trace = generate(
        pipeline,
        PROMPTS,
        seeds=[0, 5],
        steps=10,
        guidance_scale=4.0,
        detectors=list(detectors.values()),
        batch_size=4,
        progress=False,
    )
    for row, prompt in enumerate(PROMPTS):
        for column, seed in enumerate([0, 5]):
            expected = published(pipeline, prompt, seed, 10)
            for name, detector in detectors.items():
                score = detector.score_images(trace.readings[detector.name])[row, column]
                assert float(score) == pytest.approx(expected[name], abs=2e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipeline.unet.modules())


def test_only_the_calls_that_count_are_kept(pipeline: StableDiffusionPipeline) -> None:
    trace = generate(
        pipeline,
        ["a"],
        seeds=[0],
        steps=10,
        detectors=[MemAttn("E"), MemAttn("D")],
        progress=False,
    )
    assert trace.readings["memattn_e"].shape == (1, 1, 1, 2)
    assert trace.readings["memattn_d"].shape == (1, 1, 3, 2)


def test_names_tell_the_configuration() -> None:
    assert MemAttn("E").name == "memattn_e"
    assert MemAttn("D", reference=True).name == "memattn_d_reference"
    assert MemAttn("E", layers=(0, 2)).name == "memattn_e_layers_0_2"


def test_layers_that_do_not_exist_are_refused(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(ConfigurationError, match="without a layer"):
        MemAttn(layers=())
    with pytest.raises(ProbeError, match="reads layer 9, but the denoiser has 4"):
        generate(pipeline, ["a"], seeds=[0], steps=1, detectors=[MemAttn("E", layers=(9,))], progress=False)
