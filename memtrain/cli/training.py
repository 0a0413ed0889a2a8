"""`train.py`: a LightningCLI whose runs keep everything in one folder."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from memtrain.callbacks.progress_bar import ProgressBar
from memtrain.callbacks.safe_training import SafeTraining
from memtrain.cli.chatter import quiet
from memtrain.cli.faults import SMALLER_TRAINING, explained, training_again
from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.files.whole import written_whole
from memtrain.monitoring.options import WatchSettings
from memtrain.records import set_aside

DEFAULT_CONFIG = "configs/tiny.yaml"
"""What `python train.py` runs."""
DESCRIPTION = (
    "Fine-tune a model and watch what it memorizes. Before that, `python train.py scan` shows which files of the data "
    "are one picture (`python train.py scan --help`), and `python train.py plan` what the training would do."
)


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete configuration to `config.yaml` in the run folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called on rank 0 only."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with written_whole(folder / "config.yaml") as unfinished:
            self.parser.save(self.config, unfinished, skip_none=False, overwrite=True, multifile=self.multifile)


class TrainParser(LightningArgumentParser):
    """Says what to write instead of options that have moved, below the long message of the parser."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program."""
        hints = [
            f"`{name}` stands under `settings` of the monitor: write `settings: {{{name}: ...}}` in its init_args"
            for name in (field.name for field in fields(WatchSettings))
            if f"'{name}' is not accepted" in message
        ]
        if "'reference': " in message and "MemorizationMonitor" in message and not hints:
            hints = ["if `reference` is what is refused: it is true, false or paired"]
        super().error("\n".join([message, *(f"Remedy: {hint}" for hint in hints)]), ex)


class TrainCLI(LightningCLI):
    """LightningCLI in which everything a run writes goes to `trainer.default_root_dir`."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser with hints."""
        parser = super().init_parser(**kwargs)
        parser.__class__ = TrainParser
        return parser

    def _folder(self) -> Path:
        return Path(self.config[self.subcommand].trainer.default_root_dir or "runs/unnamed")

    def before_instantiate_classes(self) -> None:
        """Put checkpoints into the run folder unless the configuration says otherwise.

        Raises:
            ConfigurationError: if the list of excluded keys lies in the run folder, and is renamed with it when the new
                run takes its place, or written anew.
        """
        excluded = (self.config[self.subcommand].data.get("init_args") or {}).get("exclude")
        # In a fresh folder a list may lie, unless the run writes it anew.
        if (
            isinstance(excluded, str)
            and Path(excluded).resolve().is_relative_to(self._folder().resolve())
            and (self._holds_earlier_run() or Path(excluded).name == "flagged.csv")
        ):
            raise ConfigurationError(
                f"The keys to exclude, {excluded}, lie in the folder of the new run, {self._folder()}",
                expected="a folder of its own for the run without them",
                remedy=f"add --trainer.default_root_dir {self._folder()}_excluded",
            )
        trainer = self.config[self.subcommand].trainer
        trainer.default_root_dir = str(self._folder())
        for callback in _listed(trainer.callbacks):
            if callback.class_path.endswith("ModelCheckpoint") and callback.init_args.get("dirpath") is None:
                callback.init_args.dirpath = str(self._folder() / "checkpoints")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log to CSV files in the run folder unless the configuration names a logger; our progress bar likewise."""
        trainer = self.config[self.subcommand].trainer
        if trainer.logger is None:
            kwargs["logger"] = CSVLogger(self._folder(), name="logs")
        given = [callback.class_path for callback in _listed(trainer.callbacks)]
        added: list[Any] = []
        if not any(name.endswith("SafeTraining") for name in given):
            added.append(SafeTraining())
        if trainer.enable_progress_bar is not False and not any(name.endswith("ProgressBar") for name in given):
            added.append(ProgressBar())
        self.trainer_defaults["callbacks"] = added
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Keep an earlier run of the same name out of the way."""
        if self._holds_earlier_run():
            _keep(self._folder())

    def _holds_earlier_run(self) -> bool:
        """Whether the folder holds a run in whose place the new one steps."""
        left = any((self._folder() / name).exists() for name in ("records", "checkpoints", "pipeline"))
        return left and self.config[self.subcommand].ckpt_path is None


def _listed(callbacks: Any) -> list[Any]:
    """The callbacks of a configuration, in which one may stand without a list, as Lightning's Trainer takes it."""
    return callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []


@rank_zero_only
def _keep(folder: Path) -> None:
    rank_zero_info(f"{folder} holds an earlier run; it is kept as {set_aside(folder)}")


def train(args: ArgsType = None) -> None:
    """`python train.py [fit] [--config ...]`; without `fit` and a configuration, that of the embedded default.

    Args:
        args: arguments instead of those of the command line.
    """
    quiet()
    given = sys.argv[1:]
    if args is None and (not given or (given[0].startswith("-") and given[0] not in ("-h", "--help"))):
        named = any(word.split("=")[0] in ("--config", "-c") for word in given)
        sys.argv[1:] = ["fit", *([] if named else ["--config", DEFAULT_CONFIG]), *given]
    try:
        TrainCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            parser_kwargs={"description": DESCRIPTION},
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},
            args=args,
        )
    except Exception as error:
        again = training_again(given if args is None else args if isinstance(args, list) else [])
        found = explained(own_error(error) or error, again=again, smaller=SMALLER_TRAINING)
        if found is None:
            raise
        sys.exit(f"{type(found).__name__}: {found}")


def own_error(error: BaseException | None) -> MemtrainError | None:
    """An error of ours, or the one that the parser met while it made an object, and hid behind one of its own."""
    while error is not None and not isinstance(error, MemtrainError):
        error = error.__cause__
    return error
