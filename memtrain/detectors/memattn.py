"""MemAttn: the entropy of cross-attention separates memorized prompts from others.

Method: the token attention of the conditional half is averaged over image tokens, heads and layers, then `H = −Σ p ln
p` over all text tokens, and `Hpad` the part of that sum over summary tokens (EOS and padding). `E` is the entropy of
one layer, the fourth, at the first step. `D` is the mean of H over the last fifth of the steps plus the mean of Hpad
over them minus Hpad at the first step.
Source: Ren et al., "Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models through Cross Attention"
(ECCV 2024). `published=True` is the published code, in which the change of Hpad may be negative. The default takes its
absolute value at each step, as in the paper. The published code works in fp16, this module in fp32.
Direction: higher means memorized.
Cost: none beyond sampling; `E` alone needs one denoiser call.
Suggested values: four images a prompt.
Cannot: compare prompts of different lengths fairly (the entropy grows with the number of words). It is a weak detector:
published re-runs against diverse prompts find AUROC 0.85 for E and 0.61 for D on SD 1.4.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.functional.attention import entropy, partial_entropy, summary_tokens


class MemAttn(Detector):
    """Entropy of the token attention.

    Args:
        mode: `E` for one layer at the first step, or `D` for all layers over the last fifth of the steps.
        layers: the numbers of the averaged attention sites, in the order of the forward pass from 0; by default the
            fourth site for `E`, and all sites for `D`.
        published: whether to take the change of the summary tokens' entropy as in the published code.
    """

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "none beyond sampling"
    needs: ClassVar[frozenset[str]] = frozenset({"token_attention", "prompt_length"})

    def __init__(
        self, mode: Literal["D", "E"] = "E", *, layers: tuple[int, ...] | None = None, published: bool = False
    ) -> None:
        if layers is not None and not layers:
            raise ConfigurationError(
                "MemAttn has no layers", expected="at least one layer", remedy="leave out `layers`"
            )
        self.mode, self.published = mode, published
        self.layers = ((3,) if mode == "E" else None) if layers is None else tuple(layers)

    @property
    def name(self) -> str:
        """`memattn_e` or `memattn_d`, with the layers if they are not the published ones, and `_published`."""
        published = (3,) if self.mode == "E" else None
        layers = "" if self.layers == published else "_layers_" + "_".join(map(str, self.layers or ()))
        return f"memattn_{self.mode.lower()}{layers}{'_published' if self.published else ''}"

    def read(self, step: DenoiserStep) -> Tensor | None:
        """Return H and Hpad, `(B, 2)`, of the first call, and for `D` of the last fifth of the calls."""
        if not self.reads_attention(step.index, step.total):
            return None
        assert step.token_attention is not None and step.prompt_length is not None  # the sampler checks `needs`
        sites = list(step.token_attention.values())
        chosen = range(len(sites)) if self.layers is None else self.layers
        if max(chosen) >= len(sites):
            raise ProbeError(
                f"MemAttn reads layer {max(chosen)}, but the denoiser has {len(sites)} cross-attentions",
                expected=f"layers from 0 to {len(sites) - 1}",
                remedy="choose other layers",
            )
        average = torch.stack([sites[index] for index in chosen]).mean(dim=0)
        summary = summary_tokens(step.prompt_length.to(average.device), average.shape[1])
        return torch.stack([entropy(average), partial_entropy(average, summary)], dim=1)

    def reads_attention(self, index: int, total: int) -> bool:
        """Whether this is the first call, or for `D` one of the last fifth."""
        return index == 0 or (self.mode == "D" and index >= total - max(1, total // 5))

    def calls(self, total: int) -> int:
        """One for `E`, all for `D`."""
        return 1 if self.mode == "E" else total

    def score_images(self, readings: Tensor) -> Tensor:
        """Return scores `(P, K)` from readings `(P, K, R, 2)`."""
        first = readings[:, :, 0]
        if self.mode == "E":
            return first[..., 0]
        last = readings[:, :, 1:] if readings.shape[2] > 1 else readings
        change = last[..., 1] - first[..., None, 1]
        return last[..., 0].mean(dim=2) + (change if self.published else change.abs()).mean(dim=2)
