"""What a reference profile is known by: the content of the base model, of the settings and of each sample.

To the base model belongs what the module shows of it beside the denoiser: `text_encoder`, `vae`, the configuration of
`scheduler` and `noise_offset`. A sample is its latents (or pixels), its tokens, and its mask and sizes where it
has them, whatever its key.
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

SHOWN = ("loss_mask", "original_size", "crop_top_left", "target_size")
"""Further fields of a batch on which a loss under the base model depends."""


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
    parts = {name: getattr(module, name, None) for name in ("text_encoder", "vae")}
    found: dict[str, Any] = {
        name: weights_fingerprint(part) for name, part in parts.items() if isinstance(part, nn.Module)
    }
    config = getattr(getattr(module, "scheduler", None), "config", None)
    if isinstance(config, Mapping):
        found["scheduler"] = {name: str(value) for name, value in config.items() if not name.startswith("_")}
    if getattr(module, "noise_offset", 0):
        found["noise_offset"] = float(module.noise_offset)
    return found


def content_fingerprints(batch: dict[str, Any]) -> list[str]:
    """sha256 of each sample's latents (or pixels), of its token ids, and of its mask and sizes where it has them.

    Raises:
        DataError: if the batch lacks them.
    """
    if "input_ids" not in batch or not {"latents", "pixel_values"} & batch.keys():
        raise DataError(
            f"A reference profile cannot tell samples by their content: the batch holds {sorted(batch)}",
            expected="`input_ids`, and `latents` or `pixel_values`",
            remedy="add them to the batches of unique_dataloader, or set `reference: paired`",
        )
    image = batch["latents"] if "latents" in batch else batch["pixel_values"]
    fields = [image.cpu(), batch["input_ids"].cpu(), *(batch[name].cpu() for name in SHOWN if name in batch)]
    return [hashlib.sha256(b"".join(map(_bytes, row))).hexdigest() for row in zip(*fields, strict=True)]


def _bytes(values: Tensor) -> bytes:
    """The bytes of values of any type, also one that numpy does not know."""
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
