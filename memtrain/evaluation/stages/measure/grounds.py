"""Grounds for clearing a model: checks that the evaluation would have seen a copy if there were one.

Without each of these checks the evaluation has missed an obvious copy:

- *twins*: the data may hold a picture under many names that nobody has found. The nearest training images of a copy are
  then its own twins, and its ratio is 1. So each sampled picture's own image is compared with the training images
  nearest to it.
- *perfect copies*: the own image, encoded and decoded by the model's autoencoder, is the best copy that the model can
  make. A picture whose perfect copy does not count as a copy cannot be judged.
- *held-out copies*: a held-out image that is also a training image comes back like one, and lowers the threshold. Such
  images are left out of the calibration.
- *sampling*: samples are no pictures if they have one flat colour, are alike for all prompts, or are far from every
  training image.
- *copies elsewhere*: a training picture may come back for the caption of another picture.

Distances are relative to the typical distance of two pictures of the run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memtrain.evaluation.measures.replication import Replication, replication
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.measure.samples import counted_as, picture_numbers
from memtrain.evaluation.stages.measure.verdict import Reason
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.functional.memory import images_at_once
from memtrain.functional.pixel_distance import centred_pixels, squared_distances, unit_distance
from memtrain.functional.pixels import to_uint8
from memtrain.models.encoding import decode_latents, encode_images
from memtrain.records import NEVER_TRAINED

TYPICAL = 64
"""Number of pictures whose pairs give the typical distance."""
TWIN = 0.15
"""Mean distance to the ten nearest training images, in typical distances, below which a picture has twins. In data that
hold every picture once, it is 0.3 or more."""
COPY = 0.05
"""Distance to a training image, in typical distances, below which a held-out image is a copy of it."""
NEAREST = 10
"""Number of nearest training images that are checked for twins."""
UNSEEN = 0.05
"""Largest share of a group whose copies may be missed."""
ALIKE, FAR = 0.3, 1.35
"""Bounds for samples that are pictures: the smallest spread of the samples over the spread of the pictures, and the
largest distance of the samples to training images over that of the pictures. One sampling step gives 0.01 and 1.5, two
steps 0.9 and 1.1, good samples 0.7 to 1.1 and 1.0."""
FEWEST_CAPTIONS = 8
"""Number of different captions whose first images give the spread of samples; for fewer captions, all images do."""
FEWEST_SEEDS, FEWEST_STEPS = 3, 5
"""Smallest numbers of images per prompt and of sampling steps that can clear a model."""
PLAIN = 0.5
"""Factor of the threshold below which a generation counts as a copy of another caption's picture."""
FALLBACK_THRESHOLD = 0.5
"""Ratio below which pictures count as reproduced if no held-out prompts set a threshold."""


def typical_distance(images: Tensor) -> float:
    """Return the median distance of two different images of `(n, 3, H, W)`; 0 if no two images differ."""
    rows = torch.linspace(0, len(images) - 1, min(TYPICAL, len(images))).round().long()
    pixels = centred_pixels(images[rows])
    distances = unit_distance(squared_distances(pixels, pixels).triu(diagonal=1))
    different = distances[distances > 0]
    return float(different.median()) if len(different) else 0.0


def heldout_copies(images: Tensor, training: Tensor, *, typical: float) -> Tensor:
    """Find the held-out images that are also training images, or nearly so.

    Args:
        images: the held-out images, `(n, 3, H, W)` uint8.
        training: the training images, `(M, 3, H, W)` uint8.
        typical: the typical distance of two pictures.

    Returns:
        `(n,)` bool.
    """
    if not len(images):
        return torch.zeros(0, dtype=torch.bool)
    nowhere = torch.full((len(images),), -1)
    nearest = replication(images[:, None], images, training=training, own_index=nowhere, neighbours=1).nearest_distance
    return nearest[:, 0] <= COPY * typical


