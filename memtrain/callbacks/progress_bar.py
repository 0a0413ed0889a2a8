"""Lightning's progress bar, with the number of optimizer steps where a run is limited by steps.

Lightning 2.6 shows `Epoch 3/-2` when `max_steps` is set and `max_epochs` is not.
"""

from __future__ import annotations

from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Says which epoch, and at which of how many steps it began."""

    def _get_train_description(self, current_epoch: int) -> str:
        if self.trainer.max_epochs != -1 or self.trainer.max_steps == -1:
            return super()._get_train_description(current_epoch)
        return f"Epoch {current_epoch}, from step {self.trainer.global_step} of {self.trainer.max_steps}"
