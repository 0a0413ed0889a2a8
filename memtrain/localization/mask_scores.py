"""Scores of masks: how similar a prompt's noise prediction stays to itself when neurons are off.

Score of a mask: the highest MS-SSIM, over the kept seeds, of the noise difference with the mask and the one without.
Each distinct mask is evaluated once, many in one denoiser call, on the kept seeds alone, and what masks share before
the first layer in which they differ is computed once (:mod:`memtrain.localization.shared_prefix`).

The scores are those of evaluating mask by mask, up to rounding: kernels sum in another order for another batch size.
Two scores that differ by less than about 1e-6 may change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from memtrain.functional.neurons import scale_neurons
from memtrain.functional.noise import highest_similarity, noise_difference, pairwise_similarity
from memtrain.localization.predictor import Predictor
from memtrain.localization.selection import Mask
from memtrain.localization.settings import Settings
from memtrain.localization.shared_prefix import SharedPrefix
from memtrain.models.backbones.base import unwrap
from memtrain.models.value_hooks import Edit, ValueHooks


class MaskScores:
    """Evaluates the masks of one prompt.

    Args:
        predictor: the model, in evaluation mode.
        sites: the searched layers.
        settings: seeds, timestep, data range and factor.
        batch_size: images in one denoiser call, or one mask's if those are more.
        share: whether stages are shared between masks.

    Attributes:
        scores: of every mask that was evaluated.
        calls: denoiser calls.
        images: images in all calls together.
    """

    def __init__(
        self,
        predictor: Predictor,
        sites: dict[str, nn.Module],
        settings: Settings,
        *,
        batch_size: int,
        share: bool = True,
    ) -> None:
        self.predictor, self.sites, self.settings, self.batch_size = predictor, sites, settings, batch_size
        self.scores: dict[Mask, float] = {}
        self.calls, self.images = 0, 0
        self._widths = predictor.widths(sites)
        self._noise = predictor.noise(settings.seeds, seed=settings.seed)
        self._timestep = torch.tensor(predictor.timesteps[settings.call], device=predictor.device)
        share = share and not predictor.backbone.joint
        self._shared = SharedPrefix(unwrap(predictor.denoiser), list(sites)) if share else None
        self._scales: dict[str, Tensor] = {}
        self._text: Tensor
        self._plain: Tensor

    @property
    def at_once(self) -> int:
        """Masks that fit into one call."""
        return max(1, self.batch_size // len(self._noise))

    @torch.no_grad()
    def begin(self, prompt: str) -> Tensor:
        """Take up a prompt.

        Returns:
            `(K,)`: of each seed the highest similarity with another one, unmasked.
        """
        self.scores, self.calls, self.images = {}, 0, 0
        self._noise = self.predictor.noise(self.settings.seeds, seed=self.settings.seed)
        self._text = self.predictor.encode([prompt])
        if self._shared is not None:
            self._shared.forget()
        hooks = self._hooks(self.sites, lambda site, values: values)
        try:
            with self._shared.recording() if self._shared is not None else nullcontext():
                prediction = self._predict(self._noise)
            hooks.require_reached()
        finally:
            hooks.detach()
        self._plain = noise_difference(prediction, self._noise)
        return highest_similarity(self._plain, data_range=self.settings.data_range).cpu()

    def keep(self, seeds: Tensor) -> None:
        """Evaluate masks on some seeds only.

        Args:
            seeds: `(K,)` bool.
        """
        chosen = seeds.to(self._noise.device)
        self._noise, self._plain = self._noise[chosen], self._plain[chosen]

    @torch.no_grad()
    def evaluate(self, masks: Sequence[Mask]) -> None:
        """Add the scores of masks that are not known yet."""
        new = [mask for mask in dict.fromkeys(masks) if mask not in self.scores]
        for start in range(0, len(new), self.at_once):
            batch = new[start : start + self.at_once]
            for mask, score in zip(batch, self._scored(batch), strict=True):
                self.scores[mask] = score

    def _scored(self, masks: Sequence[Mask]) -> list[float]:
        seeds = len(self._noise)
        latents = self._noise.repeat(len(masks), 1, 1, 1)
        self._scales = self._scale(masks)
        hooks = self._hooks({site: self.sites[site] for site in self._scales}, self._edit)
        try:
            with self._shared.sharing(masks, seeds=seeds) if self._shared is not None else nullcontext():
                prediction = self._predict(latents)
        finally:
            hooks.detach()
        masked = noise_difference(prediction, latents)
        plain = self._plain.repeat(len(masks), 1, 1, 1)
        if self.settings.data_range is not None:
            similarity = pairwise_similarity(plain, masked, data_range=self.settings.data_range)
        else:
            parts = zip(plain.split(seeds), masked.split(seeds), strict=True)
            similarity = torch.cat([pairwise_similarity(one, other, data_range=None) for one, other in parts])
        return similarity.view(len(masks), seeds).amax(dim=1).tolist()

    def _predict(self, latents: Tensor) -> Tensor:
        self.calls, self.images = self.calls + 1, self.images + len(latents)
        count = len(latents)
        return self.predictor.predict(latents, self._timestep.expand(count), self._text.expand(count, -1, -1))

    def _hooks(self, sites: dict[str, nn.Module], edit: Edit) -> ValueHooks:
        return ValueHooks(self.predictor.denoiser, sites, backbone=self.predictor.backbone, edit=edit).attach()

    def _scale(self, masks: Sequence[Mask]) -> dict[str, Tensor]:
        """Per site that any mask touches `(M K, C)`, what the values of each row are multiplied by."""
        touched: dict[int, tuple[list[int], list[int]]] = {}
        for row, mask in enumerate(masks):
            for layer, neuron in mask:
                rows, neurons = touched.setdefault(layer, ([], []))
                rows.append(row)
                neurons.append(neuron)
        scales = {}
        for layer, site in enumerate(self.sites):
            if layer in touched:
                scale = torch.ones(len(masks), self._widths[site])
                scale[touched[layer]] = self.settings.factor
                scales[site] = scale.repeat_interleave(len(self._noise), dim=0).to(self.predictor.device)
        return scales

    def _edit(self, site: str, values: Tensor) -> Tensor:
        rows = None if self._shared is None else self._shared.rows
        scale = self._scales[site]
        return scale_neurons(values, scale if rows is None else scale[rows.to(scale.device)])
