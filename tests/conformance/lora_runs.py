"""Short watched runs of adapters of every kind, on one process or two, for the tests to compare."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import Tensor

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.monitoring.options import WatchSettings
from memtrain.training.execution import Execution
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule
from memtrain.training.timestep_lora import TimestepRank
from tests.conformance.mitigation_runs import STEPS, Host, fit, force_flags

CASES: dict[str, dict[str, Any]] = {
    "lora": {"alpha": 3, "text_encoder": True},
    "dora": {"dora": True},
    "t_lora": {"rank": 4, "timestep_rank": TimestepRank()},
}


class AdaptedHost(Host):
    """Randomness that knows nothing of processes, adapters, and their average."""

    def __init__(self, pretrained: str, options: dict[str, Any]) -> None:
        TextToImageModule.__init__(
            self,
            pretrained,
            lora=LoRA(**{"rank": 2, **options}),
            ema_decay=0.8,
            seed=0,
            execution=Execution(gradient_checkpointing=True),
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.trained(), lr=0.02, eps=1e-3)


def run(
    case: str, folder: Path, *, pretrained: Path, stop: int = STEPS, resume: bool = False, processes: int = 1
) -> dict[str, Tensor]:
    """Train, and return the adapters and their average; arguments as of `mitigation_runs.run`."""
    seed_everything(0)
    skipping = SampleSkipping()
    force_flags(skipping)
    monitor = MemorizationMonitor(
        minimum_visits=2,
        reference="paired",
        paired_every=2,
        settings=WatchSettings(calibrate_every=2, heldout_batch=4),
    )
    module = AdaptedHost(str(pretrained), CASES[case])
    callbacks = [monitor, skipping, PipelineExport(adapters="lora")]
    fit(module, folder, callbacks, stop=stop, resume=resume, processes=processes)
    names = [name for name, value in module.named_parameters() if value.requires_grad]
    assert module.ema is not None
    average = {f"average.{name}": value for name, value in zip(names, module.ema.shadow_params, strict=True)}
    return {
        name: value.detach().clone()
        for name, value in (dict(zip(names, module.trained(), strict=True)) | average).items()
    }


def main() -> None:
    """Run every case as one of two processes, and leave the weights in the folder."""
    folder, pretrained = Path(sys.argv[1]), Path(sys.argv[2])
    for case in CASES:
        weights = run(case, folder / f"two-{case}", pretrained=pretrained, processes=2)
        torch.save(weights, folder / f"two-{case}" / f"weights-{os.environ['LOCAL_RANK']}.pt")


if __name__ == "__main__":
    main()
