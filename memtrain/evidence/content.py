"""What a reference profile is known by: the content of the base model, of the settings and of each sample.

To the base model belongs what the module shows of it beside the denoiser: `text_encoder` (`_2`, `_3`; or all of them
in `text_encoders`), `vae`, the configuration of `scheduler`, `noise_offset`, `input_perturbation` and `conditioning`. A
sample is its latents (or pixels), its tokens, the sizes that the denoiser is told and the mask of its loss, whatever
its key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.errors import DataError
from memtrain.models.fingerprint import weights_fingerprint

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
IMAGES = frozenset({"latents", "pixel_values"})
"""By which samples are known, in their batches."""
FURTHER = ("input_ids_2", "input_ids_3", "original_size", "crop_top_left", "target_size", "loss_mask")
"""Fields of a batch that make a sample another one, too."""


def profile_fingerprint(
    denoiser: nn.Module, module: Any = None, *, settings: Sequence[Any], fitted: Sequence[Mapping[str, Any]] = ()
) -> str:
    """A profile's name, 16 hexadecimal digits.

    Args:
        denoiser: of the base model.
        module: that holds it and, perhaps, the rest of the base model.
        settings: of the measurement, for JSON.
        fitted: states of the signals that were fitted to data.
    """
    around = module_fingerprint(module)
    named = json.dumps(
        [
            weights_fingerprint(denoiser),
            *settings,
            *([around] if around else []),
            # What a fitted signal says of a sample depends on the other samples that it was fitted to.
            *([hashlib.sha256(repr(_plain(fitted)).encode()).hexdigest()] if fitted else []),
        ],
        sort_keys=True,
    )
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def module_fingerprint(module: Any) -> dict[str, Any]:
    """What values under the base model depend on beside the denoiser, as far as the module has it, for JSON."""
    parts = {name: getattr(module, name, None) for name in (*TEXT_ENCODERS, "vae")}
    encoders = getattr(module, "text_encoders", None)
    # Of the host, this may be anything.
    parts |= {str(name): encoders[name] for name in encoders} if isinstance(encoders, Mapping | nn.ModuleDict) else {}
    found: dict[str, Any] = {
        name: weights_fingerprint(part) for name, part in parts.items() if isinstance(part, nn.Module)
    }
    config = getattr(getattr(module, "scheduler", None), "config", None)
    if isinstance(config, Mapping):
        found["scheduler"] = {name: str(value) for name, value in config.items() if not name.startswith("_")}
    for name in ("noise_offset", "input_perturbation"):
        if getattr(module, name, 0):
            found[name] = float(getattr(module, name))
    conditioning = getattr(module, "conditioning", None)
    if isinstance(conditioning, Mapping) and conditioning:
        found["conditioning"] = {str(name): str(value) for name, value in conditioning.items()}
    return found


def tells_content(batch: Mapping[str, Any]) -> bool:
    """Whether a batch holds what its samples are known by: tokens and images."""
    return "input_ids" in batch and bool(IMAGES & batch.keys())


def content_fingerprints(batch: dict[str, Any]) -> list[str]:
    """sha256 of each sample's latents (or pixels), its token ids, the sizes that the denoiser is told, and its mask.

    Raises:
        DataError: if the batch lacks them.
    """
    if not tells_content(batch):
        raise DataError(
            f"A reference profile cannot tell samples by their content: the batch holds {sorted(batch)}",
            expected="`input_ids`, and `latents` or `pixel_values`",
            remedy="add them to the batches of unique_dataloader, or set `reference: paired`",
        )
    image = batch["latents"] if "latents" in batch else batch["pixel_values"]
    fields = [image, batch["input_ids"], *(batch[name] for name in FURTHER if isinstance(batch.get(name), Tensor))]
    rows = zip(*(field.cpu() for field in fields), strict=True)
    return [hashlib.sha256(b"".join(map(_bytes, row))).hexdigest() for row in rows]


def _bytes(values: Tensor) -> bytes:
    """The bytes of values of any type, also one that numpy does not know."""
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
