"""The two commands: `train.py` is a LightningCLI, `evaluate.py` measures a finished run."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

# Read by transformers while it is imported, which otherwise warns about a package that nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import diffusers
import pyarrow.parquet as pq
import torch
import transformers
import yaml
from diffusers import StableDiffusionPipeline
from jsonargparse import ArgumentParser, auto_cli
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from memtrain.callbacks.progress_bar import ProgressBar
from memtrain.data.dataset import CaptionedImages
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import hash_order
from memtrain.detectors.base import Detector
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.detectors.noise_similarity import NoiseSimilarity
from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.evaluation.console import print_results
from memtrain.evaluation.detection import detect, print_detection
from memtrain.evaluation.heldout_loss import heldout_loss
from memtrain.evaluation.prompts import read_prompts
from memtrain.evaluation.runner import evaluate_run
from memtrain.evaluation.samples import Prompt
from memtrain.evaluation.summary import CANARY, HELDOUT, PLANTED, UNIQUE, VARIED_CAPTIONS, VARIED_IMAGES
from memtrain.models.pipeline import load_components
from memtrain.records import read_table, set_aside

DEFAULT_ARGUMENTS = ["fit", "--config", "configs/tiny.yaml"]
"""What `python train.py` runs."""
CAPTIONS_PER_IMAGE = 2
"""Captions sampled of an image that was trained on under many."""


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete configuration to `config.yaml` in the run folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called on rank 0 only."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / "config.yaml", skip_none=False, overwrite=True, multifile=self.multifile)


class TrainCLI(LightningCLI):
    """LightningCLI in which everything a run writes goes to `trainer.default_root_dir`."""

    def _folder(self) -> Path:
        return Path(self.config[self.subcommand].trainer.default_root_dir or "runs/unnamed")

    def before_instantiate_classes(self) -> None:
        """Put checkpoints into the run folder unless the configuration says otherwise."""
        trainer = self.config[self.subcommand].trainer
        trainer.default_root_dir = str(self._folder())
        for callback in trainer.callbacks or []:
            if callback.class_path.endswith("ModelCheckpoint") and callback.init_args.get("dirpath") is None:
                callback.init_args.dirpath = str(self._folder() / "checkpoints")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log to CSV files in the run folder unless the configuration names a logger; our progress bar likewise."""
        trainer = self.config[self.subcommand].trainer
        if trainer.logger is None:
            kwargs["logger"] = CSVLogger(self._folder(), name="logs")
        named = any(callback.class_path.endswith("ProgressBar") for callback in trainer.callbacks or [])
        if trainer.enable_progress_bar is not False and not named:
            self.trainer_defaults["callbacks"] = [ProgressBar()]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Keep an earlier run of the same name out of the way."""
        folder = self._folder()
        if self.config[self.subcommand].ckpt_path is None and any(
            (folder / name).exists() for name in ("records", "checkpoints", "pipeline")
        ):
            _keep(folder)


@rank_zero_only
def _keep(folder: Path) -> None:
    rank_zero_info(f"{folder} holds an earlier run; it is kept as {set_aside(folder)}")


def quiet() -> None:
    """Keep library chatter that a reader can do nothing about off the screen."""
    # Lightning still registers its instantiators the old way; jsonargparse would say so at every start.
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    transformers.logging.disable_progress_bar()
    diffusers.logging.disable_progress_bar()
    for pattern in (
        "The `srun` command is available",
        "The '.*_dataloader' does not have many workers",
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        "Found .* module\\(s\\) in eval mode",
        "Checkpoint directory .* exists and is not empty",
        "The number of training batches .* is smaller than the logging interval",
    ):
        warnings.filterwarnings("ignore", message=pattern)


def train(args: ArgsType = None) -> None:
    """`python train.py [fit] [--config ...]`; without arguments, the embedded default.

    Args:
        args: arguments instead of those of the command line.
    """
    quiet()
    if args is None and not sys.argv[1:]:
        sys.argv += DEFAULT_ARGUMENTS
    elif args is None and sys.argv[1].startswith("--") and sys.argv[1] != "--help":
        sys.argv.insert(1, "fit")
    try:
        TrainCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            args=args,
        )
    except MemtrainError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _run_data(folder: Path) -> tuple[dict[str, Any], TextImageDataModule]:
    """The configuration of a run, and its data built again."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigurationError(
            f"{folder} is no run: it has no config.yaml",
            expected="the folder of a finished training run",
            remedy="train first (python train.py), or name the folder with --run",
        )
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    if not isinstance(data, TextImageDataModule):
        raise ConfigurationError(
            f"{path} names {type(data).__name__} as its data",
            expected="TextImageDataModule, whose training images evaluation compares with",
            remedy="call memtrain.evaluation.runner.evaluate_run with your own images",
        )
    data.build()
    return config, data


