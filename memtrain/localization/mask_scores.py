"""Scores of masks: the similarity of a prompt's noise prediction to itself without some neurons.

The score of a mask is the highest MS-SSIM, over the kept seeds, of the noise difference with and without the mask. Each
distinct mask is evaluated once, on the kept seeds only, with many masks in one denoiser call. The stages before the
first layer in which masks differ are computed once (:mod:`memtrain.localization.shared_prefix`). With a fixed data
range, a seed's similarity does not depend on other seeds, so seeds can be scored one at a time.

The scores equal those of mask-by-mask evaluation up to rounding, because kernels sum in another order for another batch
size. If rounding could decide on a score near the threshold, the mask is evaluated alone on all seeds, like in the
published search. This matters if no selection was below the threshold and the score of the last selection replaces it:
a neuron without any effect then lies exactly on the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from memtrain.functional.neurons import scale_neurons
from memtrain.functional.noise import noise_difference, pairwise_similarity, similarity_matrix
from memtrain.localization.asking import asked_as
from memtrain.localization.predictor import Predictor
from memtrain.localization.selection import Mask
from memtrain.localization.settings import Settings
from memtrain.localization.shared_prefix import Row, SharedPrefix
from memtrain.localization.speculation import Below
from memtrain.models.backbones.base import unwrap
from memtrain.models.neuron_mask import NeuronMask
from memtrain.models.value_hooks import Edit, ValueHooks

ROUNDING = 1e-6
"""Distance from the threshold within which a mask is evaluated alone. Measured rounding moves scores by 5e-7 in fp32 on
a CPU, and by 6e-5 in bf16."""
COARSE = {torch.float32: 1e-3, torch.float64: 1e-6}
"""The same distance on a GPU, where convolutions can use TF32 (not measured); 1e-3 in half precision everywhere."""


class MaskScores:
    """Evaluates the masks of one prompt.

    Args:
        predictor: the model, in evaluation mode.
        sites: the searched layers.
        settings: the settings of the search, with seeds, timestep, data range and factor.
        batch_size: the number of images in one denoiser call; at least those of one mask, if they must stay together.
        share: whether masks share stages.

    Attributes:
        calls: the number of denoiser calls.
        images: the number of images in all calls.
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
        self.predictor = predictor = asked_as(predictor, settings)
        self.sites, self.settings, self.batch_size = sites, settings, batch_size
        self.calls, self.images = 0, 0
        kind = next(predictor.denoiser.parameters()).dtype
        exact = kind in COARSE and predictor.device.type == "cpu" and settings.precision is None
        self._rounding = ROUNDING if exact else 1e-3 if settings.precision is not None else COARSE.get(kind, 1e-3)
        self._widths = predictor.widths(sites)
        self._noise = predictor.noise(settings.seeds, seed=settings.seed)
        self._timestep = torch.tensor(predictor.timesteps[settings.call], device=predictor.device)
        # With guidance, the call without text would be mistaken for shared stages of the prompt.
        share = share and not predictor.backbone.joint and not settings.guidance_scale
        self._shared = SharedPrefix(unwrap(predictor.denoiser), list(sites)) if share else None
        self._known: dict[Mask, dict[int, float]] = {}
        self._settled: dict[Mask, float] = {}
        self._seeds: list[int] = []
        self._worst = 0
        self._scales: dict[str, Tensor] = {}
        self._text: Tensor
        self._plain: Tensor

    @property
    def probes(self) -> bool:
        """Whether a seed can be scored alone."""
        return self.settings.data_range is not None and len(self._seeds) > 1

    @torch.no_grad()
    def begin(self, prompt: str) -> Tensor:
        """Begin with a prompt.

        Returns:
            The unmasked similarity of each seed with every other seed, `(K, K)`.

        Raises:
            ProbeError: if the forward pass does not reach every searched layer.
        """
        self.calls, self.images = 0, 0
        self._text = self.predictor.encode([prompt])
        self.at(self.predictor.timesteps[self.settings.call])
        return similarity_matrix(self._plain, data_range=self.settings.data_range, cropped=self.settings.cropped).cpu()

    @torch.no_grad()
    def at(self, timestep: float) -> None:
        """Predict at another timestep from now on; the kept seeds stay, and known scores are dropped."""
        self._known, self._settled = {}, {}
        self._timestep = torch.tensor(timestep, device=self.predictor.device)
        hooks = self._hooks(self.sites, lambda site, values: values)
        try:
            with self._shared.recording() if self._shared is not None else nullcontext():
                prediction = self._predict(self._noise)
            hooks.require_reached()
        finally:
            hooks.detach()
        self._plain = noise_difference(prediction, self._noise)

    def keep(self, seeds: Tensor) -> None:
        """Evaluate masks on these seeds only, `(K,)` bool."""
        self._seeds = seeds.nonzero().flatten().tolist()
        self._worst = self._seeds[0]

    def answer(self, mask: Mask, below: Below) -> bool | None:
        """Return the answer for a mask; None as long as it is not certain."""
        if mask in self._settled:
            return below(self._settled[mask])
        known = self._known.get(mask)
        if known is None:
            return None
        highest = max(known.values())
        lenient, strict = below(highest - self._rounding), below(highest + self._rounding)
        if lenient != strict or (lenient and len(known) < len(self._seeds)):
            return None
        return lenient

    def worst(self, mask: Mask) -> float:
        """Return the highest known similarity of a mask on any seed."""
        return self._settled[mask] if mask in self._settled else max(self._known[mask].values())

    @property
    def scored(self) -> dict[Mask, dict[int, float]]:
        """All evaluated masks, with the similarity of each seed to itself."""
        return self._known

    def probed(self, mask: Mask) -> bool:
        """Whether any seed of a mask has a score."""
        return mask in self._known

    @property
    def room(self) -> int:
        """Number of images in one call."""
        return self.batch_size

    def missing(self, mask: Mask) -> int:
        """Return the number of kept seeds without a score."""
        return len(self._seeds) - len(self._known.get(mask, {}))

    def evaluate(self, masks: Sequence[Mask], *, probe: Sequence[Mask] = ()) -> None:
        """Score masks on every kept seed without a score.

        Args:
            masks: the masks.
            probe: further masks, scored only on the seed with the highest similarity so far.
        """
        for mask in masks:
            if not self.missing(mask):
                self.settle(mask)
        rows = [(mask, seed) for mask in masks for seed in self._seeds if seed not in self._known.get(mask, {})]
        self._score([*rows, *((mask, self._worst) for mask in probe if mask not in self._known)])
        if masks:
            last = self._known[masks[0]]
            self._worst = max(last, key=last.__getitem__)

    def score(self, mask: Mask) -> float:
        """Return the highest similarity of a kept seed to itself, evaluated if necessary."""
        if mask in self._settled:
            return self._settled[mask]
        if self.missing(mask):
            self.evaluate([mask])
        return max(self._known[mask].values())

    @torch.no_grad()
    def settle(self, mask: Mask) -> float:
        """Return the exact score of a mask, evaluated alone on all seeds."""
        if mask not in self._settled:
            channels: dict[str, list[int]] = {}
            names = list(self.sites)
            for layer, neuron in mask:
                channels.setdefault(names[layer], []).append(neuron)
            with self._masked(channels):
                masked = noise_difference(self._predict(self._noise), self._noise)
            self._settled[mask] = float(self._compared(self._plain[self._seeds], masked[self._seeds]).max())
        return self._settled[mask]

    def _masked(self, channels: dict[str, list[int]]) -> AbstractContextManager[object]:
        if not channels:
            return nullcontext()
        return NeuronMask(channels, factor=self.settings.factor).on(self.predictor.denoiser)

    @torch.no_grad()
    def _score(self, rows: list[Row]) -> None:
        size = self.batch_size
        if self.settings.data_range is None:
            size = max(1, size // len(self._seeds)) * len(self._seeds)
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            for (mask, seed), similarity in zip(batch, self._similarities(batch), strict=True):
                self._known.setdefault(mask, {})[seed] = similarity

    def _similarities(self, rows: list[Row]) -> list[float]:
        seeds = torch.tensor([seed for _, seed in rows], device=self._noise.device)
        latents, plain = self._noise[seeds], self._plain[seeds]
        self._scales = self._scale([mask for mask, _ in rows])
        hooks = self._hooks({site: self.sites[site] for site in self._scales}, self._edit)
        try:
            with self._shared.sharing(rows) if self._shared is not None else nullcontext():
                prediction = self._predict(latents)
        finally:
            hooks.detach()
        masked = noise_difference(prediction, latents)
        if self.settings.data_range is not None:
            return self._compared(plain, masked).tolist()
        count = len(self._seeds)
        parts = zip(plain.split(count), masked.split(count), strict=True)
        return torch.cat([self._compared(one, other) for one, other in parts]).tolist()

    def _compared(self, plain: Tensor, masked: Tensor) -> Tensor:
        return pairwise_similarity(plain, masked, data_range=self.settings.data_range, cropped=self.settings.cropped)

    def _predict(self, latents: Tensor) -> Tensor:
        count = len(latents)
        self.calls, self.images = self.calls + 1, self.images + count
        return self.predictor.predict(latents, self._timestep.expand(count), self._text.expand(count, -1, -1))

    def _hooks(self, sites: dict[str, nn.Module], edit: Edit) -> ValueHooks:
        return ValueHooks(self.predictor.denoiser, sites, backbone=self.predictor.backbone, edit=edit).attach()

    def _scale(self, masks: Sequence[Mask]) -> dict[str, Tensor]:
        """Return the factors on the values of each row, `(B, C)`, for each site with masked neurons."""
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
                scales[site] = scale.to(self.predictor.device)
        return scales

    def _edit(self, site: str, values: Tensor) -> Tensor:
        places = None if self._shared is None else self._shared.computing
        scale = self._scales[site]
        return scale_neurons(values, scale if places is None else scale[places.to(scale.device)])
