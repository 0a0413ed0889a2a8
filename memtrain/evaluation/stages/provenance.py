"""When and with which versions a result was made."""

from __future__ import annotations

import platform
import time
from typing import Any

import diffusers
import torch
import transformers

import memtrain


def provenance() -> dict[str, Any]:
    """`created` (UTC) and `versions`, as they stand in every results file."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {
            "memtrain": memtrain.__version__,
            "torch": str(torch.__version__),
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
