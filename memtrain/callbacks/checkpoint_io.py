"""A checkpoint plugin for Lightning that uses :mod:`memtrain.callbacks.checkpoint_file`.

:class:`memtrain.callbacks.safe_training.SafeTraining` puts it in the place of Lightning's own plugin. You can also give
it to any trainer: `Trainer(plugins=[WholeCheckpointIO()])`. Lightning itself handles checkpoints on object storage. The
shards that FSDP writes do not pass through this plugin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO

from memtrain.callbacks.checkpoint_file import previous_of, usable, write_checkpoint


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes complete checkpoints, and reads the one before if the last is torn."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write by :func:`~memtrain.callbacks.checkpoint_file.write_checkpoint`, or by Lightning if not on a disk."""
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_checkpoint(checkpoint, _local(path))

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read the file that :func:`memtrain.callbacks.checkpoint_file.usable` chooses."""
        if _is_local_file_protocol(path) and _local(path).is_file():
            path = usable(_local(path))
        return super().load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint and the earlier one next to it."""
        super().remove_checkpoint(path)
        if _is_local_file_protocol(path):
            previous_of(_local(path)).unlink(missing_ok=True)


def _local(path: Any) -> Path:
    return Path(str(path).removeprefix("file://"))


def write_whole(trainer: Any) -> None:
    """Give a trainer this plugin, unless it has a checkpoint plugin of its own.

    Args:
        trainer: a trainer of `lightning.pytorch` or `pytorch_lightning`.
    """
    strategy = trainer.strategy
    own = getattr(strategy, "_checkpoint_io", None)
    if own is None or type(own).__name__ == "TorchCheckpointIO":
        strategy._checkpoint_io = WholeCheckpointIO()