@torch.no_grad()
def perfect_copies(pipeline: Any, images: Tensor) -> Tensor:
    """Encode and decode images `(n, 3, H, W)` uint8 with the pipeline's autoencoder."""
    at_once = images_at_once(int(images.shape[-2]), int(images.shape[-1]))
    return torch.cat(
        [
            to_uint8(decode_latents(pipeline.vae, encode_images(pipeline.vae, part)).float().cpu())
            for part in images.split(at_once)
        ]
    )


def unseen(
    samples: RunSamples, copies: Tensor, *, own_index: Tensor, shared: list[list[int]], threshold: float, typical: float
) -> Tensor:
    """Find the training prompts for which a copy would not be counted.

    Args:
        samples: the samples of P prompts.
        copies: the perfect copies, `(P, 3, H, W)` uint8, from :func:`perfect_copies`.
        own_index: the index of each own image among the training images, `(P,)`, as for
            :func:`memtrain.evaluation.measures.replication.replication`.
        shared: the training images under each prompt's caption, as for the same function.
        threshold: the ratio below which a prompt counts as reproduced.
        typical: the typical distance of two pictures.

    Returns:
        `(P,)` bool.
    """
    asked = (own_index >= 0).nonzero().squeeze(1)
    blind = torch.zeros(len(own_index), dtype=torch.bool)
    if not len(asked):
        return blind
    own, family = samples.own_images[asked], picture_numbers(samples)
    under = [shared[index] for index in asked.tolist()]
    settings: dict[str, Any] = {"training": samples.training_images, "own_index": own_index[asked], "family": family}
    around = replication(own[:, None], own, shared=under, neighbours=NEAREST, **settings).neighbour_distance[:, 0]
    ratio = replication(copies[asked][:, None], own, shared=under, **settings).best
    blind[asked] = (around < TWIN * typical) | ~(ratio < threshold)
    return blind


def not_seen(samples: RunSamples, blind: Tensor, reproduced: Tensor) -> list[Reason]:
    """Give a reason for each group with too many pictures whose copies would not be counted.

    Args:
        samples: the samples of P prompts.
        blind: the prompts for which a copy would not be counted, `(P,)` bool, from :func:`unseen`.
        reproduced: the reproduced prompts, `(P,)` bool.
    """
    found = []
    names = counted_as(samples)
    for group in dict.fromkeys(prompt.group for prompt in samples.prompts if prompt.group not in NEVER_TRAINED):
        rows = [row for row, prompt in enumerate(samples.prompts) if prompt.group == group]
        seen = {names[row] for row in rows if reproduced[row] or not blind[row]}
        asked = {names[row] for row in rows}
        if len(asked - seen) > UNSEEN * len(asked):
            found.append(
                Reason(
                    "copies_unseen",
                    f"the ratio would miss perfect copies of {len(asked - seen)} of {len(asked)} "
                    f"{group.replace('_', ' ')} pictures, for instance because the data hold them under other names",
                    "find near-duplicates with `memtrain scan`, and name its table in `data.init_args.families`",
                )
            )
    return found