def _images(dataset: CaptionedImages, rows: list[int]) -> torch.Tensor:
    """`(len(rows), 3, H, W)` uint8."""
    pixels = [dataset.pixel_values(row).add(1).mul(127.5).round().to(torch.uint8) for row in rows]
    return torch.stack(pixels)


def _choose(dataset: CaptionedImages, rows: list[int], most: int) -> list[int]:
    """At most `most` of `rows`, the same ones in every evaluation."""
    return sorted(sorted(rows, key=lambda row: hash_order(dataset.samples[row].key, "evaluation"))[:most])


def _choose_prompts(
    data: TextImageDataModule, *, most: int, unique: int
) -> list[tuple[str, CaptionedImages, list[int]]]:
    """Per group the dataset and the rows to sample: of a template two captions, or one of its images' caption."""
    train, held = data.train_dataset, data.heldout_dataset
    assert train is not None
    assert held is not None
    rows: dict[str, list[int]] = {}
    for row, sample in enumerate(train.samples):
        rows.setdefault(data.groups[sample.key], []).append(row)
    chosen = [
        (PLANTED, train, _choose(train, rows.get(PLANTED, []), most)),
        (UNIQUE, train, _choose(train, rows.get(UNIQUE, []), min(unique, most))),
    ]
    for group, each in ((VARIED_CAPTIONS, CAPTIONS_PER_IMAGE), (VARIED_IMAGES, 1)):
        variants: dict[str, list[int]] = {}
        for row in rows.get(group, []):
            variants.setdefault(data.template[train.samples[row].key], []).append(row)
        templates = sorted(variants, key=lambda key: hash_order(key, "evaluation"))[:most]
        chosen.append((group, train, [row for key in templates for row in _choose(train, variants[key], each)]))
    chosen.append((CANARY, train, _choose(train, rows.get(CANARY, []), most)))
    chosen.append((HELDOUT, held, _choose(held, list(range(len(held.samples))), most)))
    return chosen


