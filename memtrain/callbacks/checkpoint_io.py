"""Lightning's way to checkpoint files, by :mod:`memtrain.callbacks.checkpoint_file`.

It is put in the place of Lightning's own by :class:`memtrain.callbacks.safe_training.SafeTraining`, and can be given to
any trainer: `Trainer(plugins=[WholeCheckpointIO()])`. Checkpoints on object storage are left to Lightning, and those
that FSDP writes in shards never come here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO

from memtrain.callbacks.checkpoint_file import previous_of, usable, write_checkpoint


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints that are whole, and reads the one before where the last is torn."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """As :func:`~memtrain.callbacks.checkpoint_file.write_checkpoint`; elsewhere than on a disk, as Lightning."""
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write_checkpoint(checkpoint, _local(path))

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As :func:`memtrain.callbacks.checkpoint_file.usable` chooses."""
        if _is_local_file_protocol(path) and _local(path).is_file():
            path = usable(_local(path))
        return super().load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: Any) -> None:
        """With the one that is kept beside it."""
        super().remove_checkpoint(path)
        if _is_local_file_protocol(path):
            previous_of(_local(path)).unlink(missing_ok=True)


def _local(path: Any) -> Path:
    return Path(str(path).removeprefix("file://"))


def write_whole(trainer: Any) -> None:
    """Let a trainer write its checkpoints so, unless it was given a way of its own.

    Args:
        trainer: of `lightning.pytorch` or `pytorch_lightning`.
    """
    strategy = trainer.strategy
    own = getattr(strategy, "_checkpoint_io", None)
    if own is None or type(own).__name__ == "TorchCheckpointIO":
        strategy._checkpoint_io = WholeCheckpointIO()
