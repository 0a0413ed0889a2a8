"""`memtrain train`: a LightningCLI whose runs keep everything in one folder."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from memtrain.callbacks.progress_bar import ProgressBar
from memtrain.callbacks.safe_training import SafeTraining
from memtrain.callbacks.stop_on_signal import StopOnSignal, Stopped
from memtrain.cli.chatter import quiet
from memtrain.cli.continued import require_checkpoint
from memtrain.cli.faults import SMALLER_TRAINING, explained, training_again
from memtrain.cli.outcome import end, tell
from memtrain.cli.progress import require_progress
from memtrain.cli.refusal import own_error as hidden_error
from memtrain.cli.run_settings import check_numbers, require_apart, require_new
from memtrain.cli.slurm import one_of_an_allocation
from memtrain.cli.spoken import train_command
from memtrain.cli.stopped import continue_training, stopped_by_signals
from memtrain.cli.train_parser import TrainParser, refused_by_lightning
from memtrain.data.selection import read_keys
from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.files.lock import locked
from memtrain.files.whole import written_whole

DEFAULT_CONFIG = "configs/tiny.yaml"
"""The configuration of `memtrain train` without another one."""


class SaveRunConfig(SaveConfigCallback):
    """Writes the complete configuration to `config.yaml` in the run folder."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called on rank 0 only.

        Settings that follow from the run folder are left out, and so is the checkpoint of this start. With another
        folder, the configuration would else write into this one.
        """
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config.ckpt_path = None
        for callback in _listed(config.trainer.callbacks):
            if _keeps_checkpoints(callback) and callback.init_args.get("dirpath") == _checkpoints_in(folder):
                callback.init_args.dirpath = None
        with written_whole(folder / "config.yaml") as unfinished:
            self.parser.save(config, unfinished, skip_none=False, overwrite=True, multifile=self.multifile)


class TrainCLI(LightningCLI):
    """LightningCLI in which everything a run writes goes to `trainer.default_root_dir`.

    Attributes:
        held: what is given back when the command ends.
    """

    held: ClassVar[ExitStack] = ExitStack()
    folder: ClassVar[Path | None] = None
    """The folder of the current run."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser with hints."""
        parser = super().init_parser(**kwargs)
        parser.__class__ = TrainParser
        return parser

    def _parse_ckpt_path(self) -> None:
        """Settings are those of the command line; what a checkpoint says of itself is compared with them, not taken."""

    def _folder(self) -> Path:
        return Path(self.config[self.subcommand].trainer.default_root_dir or "runs/unnamed")

    def before_instantiate_classes(self) -> None:
        """Put checkpoints into the run folder unless the configuration says otherwise.

        Raises:
            ConfigurationError: if the run folder holds an earlier run, or the list of excluded keys that this run would
                overwrite.
        """
        require_checkpoint(self.config[self.subcommand].ckpt_path)
        folder = TrainCLI.folder = self._folder()
        check_numbers(self.config[self.subcommand])
        if self.subcommand == "fit":
            if own_rank() == 0:
                require_progress(folder, self.config[self.subcommand])
            require_apart(folder, self.config[self.subcommand].data)
            if self.config[self.subcommand].ckpt_path is None:
                self.require_folder(folder)
        excluded = (self.config[self.subcommand].data.get("init_args") or {}).get("exclude")
        if isinstance(excluded, str) and Path(excluded).resolve() == (folder / "flagged.csv").resolve():
            raise ConfigurationError(
                f"The keys to exclude, {excluded}, lie in the folder of the new run, which overwrites that file",
                expected="a folder of its own for the run without them",
                remedy=f"add --trainer.default_root_dir {folder}_excluded",
            )
        # Checkpoints are plain tensors and numbers; what would have to be unpickled can run code.
        if "weights_only" in self.config[self.subcommand]:
            self.config[self.subcommand].weights_only = True
        trainer = self.config[self.subcommand].trainer
        trainer.default_root_dir = str(self._folder())
        for callback in _listed(trainer.callbacks):
            if _keeps_checkpoints(callback) and callback.init_args.get("dirpath") is None:
                callback.init_args.dirpath = _checkpoints_in(self._folder())

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add a CSV logger, our progress bar and callbacks for safety unless the configuration has its own."""
        trainer = self.config[self.subcommand].trainer
        if trainer.logger is None:
            kwargs["logger"] = CSVLogger(self._folder(), name="logs")
        given = [callback.class_path for callback in _listed(trainer.callbacks)]
        added: list[Any] = []
        if not any(name.endswith("SafeTraining") for name in given):
            added.append(SafeTraining())
        if not any(name.endswith("StopOnSignal") for name in given):
            added.append(StopOnSignal())
        if trainer.enable_progress_bar is not False and not any(name.endswith("ProgressBar") for name in given):
            added.append(ProgressBar())
        self.trainer_defaults["callbacks"] = added
        return super().instantiate_trainer(**kwargs)

    def require_folder(self, folder: Path) -> None:
        """Refuse a folder in which no new run can begin."""
        if own_rank() == 0:
            require_new(folder)

    def before_fit(self) -> None:
        """From now on the folder is this run's."""
        if own_rank() == 0:
            self.held.enter_context(locked(self._folder(), doing="train"))


