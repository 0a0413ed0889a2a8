"""Pipeline folder with a neuron mask in its weights: the permanent form, which runs without memtrain."""

from __future__ import annotations

from pathlib import Path

from diffusers import StableDiffusionPipeline

from memtrain.errors import ConfigurationError
from memtrain.files.whole import folder_whole
from memtrain.models.neuron_mask import NeuronMask


def save_masked_pipeline(pipeline: StableDiffusionPipeline, mask: NeuronMask, folder: Path) -> None:
    """Save a pipeline with a mask in its value projections; the pipeline in memory is not changed.

    Args:
        pipeline: the pipeline to save.
        mask: the mask for all prompts.
        folder: the new folder, which also gets the mask as `neuron_mask.safetensors`.

    Raises:
        ConfigurationError: if the folder already holds a pipeline.
        ProbeError: if the mask does not fit the denoiser.
    """
    require_free(folder)
    with folder_whole(folder) as unfinished:
        with mask.baked(pipeline.unet):
            pipeline.save_pretrained(unfinished)
        mask.save(unfinished / "neuron_mask.safetensors")


def require_free(folder: Path) -> None:
    """Check that a pipeline can be saved in a folder.

    Raises:
        ConfigurationError: if the folder already holds a pipeline.
    """
    if (folder / "model_index.json").exists():
        raise ConfigurationError(
            f"{folder} already holds a pipeline", expected="an empty folder", remedy="name another folder"
        )
