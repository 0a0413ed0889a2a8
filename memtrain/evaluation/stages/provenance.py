"""Time and versions of a result."""

from __future__ import annotations

import platform
import time
from typing import Any

import diffusers
import torch
import transformers

import memtrain
from memtrain.models.stock_pipeline import denoiser_of


def provenance(pipeline: Any = None) -> dict[str, Any]:
    """Return `created` (UTC) and `versions` for a results file, and the `dtype` of the model.

    Args:
        pipeline: the pipeline of the model, if there is one.
    """
    return {
        **({} if pipeline is None else {"dtype": dtype_name(pipeline)}),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {
            "memtrain": memtrain.__version__,
            "torch": str(torch.__version__),
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def dtype_name(pipeline: Any) -> str:
    """Return the type of numbers of a pipeline's denoiser: `float32`, `bfloat16` or `float16`."""
    kind = next(weight.dtype for weight in denoiser_of(pipeline).parameters() if weight.is_floating_point())
    return str(kind).removeprefix("torch.")
