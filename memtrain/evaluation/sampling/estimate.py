"""The time that a sampling will take, printed once, from a measurement on its first batch."""

from __future__ import annotations

import time

from memtrain.files.progress import say_aside

LONG = 60.0
"""Remaining seconds from which on the estimate is printed."""


class Estimate:
    """Prints after the first batch how long the others will take.

    Args:
        images: number of images to sample.
        steps: steps of each image.
        size: height and width.
        device: name of the device.
        silent: whether nothing is printed.
    """

    def __init__(self, images: int, *, steps: int, size: tuple[int, int], device: str, silent: bool = False) -> None:
        self.images, self.steps, self.size, self.device = images, steps, size, device
        self._begun: float | None = None if silent else time.perf_counter()

    def batch(self, done: int) -> None:
        """Print the estimate after the first batch of `done` images, if much time is left. Later calls do nothing."""
        if self._begun is None:
            return
        each = (time.perf_counter() - self._begun) / done
        self._begun = None
        if (left := each * (self.images - done)) > LONG:
            height, width = self.size
            say_aside(
                f"Sampling {self.images} images of {height}x{width} px in {self.steps} steps on {self.device}: "
                f"{each:.2g} s per image in the first batch, about {said(left)} left"
            )


def said(seconds: float) -> str:
    """Return a duration as `3 min` or `2 h 5 min`."""
    minutes = max(1, round(seconds / 60))
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"
