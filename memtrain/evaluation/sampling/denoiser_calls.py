"""Show detectors every call of a pipeline's denoiser while it samples.

The denoiser is observed through hooks that are always removed, also after an error. With classifier-free guidance the
pipeline calls the denoiser on `[n unconditional; n conditional]` latents: the second half is the conditional one, for
every n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evaluation.sampling.call_attention import CallAttention
from memtrain.evaluation.sampling.decoding import decode_images
from memtrain.models.backbones.base import find_backbone
from memtrain.models.placement import execution_device, offloaded
from memtrain.models.stock_pipeline import as_maps, check_pipeline, denoiser_of, has_two_halves, text_tokenizer

KNOWN = {field.name for field in fields(DenoiserStep)} | {"images"}
"""Names that a detector can list in `needs`."""


@contextmanager
def observed(
    pipeline: DiffusionPipeline,
    detectors: Sequence[Detector],
    *,
    prompts: Sequence[str],
    steps: int,
    guidance_scale: float,
    until_read: bool = False,
) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the readings of `detectors` from each denoiser call, per detector name.

    At the end, each list holds one tensor `(B, R, ...)`: the readings as the detector condenses them.

    Raises:
        AllRead: with `until_read`, from the pipeline's call, once no detector reads any further call.
        ConfigurationError: if a detector needs a value that sampling cannot provide.
        ProbeError: if the batch of a call differs from the number of prompts (twice it with guidance), or a detector
            read nothing.
    """
    check_needs(pipeline, detectors, guidance_scale=guidance_scale)
    calls = _Calls(pipeline, detectors, prompts=prompts, guidance_scale=guidance_scale, until_read=until_read)
    with ExitStack() as stack:
        for remove in calls.attach() if detectors else ():
            stack.callback(remove)
        yield calls.kept
    for detector in detectors:
        readings = calls.kept[detector.name]
        if not readings:
            raise ProbeError(
                f"The detector {detector.name!r} read nothing in {steps} sampling steps",
                expected="at least one reading per image",
                remedy="check the detector's steps; if the denoiser was compiled, evaluate the uncompiled one",
            )
        readings[:] = [detector.condense(readings)]


def check_needs(pipeline: DiffusionPipeline, detectors: Sequence[Detector], *, guidance_scale: float) -> None:
    """Refuse detectors whose needs sampling cannot meet.

    Raises:
        ConfigurationError: if there are such detectors; the message names them.
    """
    kind = type(pipeline).__name__
    check_pipeline(kind)
    for detector in detectors:
        if not detector.needs <= KNOWN:
            raise ConfigurationError(
                f"{detector.name} needs {sorted(detector.needs - KNOWN)}, which nothing provides",
                expected=f"names among {sorted(KNOWN)}",
                remedy="change the detector's `needs`",
            )
        if "alphas_cumprod" in detector.needs and not hasattr(pipeline.scheduler, "alphas_cumprod"):
            raise ConfigurationError(
                f"{detector.name} needs the noise schedule, and {type(pipeline.scheduler).__name__} has none",
                expected="a scheduler with alphas_cumprod, such as DDIM",
                remedy="change the scheduler or leave the detector out",
            )
        if kind == "StableDiffusion3Pipeline" and detector.needs & {"prompt_length", "eos_attention"}:
            raise ConfigurationError(
                f"{detector.name} needs one end of the prompt, but {kind} reads the prompt twice, with CLIP and with "
                f"T5",
                expected="a pipeline whose attention reads one text",
                remedy="leave the detector out",
            )
        if kind == "FluxPipeline" and "denoise" in detector.needs:
            raise ConfigurationError(
                f"{detector.name} calls the denoiser on unpatched latents, but {kind} takes latents in patches",
                expected="a pipeline that takes latents without patches",
                remedy="leave the detector out",
            )
    if offloaded(pipeline) and (calling := [one.name for one in detectors if "denoise" in one.needs]):
        raise ConfigurationError(
            f"{', '.join(calling)} would call the denoiser, which is on the CPU between the pipeline's own calls",
            expected="a pipeline that is completely on one device",
            remedy="remove --offload or the detector",
        )
    blind = [detector.name for detector in detectors if "unconditional" in detector.needs]
    if blind and not has_two_halves(pipeline, guidance_scale):
        raise ConfigurationError(
            f"{', '.join(blind)} needs unconditional predictions, but {kind} at guidance_scale={guidance_scale} makes "
            "none",
            expected="guidance_scale above 1, and a model that was not distilled to a single pass",
            remedy="raise guidance_scale or leave the detector out",
        )


class AllRead(Exception):
    """Ends a sampling once no detector reads any further call. It is not an error."""


