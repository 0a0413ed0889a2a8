"""Model interface of localization: a denoiser, its text embeddings and one noise prediction.

:meth:`Predictor.of` builds it for Stable Diffusion 1.x and 2.x pipelines. For any other denoiser whose value layers see
only the text, you make it from two functions:

    Predictor(
        transformer,
        encode=lambda prompts: embeddings(prompts),                           # (P, T, width)
        predict=lambda latents, timesteps, text: transformer(latents, ...),   # (B, C, h, w), predicted noise
        shape=(4, 128, 128),
        timesteps=(981.0, 961.0),
    )

A neuron is an output channel of a value projection. By default the search covers the sites of the down blocks and the
middle of a UNet, as in the paper (7 layers of Stable Diffusion 1.x). For other denoisers it covers the first half of
the sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from memtrain.errors import ConfigurationError, ProbeError
from memtrain.functional.neurons import neuron_activation
from memtrain.models.backbones.base import Backbone, find_backbone, unwrap
from memtrain.models.backbones.unet import UNetBackbone
from memtrain.models.encoding import encode_prompts
from memtrain.models.fingerprint import hash_tensors
from memtrain.models.stock_pipeline import refuse_offloaded
from memtrain.models.value_hooks import ValueHooks


@dataclass(frozen=True)
class Predictor:
    """A denoiser with functions for its text embeddings and its noise prediction.

    Attributes:
        denoiser: the denoiser, wrapped or not.
        encode: a function from P prompts to text embeddings `(P, T, width)`, on the denoiser's device.
        predict: a function from latents `(B, C, h, w)`, timesteps `(B,)` and text embeddings `(B, T, width)` to the
            predicted noise `(B, C, h, w)`, without guidance.
        shape: the shape `(C, h, w)` of the latents.
        timesteps: the timesteps of at least the first calls of the sampler, from 0 to 1,000.
        name: the origin of the model, written to results.
        schedule: a function from a number of steps to its timesteps, for searches that refine with another number.
    """

    denoiser: nn.Module
    encode: Callable[[Sequence[str]], Tensor]
    predict: Callable[[Tensor, Tensor, Tensor], Tensor]
    shape: tuple[int, int, int]
    timesteps: tuple[float, ...]
    name: str = ""
    schedule: Callable[[int], tuple[float, ...]] | None = None

    @staticmethod
    def of(pipeline: StableDiffusionPipeline, *, steps: int = 50) -> Predictor:
        """Make a predictor from a pipeline whose denoiser takes latents, timestep and states of one text encoder.

        Args:
            pipeline: the Stable Diffusion 1.x or 2.x pipeline; velocity is converted to noise.
            steps: the number of sampling steps, which sets the timesteps. They are the steps of DDIM with the
                pipeline's noise schedule for any scheduler, as in NeMo's published code.

        Raises:
            ConfigurationError: if the pipeline is of another kind, or offloaded.
        """
        kind = pipeline.scheduler.config.get("prediction_type")
        others = not hasattr(pipeline, "unet") or getattr(pipeline, "text_encoder_2", None) is not None
        if others or kind not in ("epsilon", "v_prediction"):
            raise ConfigurationError(
                f"{type(pipeline).__name__} with {kind or 'other'!r} predictions is not supported",
                expected="a Stable Diffusion 1.x or 2.x pipeline that predicts epsilon or velocity",
                remedy="pass a memtrain.localization.predictor.Predictor with your own two functions",
            )
        refuse_offloaded(pipeline)
        unet, scheduler = pipeline.unet, DDIMScheduler.from_config(pipeline.scheduler.config)
        alpha = scheduler.alphas_cumprod

        def schedule(count: int) -> tuple[float, ...]:
            scheduler.set_timesteps(count)
            # At timesteps without signal, a velocity does not determine the noise.
            return tuple(float(step) for step in scheduler.timesteps if kind == "epsilon" or alpha[step] > 1e-6)

        def encode(prompts: Sequence[str]) -> Tensor:
            return encode_prompts(pipeline, prompts).to(unet.dtype)

        def predict(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
            output: Tensor = unet(latents.to(unet.dtype), timesteps, encoder_hidden_states=text, return_dict=False)[0]
            if kind == "epsilon":
                return output
            signal = alpha[timesteps.long().cpu()].to(latents).view(-1, 1, 1, 1)
            return signal.sqrt() * output + (1 - signal).sqrt() * latents

        size = unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return Predictor(
            unet,
            encode=encode,
            predict=predict,
            shape=(unet.config.in_channels, height, width),
            timesteps=schedule(steps),
            name=str(getattr(pipeline, "name_or_path", "") or unet.config.get("_name_or_path", "")),
            schedule=schedule,
        )

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        return next(self.denoiser.parameters()).device

    @property
    def small(self) -> bool:
        """Whether the fixed cost of a denoiser call dominates, for latents up to 32 × 32."""
        return math.prod(self.shape[1:]) <= 32 * 32

    @property
    def batch_size(self) -> int:
        """Default number of images in one denoiser call: 40, and 10 for large latents on a CPU, because of its caches.

        On one core an image of 64 × 64 latents and 16 channels took 0.027 s in calls of 10, and 0.040 s in calls of 40.
        """
        return 40 if self.small or self.device.type != "cpu" else 10

    @property
    def backbone(self) -> Backbone:
        """Family of the denoiser.

        Raises:
            ProbeError: if the family is not known.
        """
        backbone = find_backbone(self.denoiser)
        if backbone is None:
            raise ProbeError(
                f"{type(unwrap(self.denoiser)).__name__} belongs to no known family of denoisers",
                expected="a denoiser that a file in memtrain/models/backbones accepts",
                remedy="add a backbone file for this denoiser",
            )
        return backbone

    def sites(self, pattern: str | None = None) -> dict[str, nn.Module]:
        """Return the attention modules whose value neurons are searched, in the order of the forward pass.

        Args:
            pattern: the glob over their names, `*` for all; None for the default.

        Raises:
            ProbeError: if the pattern matches no module.
        """
        backbone, denoiser = self.backbone, unwrap(self.denoiser)
        if pattern is not None:
            return backbone.select_sites(denoiser, pattern)
        every = backbone.sites(denoiser)
        if isinstance(backbone, UNetBackbone):
            return {name: site for name, site in every.items() if not name.startswith("up_blocks.")}
        return dict(list(every.items())[: (len(every) + 1) // 2])

    def layer(self, attention: nn.Module) -> nn.Module:
        """Return the value projection of a site."""
        layer: nn.Module = getattr(attention, self.backbone.value_projection(attention))
        return layer

    def widths(self, sites: dict[str, nn.Module]) -> dict[str, int]:
        """Return the number of neurons of each site."""
        return {name: int(getattr(self.layer(site), "out_features", 0)) for name, site in sites.items()}

    @torch.no_grad()
    def activations(self, prompts: Sequence[str], sites: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Compute the mean absolute activation of each neuron over each prompt's tokens, `(P, C)` fp32 for each site.

        The value layers of a UNet take the text embeddings directly, so only these layers run. Other denoisers
        transform the text first, so they run once on fixed noise.
        """
        with self.evaluating():
            text = self.encode(prompts)
            if isinstance(self.backbone, UNetBackbone) and self._plain(sites):
                return {name: neuron_activation(self.layer(site)(text)) for name, site in sites.items()}
            found: dict[str, Tensor] = {}

            def read(name: str, values: Tensor) -> Tensor:
                found[name] = neuron_activation(values)
                return values

            hooks = ValueHooks(self.denoiser, sites, backbone=self.backbone, edit=read).attach()
            try:
                latents = self.noise(1).expand(len(text), -1, -1, -1)
                self.predict(latents, torch.full((len(text),), self.timesteps[0], device=self.device), text)
                hooks.require_reached()
            finally:
                hooks.detach()
            return found

    def _plain(self, sites: dict[str, nn.Module]) -> bool:
        """Whether the value layers take the text embeddings directly."""
        projected = getattr(unwrap(self.denoiser), "encoder_hid_proj", None) is not None
        return not projected and not any(getattr(site, "norm_cross", None) for site in sites.values())

    def noise(self, count: int, *, seed: int = 1) -> Tensor:
        """Draw standard normal noise `(count, C, h, w)` at once, on the CPU, as in NeMo's published code."""
        drawn = torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(self.device)

    def fingerprint(self, sites: dict[str, nn.Module]) -> str:
        """Hash the weights of the value layers; another training gives another hash."""
        named = (
            # A layer's name comes once, before its first parameter.
            ("" if index else name, parameter.float())
            for name, site in sites.items()
            for index, parameter in enumerate(self.layer(site).parameters())
        )
        return hash_tensors(named).hexdigest()[:16]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Keep the denoiser in evaluation mode within the context."""
        training: Any = [module for module in self.denoiser.modules() if module.training]
        self.denoiser.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
