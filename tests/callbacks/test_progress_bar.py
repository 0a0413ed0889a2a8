"""What the progress bar says."""

from types import SimpleNamespace

import pytest

from memtrain.callbacks.progress_bar import ProgressBar


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "expected"),
    [(-1, 750, "Epoch 3, from step 120 of 750"), (5, -1, "Epoch 3/4"), (5, 750, "Epoch 3/4")],
)
def test_a_run_limited_by_steps_says_how_many(max_epochs: int, max_steps: int, expected: str) -> None:
    bar = ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=max_epochs, max_steps=max_steps, global_step=120)  # type: ignore[assignment]
    assert bar._get_train_description(3).strip() == expected
