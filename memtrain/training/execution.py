"""What trades time, memory and precision of a training step without changing what is trained.

| option | what it costs | what it saves |
|---|---|---|
| `gradient_checkpointing` | a second forward of each block | most activations |
| `channels_last` | nothing | time of convolutions on GPUs, some on CPUs |
| `compile` | minutes at the first step, and again for new sizes | time of every step on a GPU |
| `tf32` | 13 bits of precision in products of float32 matrices | most of their time on GPUs since Ampere |
| `frozen_dtype` | precision of what is frozen | half of its memory |
| `quantize` | time, and more precision | three quarters and more of the base's memory |
| `ema_offload` | the average travels at each step | its memory on the device |

What is trained stays in float32: in half precision small updates are lost.
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
"""By name, a type of weights."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the denoiser is run.

    Args:
        gradient_checkpointing: trade time for memory (non-reentrant).
        channels_last: memory format of the convolutions of denoiser and autoencoder.
        compile: compile the denoiser with torch.compile, in place.
        tf32: allow TensorFloat-32 in products of float32 matrices, on GPUs.
        frozen_dtype: type of what is not trained: autoencoder, text encoders, and with `lora` the denoiser under the
            adapters. An autoencoder that overflows in float16, as that of SDXL does, stays in float32.
        quantize: with `lora`, how the denoiser's weights under the adapters are stored
            (:mod:`memtrain.training.quantization`).
        ema_offload: keep the weight average on the CPU.
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
        """`frozen_dtype`."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.frozen_dtype]

    def input_dtype(self, *, adapters: bool) -> torch.dtype | None:
        """What the denoiser's inputs have to be made, None where nothing is frozen in another type."""
        if self.dtype == torch.float32:
            return None
        return self.dtype if adapters else torch.float32

    def loaded_types(self, *, adapters: bool, trained_text: bool) -> dict[str, torch.dtype] | None:
        """In which type each part is read, so that none is held in a larger one; None where all are float32.

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
        """Refuse what cannot be done, before anything is loaded; `adapters`: whether these are what is trained."""
        require_quantizable(self.quantize, adapters=adapters)

    def prepare(self, parts: Any, *, adapters: bool) -> None:
        """Prepare the parts of a pipeline, before adapters are in them and before anything is attached.

        Args:
            parts: a :class:`memtrain.training.pipelines.base.TrainablePipeline`, of which what is trained requires
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
            # Images are encoded twice as fast on a CPU.
            parts.vae.to(memory_format=torch.channels_last)
        self.apply(parts.denoiser)
        if adapters:
            quantize(parts.denoiser, self.quantize, dtype=self.dtype)

    def apply(self, denoiser: Any) -> None:
        """Prepare a denoiser, before anything is attached to it."""
        if self.channels_last:
            denoiser.to(memory_format=torch.channels_last)
        if self.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
        if self.compile:
            # In place: what is traced at the first call has the adapters and hooks that are there by then.
            denoiser.compile()
        if self.tf32 and torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True

    def finish(self, trained: Iterable[nn.Parameter]) -> None:
        """What is trained becomes float32, whatever the type of the weights that adapters were made for."""
        for parameter in trained:
            parameter.data = parameter.data.float()

    def average(self, trained: list[nn.Parameter], decay: float | None) -> EMAModel | None:
        """The weight average; None without a decay."""
        if decay is None:
            return None
        if self.ema_offload:
            return OffloadedAverage(trained, decay=decay)
        return EMAModel(trained, decay=decay, foreach=True)


def store_as(module: Any, dtype: torch.dtype) -> None:
    """Change the type of a frozen module's weights, in place, but for those that its class keeps in float32.

    Some layers overflow in half precision, such as the output of T5's feed-forward blocks in float16. What is computed
    anew for each model, such as tables of positions, stays as it is.
    """
    exact = list(getattr(module, "_keep_in_fp32_modules_strict", None) or [])
    # transformers keeps these for float16 alone, diffusers always.
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
