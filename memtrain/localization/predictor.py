"""What localization needs of a model: its denoiser, its text embeddings and one noise prediction.

For Stable Diffusion 1.x and 2.x pipelines :meth:`Predictor.of` builds it; for any other denoiser with value layers that
see the text alone, it is made from two functions:

    Predictor(
        transformer,
        encode=lambda prompts: embeddings(prompts),                           # (P, T, width)
        predict=lambda latents, timesteps, text: transformer(latents, ...),   # (B, C, h, w), predicted noise
        shape=(4, 128, 128),
        timesteps=(981.0, 961.0),
    )

A neuron is an output channel of a value projection. Searched are, unless a pattern says otherwise, the sites of the
down blocks and the middle of a UNet, as in the paper (7 layers of Stable Diffusion 1.x), and the first half of the
sites of other denoisers.
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
    """A denoiser, and how to ask it for noise.

    Attributes:
        denoiser: wrapped or not.
        encode: from P prompts to text embeddings `(P, T, width)`, on the denoiser's device.
        predict: from latents `(B, C, h, w)`, timesteps `(B,)` and text embeddings `(B, T, width)` to the predicted
            noise `(B, C, h, w)`, without guidance.
        shape: `(C, h, w)` of the latents.
        timesteps: of the sampler's calls, the first ones at least, from 0 to 1,000.
        name: where the model comes from; written to results.
        schedule: from a number of steps to its timesteps, for searches that refine with another number.
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
        """From a pipeline whose denoiser takes latents, timestep and the states of one text encoder.

        Args:
            pipeline: Stable Diffusion 1.x or 2.x; velocity is turned into noise.
            steps: sampling steps, which place the first timestep. They are those of DDIM with the pipeline's noise
                schedule, as in NeMo's published code, whatever scheduler the pipeline has.

        Raises:
            ConfigurationError: for pipelines of another kind, and offloaded ones.
        """
        kind = pipeline.scheduler.config.get("prediction_type")
        others = not hasattr(pipeline, "unet") or getattr(pipeline, "text_encoder_2", None) is not None
        if others or kind not in ("epsilon", "v_prediction"):
            raise ConfigurationError(
                f"{type(pipeline).__name__} with {kind or 'other'!r} predictions cannot be read as it is",
                expected="a Stable Diffusion 1.x or 2.x pipeline that predicts epsilon or velocity",
                remedy="give a memtrain.localization.predictor.Predictor made of your own two functions",
            )
        refuse_offloaded(pipeline)
        unet, scheduler = pipeline.unet, DDIMScheduler.from_config(pipeline.scheduler.config)
        alpha = scheduler.alphas_cumprod

        def schedule(count: int) -> tuple[float, ...]:
            scheduler.set_timesteps(count)
            # Where nothing is left of the signal, a velocity says nothing of the noise.
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
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    @property
    def small(self) -> bool:
        """Whether the fixed cost of a denoiser call counts for more than the images in it: latents up to 32 × 32."""
        return math.prod(self.shape[1:]) <= 32 * 32

    @property
    def batch_size(self) -> int:
        """Images in one denoiser call, unless told otherwise: 40, and 10 where a CPU's caches hold no more.

        On one core an image of 64 × 64 latents and 16 channels took 0.027 s in calls of 10, and 0.040 s in calls of 40.
        """
        return 40 if self.small or self.device.type != "cpu" else 10

    @property
    def backbone(self) -> Backbone:
        """Family of the denoiser.

        Raises:
            ProbeError: if it belongs to none that is known.
        """
        backbone = find_backbone(self.denoiser)
        if backbone is None:
            raise ProbeError(
                f"{type(unwrap(self.denoiser)).__name__} belongs to no known family of denoisers",
                expected="a denoiser that a file in memtrain/models/backbones accepts",
                remedy="add a backbone file for it",
            )
        return backbone

    def sites(self, pattern: str | None = None) -> dict[str, nn.Module]:
        """The attention modules whose value neurons are searched, in the order of the forward pass.

        Args:
            pattern: glob over their names, `*` for all; None for the default.

        Raises:
            ProbeError: if it matches none.
        """
        backbone, denoiser = self.backbone, unwrap(self.denoiser)
        if pattern is not None:
            return backbone.select_sites(denoiser, pattern)
        every = backbone.sites(denoiser)
        if isinstance(backbone, UNetBackbone):
            return {name: site for name, site in every.items() if not name.startswith("up_blocks.")}
        return dict(list(every.items())[: (len(every) + 1) // 2])

    def layer(self, attention: nn.Module) -> nn.Module:
        """The value projection of a site."""
        layer: nn.Module = getattr(attention, self.backbone.value_projection(attention))
        return layer

    def widths(self, sites: dict[str, nn.Module]) -> dict[str, int]:
        """Neurons of each site."""
        return {name: int(getattr(self.layer(site), "out_features", 0)) for name, site in sites.items()}

    @torch.no_grad()
    def activations(self, prompts: Sequence[str], sites: dict[str, nn.Module]) -> dict[str, Tensor]:
        """Mean absolute activation of each neuron over the tokens of each prompt, per site `(P, C)` fp32.

        The value layers of a UNet get the text embeddings themselves, so they alone are run; other denoisers transform
        the text first, and are run once on fixed noise.
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
        """Whether nothing stands between the text embeddings and the value layers."""
        projected = getattr(unwrap(self.denoiser), "encoder_hid_proj", None) is not None
        return not projected and not any(getattr(site, "norm_cross", None) for site in sites.values())

    def noise(self, count: int, *, seed: int = 1) -> Tensor:
        """`(count, C, h, w)` standard normal: one draw for all, on the CPU, as in NeMo's published code."""
        drawn = torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(self.device)

    def fingerprint(self, sites: dict[str, nn.Module]) -> str:
        """A hash of the weights of the value layers: the same neurons under another training have another one."""
        named = (
            # A layer is named once, before its first parameter.
            ("" if index else name, parameter.float())
            for name, site in sites.items()
            for index, parameter in enumerate(self.layer(site).parameters())
        )
        return hash_tensors(named).hexdigest()[:16]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The denoiser in evaluation mode, for the duration."""
        training: Any = [module for module in self.denoiser.modules() if module.training]
        self.denoiser.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
