"""Is a generation a copy of its own training image? A distance ratio that needs no pretrained weights.

Method: the pixel ℓ2 distance between a generation and the image of its caption, divided by the generation's mean
distance to its 50 nearest training images (the own image excluded). The division takes out what makes an image close to
everything, such as a flat background.
Source: Carlini et al., "Extracting Training Data from Diffusion Models" (USENIX Security 2023), §5; the paper divides
by half of that mean, so its ratios are twice these.
Direction: lower means copied; 1 is no closer than the nearest others.
Variants: images of one template (see :mod:`memtrain.data.planted`) are one image here. The own distance is that to the
nearest of them, none of them is a neighbour of its own prompt, and for other prompts they are one neighbour, at the
distance of the nearest. Otherwise an image that is there ten times would be its own neighbour, and a copy of it no
closer than those. If one caption has several pictures, the nearest is the own image, the others are its neighbours.
Threshold: from held-out prompts, whose own image the model never saw, at a stated false-positive rate. A prompt counts
as reproduced if any of its seeds is below, and the threshold is set on the same minimum over seeds.
Exact: squared distances of pixels are integers and computed as such (:mod:`memtrain.functional.pixel_distance`), so no
result depends on the processor, its matrix library, the number of threads or the size of a block. Among equal
images the first is nearest.
Cost: one matrix product of all generations with all training images, in single precision, and one addition in double
precision per 1024 of its multiplications; memory is bounded by `chunk_bytes`.
Cannot: see copies that are shifted, mirrored, recoloured or partial (a learned copy detector can), nor count a training
image that another caption brings back (see the returned index of the nearest training image).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memtrain.errors import CalibrationError, ConfigurationError, DataError
from memtrain.functional.pixel_distance import centred_pixels, squared_distance, squared_distances, unit_distance
from memtrain.functional.ranking import lower_threshold


@dataclass(frozen=True)
class Replication:
    """Distances of generations, each `(P, K)`; pixel ℓ2 with values in [0, 1].

    Attributes:
        ratio: the own distance over the neighbour distance.
        own_distance: the distance to the own image, or to the nearest of the own images.
        neighbour_distance: the mean distance to the nearest training images, without the own image and its variants.
        nearest: the index of the nearest training image, with the own image; the lowest of equally near ones.
        nearest_distance: the distance to this image.
        neighbours: the number of training images in the mean.
        looks: the number of different own images of each prompt, `(P,)` int64. Each gives a chance to fall below a
            threshold; a held-out prompt has one. None for one each.
        variants: the indices of each prompt's further own training images, each picture once. None for no variants.
    """

    ratio: Tensor
    own_distance: Tensor
    neighbour_distance: Tensor
    nearest: Tensor
    nearest_distance: Tensor
    neighbours: int
    looks: Tensor | None = None
    variants: Sequence[Sequence[int]] | None = None

    @property
    def best(self) -> Tensor:
        """Lowest ratio over seeds, `(P,)`."""
        return self.ratio.amin(dim=1)


def replication(
    generated: Tensor,
    own: Tensor,
    *,
    training: Tensor,
    own_index: Tensor,
    family: Tensor | None = None,
    shared: Sequence[Sequence[int]] | None = None,
    neighbours: int = 50,
    chunk_bytes: int = 1 << 26,
    device: torch.device | str = "cpu",
) -> Replication:
    """Compare generations with their own and with all training images.

    Args:
        generated: the generations, `(P, K, 3, H, W)` uint8.
        own: the own image of each prompt, `(P, 3, H, W)` uint8.
        training: the training images, each once, `(M, 3, H, W)` uint8.
        own_index: the index of each own image in `training`, `(P,)` int64; -1 if it is not there (held-out).
        family: the number of the picture of each training image, `(M,)` int64; images with the same number are variants
            of one picture. By default, all are different.
        shared: the indices of other training images with each prompt's caption. They and their variants are own images
            as well: the nearest of all is compared with the rest. By default, there are none.
        neighbours: the number of nearest training images in the mean, with variants counted once; all images if there
            are fewer.
        chunk_bytes: the memory for a block of images in fp32; a few blocks exist at the same time.
        device: the device of the computation.

    Raises:
        DataError: if there are no generations, image sizes differ or there are fewer than two training images that are
            no variants of one.
        ConfigurationError: if `neighbours` is below 1.
    """
    numbers = torch.arange(len(training)) if family is None else family.unique(return_inverse=True)[1]
    check_images(generated, own, training, neighbours=neighbours, family=numbers)
    prompts, seeds = generated.shape[:2]
    neighbours = min(neighbours, int(numbers.max()))
    rows = max(1, chunk_bytes // (4 * own[0].numel()))
    flat, prompt_of = generated.flatten(0, 1), torch.arange(prompts).repeat_interleave(seeds)
    own_family = torch.where(own_index < 0, -1, numbers[own_index])
    variants = _variants(own, _own_families(own_index, numbers, shared), training, numbers)
    columns: list[list[Tensor]] = [[], [], [], []]
    for start in range(0, prompts * seeds, rows):
        part = torch.arange(start, min(start + rows, prompts * seeds))
        queries = centred_pixels(flat[part].to(device))
        own_squared = squared_distance(queries, centred_pixels(own[prompt_of[part]].to(device)))
        exclude = own_family[prompt_of[part]].to(device)
        for row, prompt in enumerate(prompt_of[part].tolist()):
            for index in variants[prompt]:
                other = squared_distance(queries[row], centred_pixels(training[index : index + 1].to(device)))[0]
                if other < own_squared[row]:
                    own_squared[row], exclude[row] = other, numbers[index]
        mean, nearest, nearest_squared = _scan(
            queries, training, family=numbers.to(device), exclude=exclude, neighbours=neighbours, rows=rows
        )
        own_distance, nearest_distance = unit_distance(own_squared).float(), unit_distance(nearest_squared).float()
        for column, values in zip(columns, (own_distance, mean.float(), nearest, nearest_distance), strict=True):
            column.append(values.cpu())
    own_distance, mean, nearest, nearest_distance = (torch.cat(c).view(prompts, seeds) for c in columns)
    ratio = own_distance / mean.clamp(min=torch.finfo(mean.dtype).tiny)
    looks = torch.tensor([1 + len(indices) for indices in variants])
    return Replication(ratio, own_distance, mean, nearest, nearest_distance, neighbours, looks, variants)


def reproduction_threshold(heldout_best: Tensor, false_positive_rate: float) -> float:
    """Compute the ratio below which a prompt counts as reproduced.

    Args:
        heldout_best: the lowest ratio over seeds of each held-out prompt, `(n,)`.
        false_positive_rate: the probability that a prompt whose image was never trained on falls below.

    Raises:
        CalibrationError: if there are too few held-out prompts for the rate.
    """
    try:
        return lower_threshold(heldout_best, false_positive_rate)
    except ValueError as error:
        raise CalibrationError(
            f"There is no replication threshold: {error}",
            expected="at least 1 / rate − 1 held-out prompts",
            remedy="evaluate more held-out prompts, or raise --false_positive_rate",
        ) from error


def same_picture(images: Tensor) -> Tensor:
    """Return `(n,)` int64 with the same number for equal images `(n, 3, H, W)`, for use as `family`."""
    return images.flatten(1).unique(dim=0, return_inverse=True)[1]


def _own_families(own_index: Tensor, family: Tensor, shared: Sequence[Sequence[int]] | None) -> list[list[int]]:
    """Return the families of each prompt's own images."""
    found = []
    for prompt, index in enumerate(own_index.tolist()):
        images = [index] if index >= 0 else []
        images += list(shared[prompt]) if shared is not None else []
        found.append(list(dict.fromkeys(family[images].tolist())))
    return found


