"""Options that trade time, memory and precision of a training step without changing what is trained.

| option | cost | gain |
|---|---|---|
| `gradient_checkpointing` | a second forward of each block | most activations |
| `channels_last` | nothing | time of convolutions on GPUs and on some CPUs |
| `compile` | minutes at the first step, and again for new sizes | time of every step on a GPU |
| `tf32` | 13 bits of precision in products of float32 matrices | most of their time on GPUs since Ampere |
| `frozen_dtype` | precision of the frozen parts | half of their memory |
| `quantize` | time, and more precision | three quarters and more of the base's memory |
| `ema_offload` | a copy of the average at each step | its memory on the device |

Trained weights stay in float32, because half precision loses small updates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from memtrain.training.averaging import OffloadedAverage
from memtrain.training.quantization import Quantization, quantize, require_quantizable

FrozenType = Literal["float32", "bfloat16", "float16"]
"""The names of types of weights."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The way in which the denoiser runs.

    Args:
        gradient_checkpointing: whether to trade time for memory (non-reentrant).
        channels_last: whether to use this memory format for the convolutions of denoiser and autoencoder.
        compile: whether to compile the denoiser in place with torch.compile.
        tf32: whether to allow TensorFloat-32 in products of float32 matrices on GPUs.
        frozen_dtype: the type of the frozen parts: autoencoder, text encoders, and with `lora` the denoiser under the
            adapters. An autoencoder that overflows in float16, such as that of SDXL, stays in float32.
        quantize: the storage of the denoiser's weights under the adapters, with `lora`
            (:mod:`memtrain.training.quantization`).
        ema_offload: whether to keep the weight average on the CPU.
    """

    gradient_checkpointing: bool = False
    channels_last: bool = True
    compile: bool = False
    tf32: bool = False
    frozen_dtype: FrozenType = "float32"
    quantize: Quantization = "none"
    ema_offload: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of `frozen_dtype`."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.frozen_dtype]

    def input_dtype(self, *, adapters: bool) -> torch.dtype | None:
        """Return the type of the denoiser's inputs; None if no frozen part has another type."""
        if self.dtype == torch.float32:
            return None
        return self.dtype if adapters else torch.float32

    def loaded_types(self, *, adapters: bool, trained_text: bool) -> dict[str, torch.dtype] | None:
        """Return the type in which each part is loaded, so that no part takes a larger one; None if all are float32.

        Args:
            adapters: whether the denoiser is frozen and gets adapters.
            trained_text: whether the text encoders are trained.
        """
        if self.dtype == torch.float32:
            return None
        denoiser = self.dtype if adapters else torch.float32
        # The autoencoder is small, and may have to stay in float32.
        whole = {"vae": torch.float32, "unet": denoiser, "transformer": denoiser}
        return {"default": torch.float32 if trained_text else self.dtype, **whole}

    def check(self, *, adapters: bool) -> None:
        """Refuse impossible options before anything is loaded; `adapters` says whether adapters are trained."""
        require_quantizable(self.quantize, adapters=adapters)

    def prepare(self, parts: Any, *, adapters: bool) -> None:
        """Prepare the parts of a pipeline, before adapters are added and before anything is attached.

        Args:
            parts: a :class:`memtrain.training.pipelines.base.TrainablePipeline`, whose trained weights require
                gradients.
            adapters: whether the denoiser is frozen and gets adapters.
        """
        frozen = [encoder for encoder in parts.text_encoders.values() if not _trained(encoder)]
        if not (self.dtype == torch.float16 and parts.vae.config.get("force_upcast", False)):
            frozen.append(parts.vae)
        if adapters:
            frozen.append(parts.denoiser)
        for part in frozen:
            store_as(part, self.dtype)
        if self.channels_last:
            # This makes the encoding of images twice as fast on a CPU.
            parts.vae.to(memory_format=torch.channels_last)
        self.apply(parts.denoiser)
        if adapters:
            quantize(parts.denoiser, self.quantize, dtype=self.dtype)

    def apply(self, denoiser: Any) -> None:
        """Prepare a denoiser before anything is attached to it."""
        if self.channels_last:
            denoiser.to(memory_format=torch.channels_last)
        if self.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        if self.compile:
            # In place: tracing at the first call then includes the adapters and hooks that exist by then.
            denoiser.compile()
        if self.tf32 and torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True

    def finish(self, trained: Iterable[nn.Parameter]) -> None:
        """Turn trained weights into float32, whatever the type of the weights under the adapters."""
        for parameter in trained:
            parameter.data = parameter.data.float()

    def average(self, trained: list[nn.Parameter], decay: float | None) -> EMAModel | None:
        """Return the weight average; None without a decay."""
        if decay is None:
            return None
        if self.ema_offload:
            return OffloadedAverage(trained, decay=decay)
        return EMAModel(trained, decay=decay, foreach=True)


def store_as(module: Any, dtype: torch.dtype) -> None:
    """Change the type of a frozen module's weights in place, except weights that its class keeps in float32.

    Some layers overflow in half precision, such as the output of T5's feed-forward blocks in float16. Values that each
    model computes itself, such as tables of positions, do not change.
    """
    exact = list(getattr(module, "_keep_in_fp32_modules_strict", None) or [])
    # transformers keeps these weights in float32 only for float16, diffusers always.
    if dtype == torch.float16 or type(module).__module__.startswith("diffusers"):
        exact += getattr(module, "_keep_in_fp32_modules", None) or []
    for name, layer in module.named_modules():
        if set(name.split(".")) & set(exact):
            continue
        computed = layer._non_persistent_buffers_set
        stored = [buffer for own, buffer in layer._buffers.items() if own not in computed]
        for value in (*layer._parameters.values(), *stored):
            if value is not None and value.is_floating_point():
                value.data = value.data.to(dtype)


def _trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
