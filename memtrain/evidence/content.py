"""The names of reference profiles, from the content of the base model, the settings and each sample.

The base model consists of the denoiser and these parts of the module: `text_encoder` (`_2`, `_3`; or all of them in
`text_encoders`), `vae`, the configuration of `scheduler`, `noise_offset`, `input_perturbation` and `conditioning`. The
content of a sample is its latents (or pixels), its tokens, the sizes given to the denoiser and the mask of its loss.
Its key does not matter.
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
"""Fields of a batch that name its samples."""
FURTHER = ("input_ids_2", "input_ids_3", "original_size", "crop_top_left", "target_size", "loss_mask")
"""Further fields of a batch that belong to the content of a sample."""


def profile_fingerprint(
    denoiser: nn.Module, module: Any = None, *, settings: Sequence[Any], fitted: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return a profile's name, 16 hexadecimal digits.

    Args:
        denoiser: the denoiser of the base model.
        module: the module that contains it, and possibly the rest of the base model.
        settings: settings of the measurement, for JSON.
        fitted: states of signals that were fitted to data.
    """
    around = module_fingerprint(module)
    named = json.dumps(
        [
            weights_fingerprint(denoiser),
            *settings,
            *([around] if around else []),
            # The value of a fitted signal for a sample depends on the other samples of the fit.
            *([hashlib.sha256(repr(_plain(fitted)).encode()).hexdigest()] if fitted else []),
        ],
        sort_keys=True,
    )
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def module_fingerprint(module: Any) -> dict[str, Any]:
    """Return the module's further parts that values under the base model depend on, for JSON."""
    parts = {name: getattr(module, name, None) for name in (*TEXT_ENCODERS, "vae")}
    encoders = getattr(module, "text_encoders", None)
    # In a host, this may be any value.
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
    """Return whether a batch holds tokens and images, which name its samples."""
    return "input_ids" in batch and bool(IMAGES & batch.keys())


def content_fingerprints(batch: dict[str, Any]) -> list[str]:
    """Return sha256 of each sample's latents (or pixels), token ids, the sizes given to the denoiser, and its mask.

    Raises:
        DataError: if the batch lacks these fields.
    """
    if not tells_content(batch):
        raise DataError(
            f"A reference profile cannot name samples by their content in a batch with {sorted(batch)}",
            expected="`input_ids`, and `latents` or `pixel_values`",
            remedy="add them to the batches of unique_dataloader, or set `reference: paired`",
        )
    image = batch["latents"] if "latents" in batch else batch["pixel_values"]
    fields = [image, batch["input_ids"], *(batch[name] for name in FURTHER if isinstance(batch.get(name), Tensor))]
    rows = zip(*(field.cpu() for field in fields), strict=True)
    return [hashlib.sha256(b"".join(map(_bytes, row))).hexdigest() for row in rows]


def _bytes(values: Tensor) -> bytes:
    """Return the bytes of values of any type, even if numpy does not know it."""
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
