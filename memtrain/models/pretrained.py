"""The content of a base model's path, told from names, headers and JSON before weights are read.

Models that cannot be sampled from a caption alone are refused with their kind. Examples are pickled files, LoRA files,
ControlNets, single parts, the refiner of SDXL, and denoisers with more inputs than noisy latents (inpainting,
instructions, depth).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.text import read_json
from memtrain.models.model_folder import MOST_BYTES, check_index, check_parts_of
from memtrain.models.stock_pipeline import check_pipeline

PICKLED = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
WHOLE = "a folder written by a pipeline's save_pretrained, a single-file checkpoint (.safetensors), or a hub name"
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")


def is_single_file(pretrained: str) -> bool:
    """Return whether a path names a file: it is one, or has the suffix of one."""
    try:
        there = Path(pretrained).is_file()
    except OSError:  # a name that is too long
        there = False
    return there or Path(pretrained).suffix in {*PICKLED, ".safetensors", ".gguf"}


def check_file(path: Path) -> None:
    """Refuse a file that is not a safetensors file.

    Raises:
        ConfigurationError: if it does not exist, or is of another kind.
    """
    if path.suffix in PICKLED:
        raise ConfigurationError(
            f"{path} is pickled, and loading it runs its content",
            expected=WHOLE,
            remedy="use the .safetensors file of the same model",
        )
    if path.suffix != ".safetensors":
        raise ConfigurationError(f"{path} is not a safetensors file", expected=WHOLE, remedy="check the path")
    if not path.is_file():
        raise ConfigurationError(f"There is no file {path}", expected=WHOLE, remedy="check the path")


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds no pipeline, or a pipeline of an unknown kind.

    Raises:
        ConfigurationError: with the kind of the folder's content.
    """
    index = pipeline_index(folder)
    check_index(index, str(folder / "model_index.json"))
    check_parts_of(folder, index)
    parts = {name: _json(folder / name / "config.json") or {} for name in ("unet", "transformer", "vae")}
    check_parts(str(index.get("_class_name")), parts, listed=index, where=f"'{folder}'")


def pipeline_index(folder: Path) -> dict[str, Any]:
    """Return the content of a pipeline's model_index.json.

    Raises:
        ConfigurationError: if there is none, with the content of the folder.
    """
    index = _json(folder / "model_index.json")
    if index is None:
        raise ConfigurationError(
            f"'{folder}' is not a diffusers pipeline: it has no model_index.json{_looks_like(folder)}",
            expected=WHOLE,
            remedy="check the path",
        )
    return index


def check_parts(
    kind: str, parts: Mapping[str, Mapping[str, Any]], *, listed: Mapping[str, Any] | None = None, where: str
) -> None:
    """Refuse a pipeline by its class and the configurations of its parts.

    Args:
        kind: the name of its class.
        parts: the configurations of `unet` or `transformer`, and `vae`; empty if they are not known.
        listed: the parts in its model_index.json, each a pair of library and class.
        where: the name of the pipeline in the error.

    Raises:
        ConfigurationError: if its class is not known, or if its denoiser has more inputs than noisy latents.
    """
    check_pipeline(kind)
    second = (listed or {}).get("text_encoder") or [None]
    if kind == "StableDiffusionXLPipeline" and listed is not None and second[0] is None:
        raise ConfigurationError(
            f"{where} has only one text encoder, like the refiner of SDXL, which cannot sample from a caption alone",
            expected="the base model of SDXL, with two text encoders",
            remedy="name the base model",
        )
    denoiser = parts.get("unet") or parts.get("transformer") or {}
    given, latent = denoiser.get("in_channels"), parts.get("vae", {}).get("latent_channels")
    if given is None or latent is None:
        return
    if not isinstance(given, int) or not isinstance(latent, int):
        raise ConfigurationError(
            f"{where} has in_channels={given!r:.40} and latent_channels={latent!r:.40}",
            expected="whole numbers",
            remedy="download the model again",
        )
    expected = latent * (4 if kind == "FluxPipeline" else 1)
    if given != expected:
        kinds = {2 * expected + 1: "an inpainting model", 2 * expected: "a model that edits images (instruct-pix2pix)"}
        kinds |= {expected + 1: "a model with a depth input"}
        raise ConfigurationError(
            f"{where} is {kinds.get(given, 'a model of another kind')}: its denoiser takes {given} channels, but "
            f"latents have {expected}",
            expected="a text-to-image model, whose denoiser takes only noisy latents",
            remedy="name the model that it was made from",
        )


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """Return the files with a part's weights.

    Args:
        folder: the folder of the part.
        variant: the wanted variant of the weights.
    """
    found = [(match[1], file) for file in sorted(folder.iterdir()) if (match := _WEIGHTS.fullmatch(file.name))]
    asked = [file for name, file in found if name == variant]
    return asked or [file for name, file in found if name is None]


def variant_of(folder: Path) -> str | None:
    """Return the variant of a pipeline's weights (`fp16`) if a part has no others; None if all have plain ones."""
    found: set[str] = set()
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        names = [match[1] for match in map(_WEIGHTS.fullmatch, (file.name for file in part.iterdir())) if match]
        if names and None not in names:
            found |= {name for name in names if name}
    return min(found, key=lambda name: (name != "fp16", name)) if found else None


def _looks_like(folder: Path) -> str:
    config = _json(folder / "config.json")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if "pytorch_lora_weights.safetensors" in names or "adapter_config.json" in names:
        return ", but a LoRA, which must be added to a base model"
    if config is not None and "_class_name" in config:
        return f", but a {config['_class_name']}, one part of a pipeline"
    files = sorted(name for name in names if name.endswith(".safetensors"))
    return f", but {files[0]}; name this file itself" if len(files) == 1 else ""


def _json(path: Path) -> dict[str, Any] | None:
    """Return the content of a configuration; None if there is none."""
    if not path.is_file():
        return None
    try:
        content = read_json(path, most=MOST_BYTES)
    except DataError as error:
        raise ConfigurationError(error.problem, expected=error.expected, remedy=error.remedy) from error
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path} holds a {type(content).__name__}", expected="settings, a JSON object", remedy="download it again"
        )
    return content