def sampling_reasons(
    samples: RunSamples, generated: Tensor, distances: Replication, *, own_index: Tensor, sampling: Sampling
) -> list[Reason]:
    """Give reasons if the samples are too few, or are no pictures.

    Args:
        samples: the samples of P prompts.
        generated: the generations, `(P, K, 3, H, W)` uint8.
        distances: the distances of the generations.
        own_index: the index of each own image among the training images, `(P,)`, as for
            :func:`memtrain.evaluation.measures.replication.replication`.
        sampling: the settings of the sampling.
    """
    found = []
    if len(sampling.seeds) < FEWEST_SEEDS:
        seeds = len(sampling.seeds)
        said = (
            f"only {seeds} {'image' if seeds == 1 else 'images'} per prompt {'was' if seeds == 1 else 'were'} sampled"
        )
        found.append(Reason("few_seeds", said, f"sample at least {FEWEST_SEEDS} (--images_per_prompt)"))
    if sampling.steps < FEWEST_STEPS:
        steps = f"{sampling.steps} sampling {'step is' if sampling.steps == 1 else 'steps are'}"
        said = f"{steps} too few for finished images"
        found.append(Reason("few_steps", said, f"take at least {FEWEST_STEPS} (--steps)"))
    flat = int((generated.flatten(3).amax(dim=3) == generated.flatten(3).amin(dim=3)).all(dim=2).sum())
    if flat:
        said = f"{flat} of {generated.shape[0] * generated.shape[1]} samples are one flat colour"
        found.append(
            Reason("samples_flat", said, "check whether the training diverged, or try another precision (--dtype)")
        )
    typical = typical_distance(samples.own_images)
    different = {prompt.caption: row for row, prompt in enumerate(samples.prompts)}
    one_each = generated[sorted(different.values())].cpu()
    # Pictures under one caption differ by their seeds only.
    spread = typical_distance(one_each[:, 0] if len(different) >= FEWEST_CAPTIONS else one_each.flatten(0, 1))
    pictures = replication(
        samples.own_images[:, None],
        samples.own_images,
        training=samples.training_images,
        own_index=own_index,
        family=picture_numbers(samples),
        neighbours=distances.neighbours,
    ).neighbour_distance.median()
    if spread < ALIKE * typical:
        said = f"the samples are alike for all prompts: {spread / typical:.2f} times as far apart as the pictures"
        found.append(Reason("samples_alike", said, "check --steps and --guidance_scale, and look at the images"))
    elif float(distances.neighbour_distance.median()) > FAR * float(pictures):
        said = "the samples are as far from all training images as noise"
        found.append(Reason("samples_far", said, "check --steps and --guidance_scale, and look at the images"))
    return found


def copies_elsewhere(samples: RunSamples, distances: Replication, *, reproduced: Tensor, threshold: float) -> list[str]:
    """Find the names of training pictures that come back for another picture's caption, and not for their own.

    Args:
        samples: the samples of P prompts.
        distances: the distances of the generations of P prompts and K seeds.
        reproduced: the reproduced prompts, `(P,)` bool.
        threshold: the ratio below which a prompt counts as reproduced.
    """
    count = distances.neighbours
    if count < 2:
        return []
    rest = (count * distances.neighbour_distance - distances.nearest_distance) / (count - 1)
    own = {samples.picture(prompt.key) for prompt, back in zip(samples.prompts, reproduced, strict=True) if back}
    found = set()
    for row, seed in (distances.nearest_distance < PLAIN * threshold * rest).nonzero().tolist():
        prompt, nearest = samples.prompts[row], samples.training_keys[int(distances.nearest[row, seed])]
        same = samples.caption(prompt.key) == samples.caption(nearest)
        if not same and samples.picture(nearest) not in own | {samples.picture(prompt.key)}:
            found.add(samples.picture(nearest))
    return sorted(found)


def elsewhere_reasons(pictures: list[str]) -> list[Reason]:
    """Give a reason if :func:`copies_elsewhere` found pictures."""
    if not pictures:
        return []
    said = f"{len(pictures)} training picture(s) come back for captions of other pictures, such as {pictures[0]}"
    return [Reason("copies_elsewhere", said, "look at the images (nearest_key in samples.parquet)")]


def data_reasons(samples: RunSamples) -> list[Reason]:
    """Give a reason if it is not known which training images show one picture."""
    remedy = "train with `--data.init_args.families auto`, or with the table of `memtrain scan` in its place"
    if samples.families is None:
        found = "the data were not scanned for near-duplicates, and a file with the same picture can hide a copy"
        return [Reason("families_unknown", found, remedy)]
    if samples.not_looked_at:
        found = f"the table of families lacks {samples.not_looked_at} of the training images"
        return [Reason("families_incomplete", found, remedy)]
    return []
