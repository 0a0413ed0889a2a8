"""Score prompts for memorization, find the neurons of one of them, and sample with these neurons off.

    memtrain train --config tiny_baseline
    python examples/detect_and_mask.py

The model is that of the run before, which repeated ten pictures 200 times each. `flagged.csv` of the run names them, so
its captions are prompts that the model has memorized. Ordinary captions stand beside them: a score means something only
in comparison.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.data.source import open_source
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.noise_similarity import NoiseSimilarity
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.localization.contribution import locate_contributions


def likeness(images: Tensor) -> Tensor:
    """How alike the seeds of each prompt are, `(P,)`: 1 minus the mean distance between them, of pixels from 0 to 1.

    A memorized prompt gives one picture whatever the seed is.
    """
    pixels = images.float().flatten(2) / 255
    distance = (pixels.unsqueeze(1) - pixels.unsqueeze(2)).abs().mean(dim=3)
    seeds = pixels.shape[1]
    return 1 - distance.sum(dim=(1, 2)) / (seeds * (seeds - 1))


def main(
    model: str = "runs/tiny_baseline/pipeline",
    flagged: Sequence[str] | None = None,
    *,
    ordinary: int = 24,
    steps: int = 20,
    share: float = 0.4,
) -> dict[str, float]:
    """Print scores, and how alike the seeds of the worst prompt are before and after the mask.

    Args:
        model: a folder of a Stable Diffusion pipeline.
        flagged: captions that may be memorized; default the first eight of the run's `flagged.csv`.
        ordinary: the number of captions to compare with, from the clip art.
        steps: the sampling steps.
        share: the share of all value neurons that a mask switches off. A large model needs less than the embedded one.
    """
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, torch_dtype=torch.float32)
    if flagged is None:
        with (Path(model).parent / "flagged.csv").open(encoding="utf-8", newline="") as file:
            flagged = list(dict.fromkeys(row["caption"] for row in csv.DictReader(file)))[:8]
    captions = [one.caption for one in open_source("assets/clipart-pd.tar").samples]
    others = [text for text in dict.fromkeys(captions[::-1]) if text not in flagged][:ordinary]

    # One sampling serves all detectors: they read the denoiser while it works.
    detectors = [GuidanceNorm(), NoiseSimilarity()]
    sampling = Sampling(seeds=(0, 1, 2, 3), steps=steps, progress=False)
    trace = generate(pipeline, [*flagged, *others], sampling=sampling, detectors=detectors)
    scores = {detector.name: detector.score(trace.readings[detector.name]) for detector in detectors}
    for name, values in scores.items():
        above = (values[: len(flagged)] > values[len(flagged) :].max()).sum()
        print(f"{name}: {above} of {len(flagged)} flagged captions lie above all {len(others)} ordinary ones")

    worst = int(scores[detectors[0].name][: len(flagged)].argmax())
    prompt = flagged[worst]
    # The threshold 0 takes the prompt as memorized; by default it is calibrated on the other prompts.
    found = locate_contributions(pipeline, [prompt], other_prompts=others, share=share, threshold=0.0)
    mask = found[prompt]
    with mask.on(pipeline.unet):  # the weights stay as they are; `mask.bake(unet)` writes it into them
        masked = generate(pipeline, [prompt], sampling=sampling)
    before, after = float(likeness(trace.images[[worst]])), float(likeness(masked.images))
    print(f"{prompt!r}: {len(mask)} neurons off; likeness of the seeds {before:.3f} before, {after:.3f} after")
    return {"neurons": len(mask), "before": before, "after": after}


if __name__ == "__main__":
    main()
