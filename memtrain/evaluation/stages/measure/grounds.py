"""What an all-clear stands on: whether the evaluation could have seen a copy, had there been one.

Controls, each of which a copy in plain sight has passed unseen without:

- *twins*: where the data hold a picture under many names and nobody has found out, the nearest training images of a
  copy are its own twins, and its ratio is 1. So for each picture asked for, its own image is compared with the training
  images nearest to it.
- *perfect copies*: the own image through the model's autoencoder and back is the best copy that the model can make. A
  picture whose perfect copy does not count as one cannot be judged, whatever the reason.
- *held-out copies*: a held-out image that is a training image as well comes back like one, and takes the threshold
  down. Such images do not calibrate.
- *sampling*: samples of one flat colour, alike for all prompts, or far from every training image are no pictures.
- *copies elsewhere*: a training picture that comes back for the caption of another one.

Distances are put in proportion to the typical distance of two pictures of the run.
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
"""Pictures whose pairs say what a typical distance is."""
TWIN = 0.15
"""Typical distances to its ten nearest training images, on average, below which a picture has twins; in data in which
every picture is there once, it is 0.3 and more."""
COPY = 0.05
"""Typical distances to a training image below which a held-out image is a copy of it."""
NEAREST = 10
"""Training images among which twins are looked for."""
UNSEEN = 0.05
"""Share of a group whose copies may pass unseen."""
ALIKE, FAR = 0.3, 1.35
"""Spread of the samples over that of the pictures, and distance to training images over theirs, beyond which samples
are no pictures: one sampling step gives 0.01 and 1.5, two steps 0.9 and 1.1, good samples 0.7 to 1.1 and 1.0."""
FEWEST_CAPTIONS = 8
"""Different captions whose first images say how far apart samples are; of fewer, all their images do."""
FEWEST_SEEDS, FEWEST_STEPS = 3, 5
"""Images per prompt and sampling steps on which a model is cleared."""
PLAIN = 0.5
"""Times the threshold: a generation this near to another caption's picture is taken for a copy of it."""
FALLBACK_THRESHOLD = 0.5
"""Ratio below which pictures count as reproduced where no held-out prompts set a threshold."""


def typical_distance(images: Tensor) -> float:
    """Median distance of two different images `(n, 3, H, W)`, 0 where there are no two."""
    rows = torch.linspace(0, len(images) - 1, min(TYPICAL, len(images))).round().long()
    pixels = centred_pixels(images[rows])
    distances = unit_distance(squared_distances(pixels, pixels).triu(diagonal=1))
    different = distances[distances > 0]
    return float(different.median()) if len(different) else 0.0


def heldout_copies(images: Tensor, training: Tensor, *, typical: float) -> Tensor:
    """`(n,)` bool, which held-out images are training images as well, or nearly.

    Args:
        images: `(n, 3, H, W)` uint8.
        training: `(M, 3, H, W)` uint8.
        typical: distance of two pictures.
    """
    if not len(images):
        return torch.zeros(0, dtype=torch.bool)
    nowhere = torch.full((len(images),), -1)
    nearest = replication(images[:, None], images, training=training, own_index=nowhere, neighbours=1).nearest_distance
    return nearest[:, 0] <= COPY * typical


@torch.no_grad()
def perfect_copies(pipeline: Any, images: Tensor) -> Tensor:
    """Images `(n, 3, H, W)` uint8 through the pipeline's autoencoder and back."""
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
    """`(P,)` bool, of which training prompts a copy would not be counted.

    Args:
        samples: P prompts.
        copies: `(P, 3, H, W)` uint8, from :func:`perfect_copies`.
        own_index: `(P,)`, as for :func:`memtrain.evaluation.measures.replication.replication`.
        shared: the same.
        threshold: ratio below which a prompt counts as reproduced.
        typical: distance of two pictures.
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
    """Groups of which a copy of too many pictures would not be counted.

    Args:
        samples: P prompts.
        blind: `(P,)` from :func:`unseen`.
        reproduced: `(P,)` bool.
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
                    f"of {len(asked - seen)} of {len(asked)} {group.replace('_', ' ')} pictures a perfect copy would "
                    "not be counted, for instance because the data hold them under further names",
                    "find copies with `memtrain scan`, and evaluate with its table",
                )
            )
    return found


def sampling_reasons(
    samples: RunSamples, generated: Tensor, distances: Replication, *, own_index: Tensor, sampling: Sampling
) -> list[Reason]:
    """Whether the samples are pictures, and enough of them.

    Args:
        samples: P prompts.
        generated: `(P, K, 3, H, W)` uint8.
        distances: of these.
        own_index: `(P,)`, as for :func:`memtrain.evaluation.measures.replication.replication`.
        sampling: how they were made.
    """
    found = []
    if len(sampling.seeds) < FEWEST_SEEDS:
        said = f"{len(sampling.seeds)} image(s) per prompt were sampled"
        found.append(Reason("few_seeds", said, f"sample {FEWEST_SEEDS} or more (--images_per_prompt)"))
    if sampling.steps < FEWEST_STEPS:
        said = f"{sampling.steps} sampling step(s) make no finished images"
        found.append(Reason("few_steps", said, f"take {FEWEST_STEPS} or more (--steps)"))
    flat = int((generated.flatten(3).amax(dim=3) == generated.flatten(3).amin(dim=3)).all(dim=2).sum())
    if flat:
        said = f"{flat} of {generated.shape[0] * generated.shape[1]} samples show one flat colour"
        found.append(
            Reason("samples_flat", said, "look at the images: the model has diverged, or try another precision")
        )
    typical = typical_distance(samples.own_images)
    different = {prompt.caption: row for row, prompt in enumerate(samples.prompts)}
    one_each = generated[sorted(different.values())].cpu()
    # Of pictures that are asked for under one caption, seeds are all that differs.
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
        said = f"the samples are alike, whatever the prompt: {spread / typical:.2f} times as far apart as the pictures"
        found.append(Reason("samples_alike", said, "check --steps and --guidance_scale, and look at the images"))
    elif float(distances.neighbour_distance.median()) > FAR * float(pictures):
        said = "the samples are far from all training images, as noise is"
        found.append(Reason("samples_far", said, "check --steps and --guidance_scale, and look at the images"))
    return found


def copies_elsewhere(samples: RunSamples, distances: Replication, *, reproduced: Tensor, threshold: float) -> list[str]:
    """Names of training pictures that come back for another picture's caption, and not for their own.

    Args:
        samples: P prompts.
        distances: of P prompts and K seeds.
        reproduced: `(P,)` bool.
        threshold: ratio below which a prompt counts as reproduced.
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
    """Of :func:`copies_elsewhere`."""
    if not pictures:
        return []
    said = f"{len(pictures)} training picture(s) come back for other captions than their own, such as {pictures[0]}"
    return [Reason("copies_elsewhere", said, "look at the images (nearest_key in samples.parquet)")]


def data_reasons(samples: RunSamples) -> list[Reason]:
    """What is not known of the data."""
    remedy = "train with data.init_args.families auto, or name the table of `memtrain scan` there"
    if samples.families is None:
        found = "nobody has looked which training images are one picture, and a copy under another name hides a copy"
        return [Reason("families_unknown", found, remedy)]
    if samples.not_looked_at:
        found = f"the table of families does not have {samples.not_looked_at} of the training images"
        return [Reason("families_incomplete", found, remedy)]
    return []
