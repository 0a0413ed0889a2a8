"""Options of objective, execution, schedule and optimizer can be given in files and on the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from memtrain import cli
from memtrain.cli.training import TrainCLI
from memtrain.records import read_steps
from memtrain.training.execution import Execution
from memtrain.training.objective import Objective
from memtrain.training.text_to_image import TextToImageModule
from memtrain.training.timesteps import BySNR, LogitNormal, Range, UShaped
from tests.conftest import ROOT

OVERLAYS = sorted((ROOT / "configs" / "objective").glob("*.yaml"))
EXPECTED = {
    "huber": Objective(criterion="huber"),
    "input_perturbation": Objective(input_perturbation=0.1),
    "logit_normal": Objective(timesteps=LogitNormal()),
    "min_snr": Objective(min_snr_gamma=5.0),
    "u_shaped": Objective(timesteps=UShaped()),
}
MODEL = "--model.init_args."


@pytest.fixture
def command(pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs `train.py` with further words."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> None:
        cli.train(
            [
                *["fit", "--config", str(ROOT / "configs" / "tiny_baseline.yaml")],
                *[f"{MODEL}pretrained", str(pipeline_folder), "--trainer.default_root_dir", str(tmp_path / "run")],
                *["--trainer.enable_progress_bar", "false", *words],
            ]
        )

    return run


@pytest.fixture
def made(command: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., TextToImageModule]:
    """The module that `train.py` makes of further words, without a run."""
    seen: list[TextToImageModule] = []
    monkeypatch.setattr(TrainCLI, "_run_subcommand", lambda line, _: seen.append(line.model))

    def make(*words: str) -> TextToImageModule:
        command(*words)
        return seen[-1]

    return make


def described(objective: Objective) -> object:
    sampler = objective.timesteps
    return {**vars(objective), "timesteps": sampler and (type(sampler), vars(sampler))}


def test_every_overlay_is_expected() -> None:
    assert [path.stem for path in OVERLAYS] == sorted(EXPECTED)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_trains_two_steps_with_what_it_says(
    overlay: Path, command: Callable[..., None], write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TextToImageModule] = []
    monkeypatch.setattr(TrainCLI, "before_fit", lambda line: seen.append(line.model))
    command(
        *[
            "--config",
            str(overlay),
            "--data.init_args.path",
            str(write_folder(20)),
            "--data.init_args.resolution",
            "16",
        ],
        *["--data.init_args.batch_size", "4", "--data.init_args.heldout_fraction", "0.4"],
        *["--trainer.max_steps", "2", "--trainer.limit_val_batches", "0", "--data.init_args.duplicates", "null"],
        *["--trainer.callbacks.init_args.every_n_train_steps", "5"],
    )
    assert described(seen[0].objective) == described(EXPECTED[overlay.stem])
    losses = torch.tensor(read_steps(Path("run") / "records")["denoising_loss"].to_pylist())
    assert losses.shape == (8,)
    assert losses.isfinite().all()
    init_args = yaml.safe_load(Path("run/config.yaml").read_text())["model"]["init_args"]
    assert init_args["learning_rate"] == 1e-3, "the overlay adds to the configuration"


def test_every_option_can_be_given_on_the_command_line(
    made: Callable[..., TextToImageModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: compiled.append(part))
    module = made(
        *[f"{MODEL}objective.min_snr_gamma", "5", f"{MODEL}objective.criterion", "smooth_l1"],
        *[f"{MODEL}objective.huber_schedule=constant", f"{MODEL}objective.huber_c=0.2"],
        *[f"{MODEL}objective.noise_offset=0.1", f"{MODEL}objective.input_perturbation=0.2"],
        *[f"{MODEL}objective.timesteps", "memtrain.training.timesteps.BySNR"],
        *[f"{MODEL}objective.timesteps.init_args.rule", "p2"],
        *[f"{MODEL}execution.compile", "true", f"{MODEL}execution.tf32=true", f"{MODEL}execution.ema_offload=true"],
        *[f"{MODEL}execution.gradient_checkpointing=true", f"{MODEL}execution.channels_last=false"],
        *[f"{MODEL}execution.frozen_dtype=bfloat16", f"{MODEL}schedule=polynomial"],
    )
    assert isinstance(module.objective.timesteps, BySNR)
    assert module.objective.timesteps.rule == "p2"
    assert module.execution == Execution(
        compile=True,
        tf32=True,
        ema_offload=True,
        gradient_checkpointing=True,
        channels_last=False,
        frozen_dtype="bfloat16",
    )
    assert described(module.objective) == described(
        Objective(
            timesteps=module.objective.timesteps,
            min_snr_gamma=5.0,
            criterion="smooth_l1",
            huber_schedule="constant",
            huber_c=0.2,
            noise_offset=0.1,
            input_perturbation=0.2,
        )
    )
    assert module.schedule == "polynomial"
    assert compiled == [module.denoiser]


def test_optimizers_and_schedules_can_be_given_by_class_path(
    made: Callable[..., TextToImageModule], tmp_path: Path
) -> None:
    (tmp_path / "more.yaml").write_text(
        "model:\n  init_args:\n    warmup_steps: 0\n    objective: {weighting: debiased, timesteps: {class_path: "
        "memtrain.training.timesteps.Range, init_args: {low: 100, high: 900}}}\n    optimizer: {class_path: "
        "torch.optim.AdamW, init_args: {fused: true, weight_decay: 0.1}}\n    schedule: {class_path: "
        "torch.optim.lr_scheduler.StepLR, init_args: {step_size: 3}}\n"
    )
    module = made("--config", "more.yaml")
    assert isinstance(module.objective.timesteps, Range)
    module._trainer = type("Trainer", (), {"estimated_stepping_batches": 10})()
    chosen = module.configure_optimizers()
    group = chosen["optimizer"].param_groups[0]
    assert (group["lr"], group["fused"], group["weight_decay"]) == (1e-3, True, 0.1)
    assert isinstance(chosen["lr_scheduler"]["scheduler"], torch.optim.lr_scheduler.StepLR)
    with pytest.raises(SystemExit, match=r"^ConfigurationError: The objective has .* both weight timesteps"):
        made("--config", "more.yaml", f"{MODEL}objective.min_snr_gamma", "5")


def test_without_options_there_are_none(made: Callable[..., TextToImageModule]) -> None:
    module = made()
    assert module.objective == Objective()
    assert module.execution == Execution()
