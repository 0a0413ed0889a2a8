"""What the progress bar says."""

from types import SimpleNamespace

import pytest

from memtrain.callbacks.progress_bar import ProgressBar, last_step


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "expected"),
    [(-1, 750, "Epoch 3, from step 120 of 750"), (5, -1, "Epoch 3/4"), (5, 750, "Epoch 3/4")],
)
def test_a_run_limited_by_steps_says_how_many(max_epochs: int, max_steps: int, expected: str) -> None:
    bar = ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=max_epochs, max_steps=max_steps, global_step=120)  # type: ignore[assignment]
    assert bar._get_train_description(3).strip() == expected


def bar_of(**settings: object) -> ProgressBar:
    """A bar of a trainer with these settings."""
    bar = ProgressBar()
    given = {"max_epochs": -1, "max_steps": 99, "global_step": 80, "num_training_batches": 100, "current_epoch": 0}
    trainer = SimpleNamespace(**{**given, "accumulate_grad_batches": 1, "is_global_zero": True, **settings})
    bar._trainer = trainer  # type: ignore[assignment]
    return bar


def test_after_a_restart_the_bar_counts_from_where_the_epoch_is() -> None:
    """Batch 79 was the first of this start: 80 are done, and 19 steps are left."""
    bar = bar_of()
    bar._begun = 80
    assert bar.total_train_batches == 99
    assert bar_of(max_steps=500).total_train_batches == 100


def test_a_step_of_several_batches_takes_several() -> None:
    assert bar_of(accumulate_grad_batches=4, global_step=90, num_training_batches=1000).total_train_batches == 36


def test_a_log_gets_the_step_and_the_time_left() -> None:
    bar = bar_of()
    bar._first = (100.0, 70)
    assert bar.line(160.0) == "Epoch 0, step 80 of 99, 01:00 so far, about 01:54 left"


def test_the_last_step_is_the_first_limit_that_is_reached() -> None:
    def limit(**settings: object) -> int | None:
        return last_step(bar_of(**settings).trainer)

    assert limit() == 99
    assert limit(max_epochs=2, num_training_batches=30) == 60
    assert limit(max_epochs=2, num_training_batches=30, max_steps=-1, accumulate_grad_batches=4) == 16
    assert limit(max_steps=-1) is None
