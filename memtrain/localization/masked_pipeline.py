"""A pipeline folder whose weights have a neuron mask in them: the permanent form, which needs no memtrain to run."""

from __future__ import annotations

from pathlib import Path

from diffusers import StableDiffusionPipeline

from memtrain.errors import ConfigurationError
from memtrain.files.whole import folder_whole
from memtrain.models.neuron_mask import NeuronMask


def save_masked_pipeline(pipeline: StableDiffusionPipeline, mask: NeuronMask, folder: Path) -> None:
    """Save a pipeline with a mask written into its value projections; the one in memory stays as it is.

    Args:
        pipeline: to save.
        mask: for all prompts.
        folder: where to; `neuron_mask.safetensors` in it says what was masked.

    Raises:
        ConfigurationError: if the folder holds a pipeline already.
        ProbeError: if the mask does not fit the denoiser.
    """
    require_free(folder)
    with folder_whole(folder) as unfinished:
        with mask.baked(pipeline.unet):
            pipeline.save_pretrained(unfinished)
        mask.save(unfinished / "neuron_mask.safetensors")


def require_free(folder: Path) -> None:
    """That a pipeline can be saved there.

    Raises:
        ConfigurationError: if the folder holds one already.
    """
    if (folder / "model_index.json").exists():
        raise ConfigurationError(
            f"{folder} holds a pipeline already", expected="an empty folder", remedy="name another folder"
        )
