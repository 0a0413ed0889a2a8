"""Library chatter that a reader can do nothing about stays off the screen."""

from __future__ import annotations

import logging
import os
import warnings

import diffusers
import transformers

from memtrain.files.output import careful_output


def quiet() -> None:
    """Keep library chatter that a reader can do nothing about off the screen."""
    careful_output()
    # Lightning still registers its instantiators the old way; jsonargparse would say so at every start.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    transformers.logging.disable_progress_bar()
    diffusers.logging.disable_progress_bar()
    # It would repeat the end of every long prompt for every batch; `truncated_prompts` counts them.
    diffusers.logging.set_verbosity_error()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    for pattern in (
        "The `srun` command is available",
        "The '.*_dataloader' does not have many workers",
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        "Found .* module\\(s\\) in eval mode",
        "Checkpoint directory .* exists and is not empty",
        "Precision .* is not supported by the model summary",
        "The number of training batches .* is smaller than the logging interval",
        # A stream holds back no picture for validation.
        "Total length of `list` across ranks is zero",
    ):
        warnings.filterwarnings("ignore", message=pattern)


def _no_advertisement(record: logging.LogRecord) -> bool:
    """Lightning advertises another package at every start."""
    return "litlogger" not in str(record.msg)
