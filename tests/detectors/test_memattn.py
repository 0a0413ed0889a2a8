"""MemAttn's two scores against the published formula, in double precision from what reaches the attention."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.overrides import TorchFunctionMode

from memtrain.detectors.base import DenoiserStep
from memtrain.detectors.memattn import MemAttn
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evaluation.sampling.generate import generate, read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from tests.detectors.conftest import GUIDANCE, SEEDS, sample_by_hand

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
        "D published": float(every[-last:].mean() + change.mean()),
        "D": float(every[-last:].mean() + change.abs().mean()),
    }


def test_both_scores_are_the_published_ones_in_any_batch(pipeline: StableDiffusionPipeline) -> None:
    pipeline.set_progress_bar_config(disable=True)
    detectors = {"E": MemAttn("E"), "D": MemAttn("D"), "D published": MemAttn("D", published=True)}
    trace = generate(
        pipeline,
        PROMPTS,
        sampling=Sampling(seeds=[0, 5], steps=10, guidance_scale=4.0, batch_size=4, progress=False),
        detectors=list(detectors.values()),
    )
    for row, prompt in enumerate(PROMPTS):
        for column, seed in enumerate([0, 5]):
            expected = published(pipeline, prompt, seed, 10)
            for name, detector in detectors.items():
                score = detector.score_images(trace.readings[detector.name])[row, column]
                assert float(score) == pytest.approx(expected[name], abs=2e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipeline.unet.modules())


def uneven(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """A copy in double precision whose blocks have 2 and 4 heads, as those of Stable Diffusion 2 have 5, 10 and 20."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 16),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=(2, 4),
            norm_num_groups=4,
        )
    parts = {**pipeline.components, "unet": unet.eval(), "text_encoder": copy.deepcopy(pipeline.text_encoder)}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def test_layers_with_different_heads_count_alike(pipeline: StableDiffusionPipeline) -> None:
    """Against maps of a softmax written out, in NumPy: pixels, then heads, then layers, then the entropy."""
    steps, many = 10, uneven(pipeline)
    many.unet.to(torch.float64)
    many.text_encoder.to(torch.float64)
    detectors = [MemAttn("E"), MemAttn("E", layers=(1, 4)), MemAttn("D"), MemAttn("D", published=True)]
    options = {"seeds": SEEDS, "steps": steps, "guidance_scale": GUIDANCE, "batch_size": 4, "progress": False}
    readings = read_prompts_with(many, PROMPTS, detectors, sampling=Sampling(**options))
    for row, prompt in enumerate(PROMPTS):
        for column, seed in enumerate(SEEDS):
            seen = sample_by_hand(many, prompt, seed, steps)
            assert {len(site) for site in seen.maps[0]} == {2, 4}
            layers = np.array([[site.mean(dim=1).mean(dim=0).numpy() for site in call] for call in seen.maps])

            def entropy(p: np.ndarray) -> np.ndarray:
                return -(p * np.log(p)).sum(axis=-1)

            average = layers.mean(axis=1)
            padding = entropy(average[:, seen.length - 1 :])
            change = padding[-2:] - padding[0]
            expected = [
                entropy(layers[0, 3]),
                entropy(layers[0, [1, 4]].mean(axis=0)),
                entropy(average[-2:]).mean() + np.abs(change).mean(),
                entropy(average[-2:]).mean() + padding[-2:].mean() - padding[0],
            ]
            found = [float(detector.score_images(readings[detector.name])[row, column]) for detector in detectors]
            assert found == pytest.approx(expected, rel=2e-6)


def test_attention_of_exactly_zero_counts_nothing() -> None:
    """The published code makes it NaN."""
    attention = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    step = DenoiserStep(
        0,
        981.0,
        torch.zeros(2, 1, 1, 1),
        None,
        token_attention=dict.fromkeys("abcd", attention),
        prompt_length=torch.tensor([2, 3]),
    )
    reading = MemAttn("D").read(step)
    assert reading is not None
    half = 0.5 * math.log(2)
    torch.testing.assert_close(reading, torch.tensor([[2 * half, half], [0.0, 0.0]]))


def test_only_the_calls_that_count_are_kept(pipeline: StableDiffusionPipeline) -> None:
    trace = generate(
        pipeline,
        ["a"],
        sampling=Sampling(seeds=[0], steps=10, progress=False),
        detectors=[MemAttn("E"), MemAttn("D")],
    )
    assert trace.readings["memattn_e"].shape == (1, 1, 1, 2)
    assert trace.readings["memattn_d"].shape == (1, 1, 3, 2)


def test_names_tell_the_configuration() -> None:
    assert MemAttn("E").name == "memattn_e"
    assert MemAttn("D", published=True).name == "memattn_d_published"
    assert MemAttn("E", layers=(0, 2)).name == "memattn_e_layers_0_2"


def test_layers_that_do_not_exist_are_refused(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(ConfigurationError, match="no layers"):
        MemAttn(layers=())
    with pytest.raises(ProbeError, match="reads layer 9, but the denoiser has 4"):
        generate(pipeline, ["a"], sampling=Sampling(seeds=[0], steps=1), detectors=[MemAttn("E", layers=(9,))])