def _keeps_checkpoints(callback: Any) -> bool:
    return str(callback.class_path).endswith("ModelCheckpoint")


def _checkpoints_in(folder: Path) -> str:
    return str(folder / "checkpoints")


def _listed(callbacks: Any) -> list[Any]:
    """The callbacks of a configuration, in which one may stand without a list, as Lightning's Trainer takes it."""
    return callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []


def own_rank() -> int:
    """Rank of this process, as its launcher says; 0 of a single one."""
    return int(getattr(rank_zero_only, "rank", 0))


def train(args: ArgsType = None) -> None:
    """`memtrain train [fit] [--config ...]`; without `fit` and a configuration, that of the embedded default.

    Args:
        args: arguments instead of those of the command line.
    """
    quiet()
    one_of_an_allocation()
    given = sys.argv[1:]
    if args is None and (not given or (given[0].startswith("-") and given[0] not in ("-h", "--help"))):
        named = any(word.split("=")[0] == "--config" or word.startswith("-c") for word in given)
        sys.argv[1:] = ["fit", *([] if named else ["--config", DEFAULT_CONFIG]), *given]
    words = given if args is None else args if isinstance(args, list) else []
    TrainCLI.folder = None
    try:
        with stopped_by_signals(lambda: _go_on(words), kept="what was computed"):
            _run(args)
    except Stopped as stopped:
        name = "last" if stopped.checkpoint.name == "last.ckpt" else stopped.checkpoint
        if own_rank() == 0:
            said = f"Stopped by {signal.Signals(stopped.number).name}, with a checkpoint. Go on with:"
            print(f"{said}\n  {continue_training(stopped.folder, name, given=words)}", file=sys.stderr)
        raise
    except Exception as error:
        again = shlex.join(_go_on(words))
        found = explained(own_error(error) or error, again=again, smaller=SMALLER_TRAINING)
        if found is None:
            print(f"When the cause is removed, go on with: {again}", file=sys.stderr)
            raise
        end(found)


def _go_on(words: Sequence[str]) -> list[str]:
    """The command that goes on from the last checkpoint; where there is none, the same one again."""
    if TrainCLI.folder is not None and any(TrainCLI.folder.glob("checkpoints/*.ckpt")):
        return shlex.split(training_again(words))
    return train_command(words)


def _run(args: ArgsType) -> None:
    try:
        with ExitStack() as TrainCLI.held:
            ended = TrainCLI(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                seed_everything_default=0,
                save_config_callback=SaveRunConfig,
                save_config_kwargs={"overwrite": True},
                args=args,
            )
        _tell_end(ended)
    except SystemExit as ended:
        # Lightning ends an interrupted run with status 1, or 0 where it was SIGTERM.
        if isinstance(ended.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(*ended.__context__.args) from ended
        if isinstance(ended, SIGTERMException):
            raise KeyboardInterrupt(signal.SIGTERM) from ended
        raise


def _tell_end(command: TrainCLI) -> None:
    """Say what a finished training left, for `--json`."""
    trainer, folder = getattr(command, "trainer", None), TrainCLI.folder
    if trainer is None or folder is None:
        return
    flagged = folder / "flagged.csv"
    told = {"steps": trainer.global_step, "epochs": trainer.current_epoch}
    if flagged.is_file():
        told["flagged"] = len(set(read_keys(str(flagged))))
    tell(told, folder)


def own_error(error: BaseException | None) -> MemtrainError | None:
    """An error of ours, or the one that the parser hid behind one of its own, or what Lightning's trainer refuses."""
    return hidden_error(error) or refused_by_lightning(error)
