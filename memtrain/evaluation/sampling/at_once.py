"""How many images a device is given at once: as many as asked for, halved each time its memory runs out.

The number found for a pipeline is kept in pixels as long as the pipeline exists, so that the next sampling does not run
out of memory again.
Results are the same up to rounding: kernels may sum in another order for another batch size.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

log = logging.getLogger(__name__)

T = TypeVar("T")

_FOUND: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""Pixels of all images of a batch for which memory was enough after it had run out, by pipeline."""


def out_of_memory(error: Exception) -> bool:
    """Whether a device had no room for a tensor: a GPU's error has a class, a CPU's error only a message."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def in_parts(
    pipeline: Any,
    rows: range,
    work: Callable[[range], T],
    *,
    pixels: int,
    most: int | None = None,
    what: str = "Sampling",
) -> list[tuple[range, T]]:
    """Do a batch's work at once, or in as many parts as memory requires.

    Args:
        pipeline: pipeline under which the number of images that fit is kept.
        rows: rows of the batch.
        work: function of rows; it may be called again for rows for which it ran out of memory.
        pixels: pixels of one image.
        most: highest number of rows at once, from an estimate; default all.
        what: name of the work, for the message.

    Returns:
        Parts of `rows` in order, each with its result.

    Raises:
        torch.OutOfMemoryError: if one image does not fit; on a CPU a RuntimeError.
    """
    done: list[tuple[range, T]] = []
    start = rows.start
    # Parts of an even size, so that no part has only a few images.
    most = len(rows) if most is None else -(-len(rows) // -(-len(rows) // most))
    if pipeline in _FOUND:
        most = min(most, max(1, _FOUND[pipeline] // pixels))
    while start < rows.stop:
        part = range(start, min(start + most, rows.stop))
        try:
            done.append((part, work(part)))
            start = part.stop
            continue
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if len(part) == 1 or not out_of_memory(error):
                raise
        # Outside of the handler, whose traceback holds on to the tensors that filled the memory.
        most = (len(part) + 1) // 2
        _FOUND[pipeline] = most * pixels
        log.warning(
            "%s %d images at once needs more memory than the device has: %d at once from now on (--batch_size %d "
            "avoids this warning)",
            *(what, len(part), most, most),
        )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return done