def evaluate_folder(
    run: str = "runs/tiny",
    *,
    model: str | None = None,
    prompts: str | None = None,
    images_per_prompt: int = 4,
    max_prompts: int = 150,
    unique_prompts: int = 60,
    steps: int = 20,
    guidance_scale: float = 4.0,
    batch_size: int = 32,
    false_positive_rate: float | None = None,
    kid: bool | None = None,
    seed: int = 0,
    detectors: bool = True,
    output: str | None = None,
) -> dict[str, Any]:
    """Measure what a trained model reproduces, and compare with what training said; or score prompts of any model.

    Args:
        run: folder of a finished training run.
        model: a pipeline folder or hub name instead of a run; its `prompts` are scored by the detectors.
        prompts: with `model`: a file of prompts (.csv, .txt, .jsonl, .parquet), or one prompt.
        images_per_prompt: images sampled for each prompt, with seeds seed, seed + 1, ...
        max_prompts: prompts at most in each group (planted, unique, canary, held-out), or templates.
        unique_prompts: prompts of images that were trained on once per epoch.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance.
        batch_size: images sampled at once.
        false_positive_rate: probability that a prompt never trained on counts as reproduced; sets the threshold.
            Default 0.01, or with fewer than 99 held-out prompts the lowest that they can promise.
        kid: measure KID on the held-out prompts; by default if the extra `quality` is installed.
        seed: first seed.
        detectors: whether detectors read the sampling of a run, which takes a third of the time.
        output: folder of the results; default `evaluation/` in the run folder.

    Returns:
        The content of results.json.
    """
    if model is not None or prompts is not None:
        if model is None or prompts is None:
            raise ConfigurationError(
                f"model={model!r}, prompts={prompts!r}",
                expected="both, to score the prompts of a model, or neither, to evaluate a run",
                remedy="name the other one too",
            )
        if not detectors:
            raise ConfigurationError(
                "detectors=False leaves nothing to score prompts with",
                expected="detectors with `model` and `prompts`",
                remedy="leave `detectors` out",
            )
        place = Path(output or "runs/detection")
        found = read_prompts(prompts)
        if (place / "detection.json").exists():
            rank_zero_info(f"{place} holds earlier scores; they are kept as {set_aside(place)}")
        pipeline = load_components(model).pipeline()
        pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        scoring: list[Detector] = [GuidanceNorm(), MemAttn("E"), GuidanceNorm(steps=None), MemAttn("D")]
        if images_per_prompt > 1:
            scoring.append(NoiseSimilarity())
        detection = detect(
            pipeline,
            found,
            detectors=scoring,
            output=place,
            seeds=range(seed, seed + images_per_prompt),
            steps=steps,
            guidance_scale=guidance_scale,
            batch_size=batch_size,
            model=model,
        )
        print_detection(detection, pq.read_table(place / "prompts.parquet"), place)
        return detection
    folder = Path(run)
    config, data = _run_data(folder)
    train, held = data.train_dataset, data.heldout_dataset
    assert train is not None
    assert held is not None
    if not (folder / "pipeline" / "model_index.json").is_file():
        raise ConfigurationError(
            f"{folder} holds no trained pipeline", expected="pipeline/", remedy="let the training run end"
        )
    evidence = folder / "records" / "evidence.parquet"
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "pipeline", safety_checker=None)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")

    chosen = _choose_prompts(data, most=max_prompts, unique=unique_prompts)
    if false_positive_rate is None:
        false_positive_rate = max(0.01, 1 / (len(chosen[-1][2]) + 1))
    captions = [
        Prompt(dataset.samples[row].key, dataset.samples[row].caption, group)
        for group, dataset, rows in chosen
        for row in rows
    ]
    own = torch.cat([_images(dataset, rows) for _, dataset, rows in chosen if rows])
    every = list(range(len(held.samples)))
    loss = heldout_loss(pipeline, _images(held, every), captions=[sample.caption for sample in held.samples])
    reading: list[Detector] = [GuidanceNorm(), MemAttn("E"), MemAttn("D")] if detectors else []
    if detectors and images_per_prompt > 1:
        reading.append(NoiseSimilarity())
    results = evaluate_run(
        pipeline,
        captions,
        own_images=own,
        training_images=_images(train, list(range(len(train.samples)))),
        training_keys=[sample.key for sample in train.samples],
        output=output or folder / "evaluation",
        templates=data.template,
        visits=data.visits_per_epoch,
        evidence=read_table(folder / "records", "evidence") if evidence.is_file() else None,
        heldout_loss=float(loss.mean()),
        kid=kid,
        config=config,
        detectors=reading,
        seeds=range(seed, seed + images_per_prompt),
        steps=steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        false_positive_rate=false_positive_rate,
    )
    print_results(results, Path(output or folder / "evaluation"))
    return results


def evaluate(args: list[str] | None = None) -> None:
    """`python evaluate.py [--run runs/name]`.

    Args:
        args: arguments instead of those of the command line.
    """
    quiet()
    try:
        auto_cli(evaluate_folder, as_positional=False, args=args)
    except MemtrainError as error:
        sys.exit(f"{type(error).__name__}: {error}")