class _Calls:
    """The hooks on one pipeline's denoiser for one batch of prompts."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        detectors: Sequence[Detector],
        *,
        prompts: Sequence[str],
        guidance_scale: float,
        until_read: bool,
    ) -> None:
        self.pipeline, self.detectors, self.guidance_scale = pipeline, detectors, guidance_scale
        self.halves, self.until_read = 2 if has_two_halves(pipeline, guidance_scale) else 1, until_read
        self.denoiser: Any = denoiser_of(pipeline)
        self.images, self.index = len(prompts), 0
        self.kept: dict[str, list[Tensor]] = {detector.name: [] for detector in detectors}
        backbone = find_backbone(self.denoiser)
        if backbone is None:
            raise ProbeError(
                f"No backbone knows {type(self.denoiser).__name__}",
                expected="a denoiser of a family in memtrain.models.backbones",
                remedy="add a file for this family",
            )
        self.backbone = backbone
        needs = frozenset[str]().union(*(detector.needs for detector in detectors))
        self.lengths = None
        if needs & {"prompt_length", "eos_attention"}:
            self.lengths = prompt_lengths(pipeline, prompts).to(execution_device(pipeline))
        self.attention = None
        if needs & {"token_attention", "eos_attention"}:
            self.attention = CallAttention(self.denoiser, backbone, images=self.images)
        self._again = False

    def attach(self) -> list[Any]:
        hooks = [] if self.attention is None else self.attention.attach()
        return [
            *hooks,
            self.denoiser.register_forward_pre_hook(self._before, with_kwargs=True).remove,
            self.denoiser.register_forward_hook(self._after, with_kwargs=True).remove,
        ]

    @property
    def total(self) -> int:
        """Number of calls of this sampling; some schedulers make more calls than steps."""
        return len(self.pipeline.scheduler.timesteps)

    def _asks(self, need: str) -> bool:
        asking = (detector for detector in self.detectors if need in detector.needs)
        return any(detector.reads_attention(self.index, self.total) for detector in asking)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._again or self.attention is None:
            return
        eos = self.lengths - 1 if self.lengths is not None and self._asks("eos_attention") else None
        tokens = self.backbone.inputs(args, kwargs)[2].shape[1]
        self.attention.begin(tokens, every_token=self._asks("token_attention"), eos=eos)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._again:
            return
        latents, timestep, _ = self.backbone.inputs(args, kwargs)
        positions = kwargs.get("img_ids")
        channels = latents.shape[1] if positions is None else latents.shape[2] // 4
        parts = self._split(as_maps(self.backbone.output(output), channels, positions=positions))
        if self.attention is not None:
            self.attention.check()
            self.attention.end()
        step = DenoiserStep(
            index=self.index,
            timestep=float(torch.as_tensor(timestep).flatten()[0]),
            conditional=parts[-1],
            unconditional=parts[0] if self.halves == 2 else None,
            total=self.total,
            latents=as_maps(latents[-self.images :], channels, positions=positions),
            token_attention=self.attention.token_attention if self.attention is not None else None,
            eos_attention=self.attention.eos_attention if self.attention is not None else None,
            prompt_length=self.lengths,
            alphas_cumprod=getattr(self.pipeline.scheduler, "alphas_cumprod", None),
            prediction_type=self.pipeline.scheduler.config.get("prediction_type", "flow"),
            guidance_scale=self.guidance_scale,
            timesteps=tuple(map(float, self.pipeline.scheduler.timesteps)),
            denoise=lambda other, at: self._denoise(args, kwargs, other, at),
            decode=lambda clean: decode_images(self.pipeline, clean),
        )
        for detector in self.detectors:
            reading = detector.read(step)
            if reading is not None:
                self.kept[detector.name].append(reading)
        self.index += 1
        last = max(detector.calls(self.total) for detector in self.detectors)
        if self.until_read and last <= self.index < self.total:
            raise AllRead

    def _split(self, prediction: Tensor) -> tuple[Tensor, ...]:
        if len(prediction) != self.halves * self.images:
            raise ProbeError(
                f"The denoiser was called with {len(prediction)} latents for {self.images} images",
                expected=f"{self.halves * self.images}: "
                + ("[unconditional; conditional]" if self.halves == 2 else "without guidance"),
                remedy="use a pipeline with plain classifier-free guidance",
            )
        return prediction.chunk(self.halves)

    def _denoise(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], latents: Tensor, timestep: float | None
    ) -> tuple[Tensor, Tensor | None]:
        """Repeat the call with `args` and `kwargs`, with other latents and perhaps at another timestep."""
        known, then, _ = self.backbone.inputs(args, kwargs)
        now = then if timestep is None else torch.full_like(torch.as_tensor(then), timestep)
        if timestep is not None and not any(value is then for value in (*args, *kwargs.values())):
            raise ProbeError(
                f"{type(self.denoiser).__name__} is called without its original timestep",
                expected="a timestep among the arguments",
                remedy="leave out the detectors that need another timestep",
            )
        sample = torch.cat([latents.to(known.dtype)] * self.halves)

        def exchanged(value: Any) -> Any:
            return sample if value is known else now if value is then else value

        self._again = True
        try:
            output = self.denoiser(
                *(exchanged(value) for value in args), **{name: exchanged(value) for name, value in kwargs.items()}
            )
        finally:
            self._again = False
        parts = self._split(as_maps(self.backbone.output(output), known.shape[1]))
        return parts[-1], parts[0] if self.halves == 2 else None


def read_images(detectors: Sequence[Detector], images: Tensor, kept: dict[str, list[Tensor]]) -> None:
    """Show the finished images to the detectors that need them.

    Args:
        detectors: all detectors of a sampling.
        images: images `(B, 3, H, W)` uint8.
        kept: lists of :func:`observed`, to which readings are appended.
    """
    for detector in detectors:
        reading = detector.read_images(images) if "images" in detector.needs else None
        if reading is not None:
            kept[detector.name].append(reading)


def prompt_lengths(pipeline: DiffusionPipeline, prompts: Sequence[str], *, truncation: bool = True) -> Tensor:
    """Count the tokens of each prompt with BOS and EOS, `(B,)`; with `truncation` at most the text encoder's length."""
    tokenizer, most = text_tokenizer(pipeline)
    encoded = tokenizer(list(prompts), truncation=truncation, max_length=most if truncation else None)["input_ids"]
    return torch.tensor([len(ids) for ids in encoded])
