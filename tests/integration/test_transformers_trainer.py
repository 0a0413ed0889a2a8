"""transformers' Trainer, whose `compute_loss` is overridden."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import SequentialSampler, default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.conformance.families import build
from tests.integration.loops import BATCH, Visits, Watch, flat, require_equal_to_a_hand_written_loop, scheduler


class DenoisingTrainer(Trainer):
    """Predicts noise."""

    guard: Any

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        noisy = scheduler().add_noise(inputs["latents"], inputs["noise"], inputs["timestep"])
        prediction = model(noisy, inputs["timestep"], inputs["text"], return_dict=False)[0]
        return self.guard.loss(prediction, inputs["noise"], keys=inputs["key"])

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


class Watching(TrainerCallback):
    """Makes the guard when the trainer has prepared the model, and finishes it."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.trainer: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.guard = self.watch(self.trainer.model_wrapped, accelerator=self.trainer.accelerator)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.trainer.guard.finish()


def train(watch: Watch) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        unet, watching = build("unet"), Watching(watch)
        options = TrainingArguments(
            folder,
            max_steps=Visits.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        trainer = DenoisingTrainer(
            unet, options, data_collator=default_collate, train_dataset=Visits(), callbacks=[watching]
        )
        watching.trainer = trainer
        trainer.train()
        return flat(unet)


def test_it_is_a_hand_written_loop_with_weights(tmp_path: Path) -> None:
    require_equal_to_a_hand_written_loop(train, tmp_path)
