"""The content of a checkpoint of :class:`~memtrain.training.text_to_image.TextToImageModule`: only trained weights.

The frozen weights under adapters are those of the pretrained model. The checkpoint names this model and the options of
the adapters. A checkpoint must hold exactly the trained weights, so that no weight is silently missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from memtrain.errors import ConfigurationError
from memtrain.models.fingerprint import weights_sketch
from memtrain.training.continued_training import check_training
from memtrain.training.lora import LoRA
from memtrain.training.timestep_lora import TimestepRank

KEY = "text_to_image"
"""The key of a checkpoint's description."""


def keep_trained(module: Any, checkpoint: dict[str, Any], *, pretrained: str) -> None:
    """Drop frozen weights from a checkpoint, add its description and the weight average."""
    if module.lora is not None:
        trained = {name for name, value in module.named_parameters() if value.requires_grad}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}
    checkpoint[KEY] = {
        "pretrained": pretrained,
        "base": base_sketch(module),
        "lora": None if module.lora is None else asdict(module.lora),
        "train_text_encoder": module.lora is None and hasattr(module, "trained_text_encoders"),
        **({} if module.settings is None else {"settings": module.settings}),
    }
    if module.ema is not None:
        checkpoint["ema"] = module.ema.state_dict()


def base_sketch(module: Any) -> str | None:
    """Return a sketch that identifies the frozen weights under adapters; None without adapters."""
    if module.lora is None:
        return None
    return weights_sketch((name, one) for name, one in module.denoiser.named_parameters() if not one.requires_grad)


def lora_of(description: Mapping[str, Any]) -> LoRA | None:
    """Return the options of the adapters in a checkpoint."""
    options = description["lora"]
    if options is None:
        return None
    rule = options["timestep_rank"]
    return LoRA(**{**options, "timestep_rank": None if rule is None else TimestepRank(**rule)})


def check_contents(module: Any, checkpoint: Mapping[str, Any]) -> None:
    """Compare a checkpoint with the trained weights of a module, before anything is loaded.

    Raises:
        ConfigurationError: if it holds more, fewer or other weights.
    """
    was = lora_of(checkpoint[KEY]) if KEY in checkpoint else module.lora
    if _function(was) != _function(module.lora):
        raise _foreign(f"has lora={was}", f"lora={module.lora}, as in this run")
    base = checkpoint.get(KEY, {}).get("base")
    if base is not None and base != base_sketch(module):
        raise _foreign(
            f"holds adapters of another base model, {checkpoint[KEY]['pretrained']!r}",
            f"adapters of the weights of {module.pretrained!r}, at any path",
        )
    state = checkpoint["state_dict"]
    if module.lora is None:
        expected = {name: value.shape for name, value in module.state_dict().items()}
    else:
        expected = {name: value.shape for name, value in module.named_parameters() if value.requires_grad}
    missing, strange = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or strange:
        first = (missing or strange)[0]
        raise _foreign(
            f"lacks {len(missing)} of {len(expected)} trained weights and holds {len(strange)} others, first {first!r}",
            "the weights that this run trains",
        )
    if odd := [name for name, shape in expected.items() if state[name].shape != shape]:
        raise _foreign(
            f"has {odd[0]!r} of shape {tuple(state[odd[0]].shape)}", f"the shape {tuple(expected[odd[0]])} of this run"
        )
    if module.ema is not None:
        average = checkpoint.get("ema", {}).get("shadow_params", [])
        if [value.shape for value in average] != [value.shape for value in module.trained()]:
            raise _foreign(
                f"has a weight average of {len(average)} parameters",
                f"the average of the {len(module.trained())} trained parameters, or ema_decay: null",
            )
    if "settings" in checkpoint.get(KEY, {}):
        check_training(module, checkpoint[KEY]["settings"], checkpoint)


def _function(lora: LoRA | None) -> tuple[Any, ...] | None:
    """Return the options that decide what adapters of given weights compute."""
    return None if lora is None else (lora.rank, lora.scale, lora.dora, lora.timestep_rank)


def _foreign(found: str, expected: str) -> ConfigurationError:
    return ConfigurationError(
        f"The checkpoint {found}", expected=expected, remedy="resume with the settings of the run that wrote it"
    )
