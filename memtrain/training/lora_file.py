"""Adapters as diffusers stores them: one safetensors file that `load_lora_weights` of a stock pipeline reads.

Names are `<part of the pipeline>.<layer>.lora_A.weight`. The options of the adapters (rank, alpha, targets, DoRA) are
in the file's metadata, from which diffusers takes the scale. PixArt's pipeline has no `load_lora_weights`: stock
diffusers reads its exported pipeline folder, and `memtrain measure --lora` reads the file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from memtrain.models.adapter_file import FILE, OPTIONS
from memtrain.models.adapters import adapted_layers
from memtrain.training.timestep_lora import TimestepRank

log = logging.getLogger(__name__)


def adapted_parts(pipeline: Any) -> dict[str, nn.Module]:
    """Return the parts of a pipeline with adapters, by name."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    return {name: part for name, part in parts.items() if adapted_layers(part)}


def adapter_tensors(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return every tensor of the adapters, by its name in the file."""
    return {
        f"{part}.{name}": value.detach().float().cpu().contiguous()
        for part, module in parts.items()
        for name, value in get_peft_model_state_dict(module).items()
    }


def save_adapters(pipeline: Any, folder: Path, *, timestep_rank: TimestepRank | None = None) -> Path:
    """Write the adapters of a pipeline.

    Args:
        pipeline: a pipeline with adapters in some of its parts.
        folder: the folder of the file.
        timestep_rank: the rule of T-LoRA, which the file then names.
    """
    parts: Mapping[str, Any] = adapted_parts(pipeline)
    options = {
        f"{part}.{name}": sorted(value) if isinstance(value, set) else value
        for part, module in parts.items()
        # Diffusers leaves loaded parts in training mode, so a dropout named here would also act while sampling.
        for name, value in {**module.peft_config["default"].to_dict(), "lora_dropout": 0.0}.items()
    }
    metadata = {"format": "pt", OPTIONS: json.dumps(options, indent=2, sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{FILE}.unfinished"
    save_file(adapter_tensors(parts), unfinished, metadata | (timestep_rank.metadata() if timestep_rank else {}))
    unfinished.rename(folder / FILE)
    if timestep_rank is not None:
        log.warning(
            "%s uses T-LoRA. Stock diffusers applies all its ranks at every timestep, which is not what was trained. "
            "memtrain (--run, --lora) applies the ranks of the timestep.",
            folder / FILE,
        )
    return folder / FILE