def _variants(own: Tensor, own_families: list[list[int]], training: Tensor, family: Tensor) -> list[list[int]]:
    """Return for each prompt the indices of its own images that differ from the first, each picture once."""
    found = []
    for image, families in zip(own, own_families, strict=True):
        members = torch.isin(family, torch.tensor(families, dtype=family.dtype)).nonzero().squeeze(1).tolist()
        kept: list[int] = []
        seen = {image.cpu().numpy().tobytes()} if len(members) > 1 else set()
        for member in members if len(members) > 1 else []:
            pixels = training[member].cpu().numpy().tobytes()
            if pixels not in seen:
                seen.add(pixels)
                kept.append(member)
        found.append(kept)
    return found


def _scan(
    queries: Tensor, training: Tensor, *, family: Tensor, exclude: Tensor, neighbours: int, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean distance `(n,)` to the nearest families except `exclude`, and the nearest image."""
    count = len(queries)
    closest = queries.new_full((count, neighbours), torch.inf, dtype=torch.float64)
    nearest_squared = queries.new_full((count,), torch.inf, dtype=torch.float64)
    nearest = torch.zeros(count, dtype=torch.int64, device=queries.device)
    # Families of several images can lie in several blocks, so their nearest member is known only at the end.
    several = (family.bincount() > 1).nonzero().squeeze(1)
    together = queries.new_full((count, len(several)), torch.inf, dtype=torch.float64)
    for start in range(0, len(training), rows):
        block = centred_pixels(training[start : start + rows].to(queries.device))
        squared = squared_distances(queries, block)
        # The first of equal images wins: `min` returns the first of a block, and a later block has to be nearer.
        value, index = squared.min(dim=1)
        closer = value < nearest_squared
        nearest_squared = torch.where(closer, value, nearest_squared)
        nearest = torch.where(closer, index + start, nearest)
        numbers = family[start : start + len(block)]
        squared[exclude[:, None] == numbers] = torch.inf
        if len(several):
            columns = torch.isin(numbers, several).nonzero().squeeze(1)
            place = torch.searchsorted(several, numbers[columns])
            together.scatter_reduce_(1, place.expand(count, -1), squared[:, columns], "amin")
            squared[:, columns] = torch.inf
        closest = torch.cat([closest, squared], dim=1).topk(neighbours, largest=False).values
    closest = torch.cat([closest, together], dim=1).topk(neighbours, largest=False).values
    # Added one by one, the nearest first, because a reduction's order of summation depends on the processor.
    total = sum(unit_distance(closest).unbind(dim=1), torch.zeros_like(nearest_squared))
    return total / neighbours, nearest, nearest_squared


def check_images(
    generated: Tensor, own: Tensor, training: Tensor, *, neighbours: int, family: Tensor | None = None
) -> None:
    """Refuse images that :func:`replication` cannot compare; it has the same arguments and errors."""
    if neighbours < 1:
        raise ConfigurationError(f"neighbours={neighbours}", expected="at least 1", remedy="use 50, as in the paper")
    shapes = {"generated": generated.shape[2:], "own": own.shape[1:], "training": training.shape[1:]}
    types = {generated.dtype, own.dtype, training.dtype}
    if len(set(shapes.values())) > 1 or types != {torch.uint8} or len(generated) != len(own):
        found = {name: tuple(shape) for name, shape in shapes.items()}
        raise DataError(
            f"Images cannot be compared: {found}, types {sorted(map(str, types))}, {len(generated)} prompts with "
            f"{len(own)} own images",
            expected="uint8 images of one size, and one own image per prompt",
            remedy="load the images at the resolution that is sampled, and convert them with to_uint8",
        )
    if not generated.shape[:2].numel():
        raise DataError(
            f"{generated.shape[0]} prompts with {generated.shape[1]} generations each are nothing to compare",
            expected="at least one generation",
            remedy="evaluate at least one prompt and one seed",
        )
    different = len(training) if family is None else len(family.unique())
    if different < 2:
        raise DataError(
            f"There are only {different} training image(s) to compare with",
            expected="at least 2, better more than 50",
            remedy="pass all training images",
        )
