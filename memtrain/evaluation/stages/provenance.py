"""When and with which versions a result was made."""

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
    """`created` (UTC) and `versions`, as they stand in every results file, and the `dtype` of a model that was run.

    Args:
        pipeline: which was run, if any.
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
    """In which numbers a pipeline's denoiser computes: `float32`, `bfloat16` or `float16`."""
    kind = next(weight.dtype for weight in denoiser_of(pipeline).parameters() if weight.is_floating_point())
    return str(kind).removeprefix("torch.")
