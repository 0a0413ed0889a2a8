"""The per-sample training objective: the noise, and the weight of each sample's error.

The loss is the denoising loss of Ho et al. (2020), kept per sample. Under all options, the unweighted squared error of
each sample is known in addition to the loss. The watch uses it, so that values mean the same in every run.

- Squared errors, weighted by timestep or by sample, are read from the gradient, and the module passes nothing on. The
  records of a run are the same as without these options, except for what the options change in training.
- For other criteria and masked losses, the module passes the squared errors on (:mod:`memtrain.monitoring.loss_check`).
  For a masked loss these are the errors of the part that the mask shows.

Traps. Noise offset and input perturbation also act in measurements, so a profile of the base model belongs to these
settings. A visit with a weight of 0 is not evidence. Criteria and masks exclude `LossSkipping`, which must know losses
before they can be passed on. The check for empty masks waits for the device once per batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError
from memtrain.functional.diffusion import masked_mean, min_snr_weight, per_sample_mse
from memtrain.training.criteria import Criterion, HuberSchedule, elementwise, huber_threshold
from memtrain.training.loss_weights import OF_FLOWS, Weighting, timestep_weight
from memtrain.training.timesteps import TimestepSampler, Uniform

READABLE = 1e-5
"""Weights below this value count as 0, because the rest of a sample's gradient would not show its loss."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Options of the loss.

    Args:
        timesteps: the distribution of timesteps (:mod:`memtrain.training.timesteps`); by default uniform.
        criterion: the criterion of an error (:mod:`memtrain.training.criteria`).
        huber_c: the threshold of `huber` and `smooth_l1`.
        huber_schedule: the rule by which this threshold depends on the timestep.
        min_snr_gamma: γ of min-SNR-γ (Hang et al., 2023; 5 there), which weights the loss; None for no such weight.
        weighting: another weighting of timesteps (:mod:`memtrain.training.loss_weights`).
        noise_offset: the strength of a per-channel constant in the noise, 0.05 to 0.1 for darker and brighter images.
        input_perturbation: γ of Ning et al., "Input Perturbation Reduces Exposure Bias in Diffusion Models", 2023. The
            denoiser sees this much more noise than it must predict; 0.1 there.
    """

    timesteps: TimestepSampler | None = None
    criterion: Criterion = "mse"
    huber_c: float = 0.1
    huber_schedule: HuberSchedule = "snr"
    min_snr_gamma: float | None = None
    weighting: Weighting = "none"
    noise_offset: float = 0.0
    input_perturbation: float = 0.0

    def check(self, prediction_type: str, snr: Tensor) -> None:
        """Refuse options that contradict each other or do not fit a model.

        Args:
            prediction_type: the prediction type of the model.
            snr: the signal-to-noise ratio of each of its timesteps, `(steps,)`.

        Raises:
            ConfigurationError: if two options contradict each other, if the weighting is not defined for the model, or
                if the timesteps are not those of the model.
        """
        for name in ("noise_offset", "input_perturbation"):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise _refused(f"{name}={value}", "a number of at least 0", f"set objective.{name} to 0 or more")
        for name in ("huber_c", "min_snr_gamma"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise _refused(f"{name}={value}", "a number above 0", "set huber_c to 0.1, or min_snr_gamma to 5")
        if self.min_snr_gamma is not None and self.weighting != "none":
            raise _refused(
                f"min_snr_gamma={self.min_snr_gamma} and weighting={self.weighting!r} both weight timesteps",
                "one of both",
                "remove objective.min_snr_gamma or objective.weighting",
            )
        if self.weighting in OF_FLOWS and prediction_type != "flow_prediction":
            raise _refused(
                f"weighting={self.weighting!r}, but the model predicts {prediction_type}",
                "a model of flow matching, such as Stable Diffusion 3 or FLUX.1",
                "set min_snr_gamma: 5 or weighting: debiased",
            )
        self.draw_timesteps(1, generator=torch.Generator(), snr=snr)

    def draw_timesteps(self, count: int, *, generator: torch.Generator, snr: Tensor) -> Tensor:
        """Draw timesteps `(count,)` int64 on the generator's device (see :class:`TimestepSampler`)."""
        return (self.timesteps or Uniform()).draw(count, steps=len(snr), generator=generator, snr=snr)

    # Noise

    def noise(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Draw noise of the shape of `latents`, on their device."""
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        if self.noise_offset:
            shape = (*latents.shape[:2], 1, 1)
            noise = noise + self.noise_offset * torch.randn(shape, generator=generator, device=latents.device)
        return noise

    def shown_noise(self, noise: Tensor, generator: torch.Generator) -> Tensor:
        """Return the noise that the denoiser sees, given the noise to predict; the same without perturbation."""
        if not self.input_perturbation:
            return noise
        more = torch.randn(noise.shape, generator=generator, device=noise.device)
        return noise + self.input_perturbation * more

    # Losses

    def reads(self, batch: Mapping[str, Any]) -> bool:
        """Return whether each sample's loss can be read from the gradient."""
        return self.criterion == "mse" and "loss_mask" not in batch

    def sample_loss(self, prediction: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Compute the unweighted squared error of each sample, `(B,)`, which the monitor watches.

        Args:
            prediction: the prediction, `(B, C, h, w)`.
            target: the target, of the same shape.
            mask: the mask of :func:`loss_mask`, `(B, 1, h, w)`, or None.
        """
        return per_sample_mse(prediction, target, mask=mask)

    def trained_loss(
        self, prediction: Tensor, target: Tensor, *, mask: Tensor | None, snr: Tensor, share: Tensor
    ) -> Tensor:
        """Compute the trained loss of each sample by the criterion, before weights, `(B,)`.

        Args:
            prediction: the prediction, `(B, C, h, w)`.
            target: the target, of the same shape.
            mask: the mask, `(B, 1, h, w)`, or None.
            snr: the signal-to-noise ratios of the timesteps, `(B,)`.
            share: the timesteps over their number, `(B,)`.
        """
        if self.criterion == "mse":
            return self.sample_loss(prediction, target, mask=mask)
        threshold = huber_threshold(self.huber_schedule, self.huber_c, snr=snr, share=share)
        errors = elementwise(self.criterion, prediction, target, threshold=threshold)
        return errors.flatten(1).mean(1) if mask is None else masked_mean(errors, mask)

    # Weights

    def weight(self, snr: Tensor, prediction_type: str) -> Tensor:
        """Compute the weight of the loss at each signal-to-noise ratio, `(B,)`."""
        if self.min_snr_gamma is not None:
            weight = min_snr_weight(snr, self.min_snr_gamma, prediction_type)
        else:
            weight = timestep_weight(self.weighting, snr, prediction_type=prediction_type)
        return torch.where(weight < READABLE, 0.0, weight)

    def batch_weight(self, batch: Any, like: Tensor) -> Tensor:
        """Return the weight of each sample of a batch, by its `weight`, in the shape and on the device of `like`.

        Raises:
            DataError: if the shape is not `(B,)`.
        """
        given = batch.get("weight") if isinstance(batch, Mapping) else None
        if given is None:
            return torch.ones_like(like)
        given = torch.as_tensor(given, device=like.device)
        if given.shape != like.shape:
            raise DataError(
                f"`weight` of the batch has the shape {tuple(given.shape)} for {len(like)} samples",
                expected="one number for each sample, (B,)",
                remedy="correct it in the data",
            )
        return given.to(like)


def loss_mask(batch: Mapping[str, Any], latents: Tensor) -> Tensor | None:
    """Return `loss_mask` of a batch, `(B, 1, h, w)` float on the device of the latents; None if it has none.

    Args:
        batch: the batch, which may have `loss_mask`, the weight of each place of the latents.
        latents: the latents, `(B, C, h, w)`.

    Raises:
        DataError: if the mask has another shape, is empty for a sample, or has a negative value.
    """
    mask = batch.get("loss_mask")
    if mask is None:
        return None
    shape = (len(latents), 1, *latents.shape[2:])
    if tuple(mask.shape) != shape:
        raise DataError(
            f"`loss_mask` of the batch has the shape {tuple(mask.shape)}",
            expected=f"{shape}: one channel, in the size of the latents",
            remedy="scale masks to the size of the latents in the code that makes the data",
        )
    mask = mask.to(latents.device, torch.float32)
    area = mask.flatten(1)
    broken = ((area < 0).any(1) | ~(area.sum(1) > 0)).tolist()
    if any(broken):
        keys = batch.get("key") or range(len(broken))
        named = [str(key) for key, wrong in zip(keys, broken, strict=True) if wrong]
        raise DataError(
            f"The loss masks of {len(named)} samples are empty or negative, first {named[0]}",
            expected="a mask that shows some of each image",
            remedy="correct these masks, leave the samples out, or crop so that the shown part stays in the image",
        )
    return mask


def _refused(found: str, expected: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"The objective has {found}", expected=expected, remedy=remedy)
