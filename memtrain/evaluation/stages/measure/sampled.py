"""Work of an evaluation with the model: generations, perfect copies and held-out losses, in parts that are kept.

The parts stay in `unfinished/` of the output folder until the results are written, so a killed evaluation goes on.
Several processes share the parts: the sampling batch by batch, the rest in blocks of images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import memtrain
from memtrain.detectors.base import Detector
from memtrain.evaluation.measures.heldout_loss import NOISE_BLOCK, heldout_loss
from memtrain.evaluation.sampling.generate import Trace, generate
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.measure.grounds import perfect_copies
from memtrain.evaluation.stages.parts import UNFINISHED, Done, Parts, Unit, part_of
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.evaluation.stages.shards import Shard
from memtrain.functional.memory import images_at_once
from memtrain.models.fingerprint import fingerprint


def sampled(
    given: StageInput, samples: RunSamples, detectors: Sequence[Detector], *, shard: Shard | None
) -> tuple[Trace, Tensor | None, Tensor]:
    """Return the generations of P prompts, the losses of held-out images if there are any, and the perfect copies.

    Args:
        given: the pipeline, the settings and the output folder.
        samples: the prompts and images.
        detectors: the detectors that read the same sampling.
        shard: the share of the work of this process; None to do none.

    Raises:
        UnfinishedParts: if this share is done, and the shares of other processes are not.
    """
    copies, losses = _copies(given, samples), _losses(given, samples)
    units = {**copies, **losses}
    parts = Parts(given.output / UNFINISHED, _identity(given, samples), shard=shard, progress=given.sampling.progress)
    parts.do(units, what="blocks of images")
    trace = _trace(given, samples, detectors, shard=shard)
    parts.require(units, what="blocks of images")
    found = [torch.cat([parts.read(name).tensors["found"] for name in names]) for names in (copies, losses) if names]
    return trace, found[1] if losses else None, found[0]


def _identity(given: StageInput, samples: RunSamples) -> dict[str, Any]:
    digest = hashlib.sha256(samples.own_images.contiguous().numpy().tobytes())
    if samples.heldout is not None:
        digest.update(samples.heldout[0].contiguous().numpy().tobytes())
        digest.update(repr(samples.heldout[1]).encode())
    return {
        "memtrain": memtrain.__version__,
        "pipeline": fingerprint(given.pipeline),
        "images": digest.hexdigest(),
        "size": list(samples.own_images.shape),
    }


def _copies(given: StageInput, samples: RunSamples) -> dict[str, Unit]:
    """Make units that encode and decode own images with the autoencoder."""
    own = samples.own_images
    at_once = images_at_once(int(own.shape[-2]), int(own.shape[-1]))

    def copies(start: int) -> Done:
        return Done({"found": perfect_copies(given.pipeline, own[start : start + at_once])})

    return {f"copies-{start:06d}": partial(copies, start) for start in range(0, len(own), at_once)}


def _losses(given: StageInput, samples: RunSamples) -> dict[str, Unit]:
    """Make units that measure denoising losses of held-out images; of Stable Diffusion 1 and 2 alone."""
    if samples.heldout is None or not isinstance(given.pipeline, StableDiffusionPipeline):
        return {}
    images, captions = samples.heldout

    def losses(start: int) -> Done:
        block = slice(start, start + NOISE_BLOCK)
        found = heldout_loss(given.pipeline, images[block], captions=captions[block], first_image=start)
        return Done({"found": found})

    return {f"losses-{start:06d}": partial(losses, start) for start in range(0, len(images), NOISE_BLOCK)}


def _trace(given: StageInput, samples: RunSamples, detectors: Sequence[Detector], *, shard: Shard | None) -> Trace:
    """Sample every prompt; a caption that several prompts share is sampled once."""
    captions = [prompt.caption for prompt in samples.prompts]
    texts = list(dict.fromkeys(captions))
    sampling = given.sampling.sized_as(samples.own_images)
    store = given.output / UNFINISHED
    trace = generate(given.pipeline, texts, sampling=sampling, detectors=detectors, store=store, part=part_of(shard))
    if len(texts) == len(captions):
        return trace
    place = {text: row for row, text in enumerate(texts)}
    rows = torch.tensor([place[text] for text in captions])
    readings = {name: values[rows] for name, values in trace.readings.items()}
    return Trace(tuple(captions), trace.seeds, trace.images[rows], readings)
