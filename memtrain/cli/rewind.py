"""`memtrain rewind --run ...`: a run trained again from before it learnt what it flagged, without that.

A flag stops further learning of a picture, and cannot take back what was learnt before it. So the run goes back to its
newest checkpoint with few visits of flagged samples, or to its beginning if there is no such checkpoint. It is trained
to its planned end without the flagged samples, and everything else stays as it was. That needs checkpoints that were
kept during training (:data:`KEEP` says how).

The earlier run is left as it is. The new folder holds `rewind.json` (what was rewound, and from where), `rewind.yaml`
(the configuration), `excluded.csv` (the keys that are left out), and the records from before the checkpoint.

Cost: the training from the checkpoint on. Cannot: take back what flagged samples taught before the checkpoint, nor find
what the run did not flag. An epoch is shorter without the excluded samples; a run with `max_epochs` ends after as many
epochs as before, and so after fewer steps.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
import yaml
from jsonargparse import auto_cli
from lightning.pytorch.utilities import rank_zero_only

from memtrain.cli.command_parser import CarefulParser
from memtrain.cli.kept_checkpoints import Checkpoint, callbacks_of, kept_checkpoints
from memtrain.cli.outcome import end
from memtrain.cli.training import train
from memtrain.cli.trusted import trust_words
from memtrain.data.selection import read_keys
from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.files.sheet_cells import write_cells
from memtrain.files.yaml_file import read_mapping
from memtrain.records import iterate_steps, write_json, written_whole

log = logging.getLogger(__name__)

KEEP = """- class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {save_top_k: -1, every_n_train_steps: 100}"""
"""The item of `trainer.callbacks` that keeps checkpoints."""
WAIT = 600  # seconds that other processes wait for the first to prepare the new folder


@dataclass(frozen=True)
class Plan:
    """Where a run is taken up again, and without what.

    Attributes:
        run: the earlier run.
        checkpoint: None for the beginning.
        excluded: keys that are left out from then on.
        flagged: those of them that the run flagged.
        visits: the training visits of flagged samples.
        before: the visits among them that the checkpoint holds.
        latest: the step of the newest checkpoint; None if there is none.
    """

    run: Path
    checkpoint: Checkpoint | None
    excluded: Sequence[str]
    flagged: int
    visits: int
    before: int
    latest: int | None

    def text(self, output: Path) -> str:
        """The plan, in words."""
        undone = self.visits - self.before
        lines = [f"{self.run} flagged {self.flagged:,} samples. It was trained on them {self.visits:,} times in all."]
        if self.checkpoint is not None:
            lines.append(
                f"It is taken up at step {self.checkpoint.step:,} ({self.checkpoint.path}): {undone:,} of these visits "
                "come after it."
            )
        else:
            why = "it kept no checkpoint" if self.latest is None else "all its checkpoints are from after most of them"
            lines.append(
                f"It is trained again from its beginning, because {why}. To keep checkpoints during training, add to "
                f"trainer.callbacks:\n    {KEEP}"
            )
        lines.append(f"{len(self.excluded):,} samples are left out. The new run is {output}.")
        return "\n".join(lines)


def rewind(args: Sequence[str]) -> None:
    """`memtrain rewind ...`.

    Args:
        args: what follows `rewind`.
    """
    try:
        auto_cli(rewind_run, args=list(args), as_positional=False, prog="memtrain rewind", parser_class=CarefulParser)
    except MemtrainError as error:
        end(error)


def rewind_run(run: str, output: str | None = None, remaining: float = 0.1) -> None:
    """Train a run again from before it learnt the samples that it flagged, without them.

    Args:
        run: Folder of a finished or interrupted run.
        output: Folder of the new run; default that of the earlier one with `_rewound` behind it.
        remaining: Share of the flagged samples' visits that the checkpoint may hold; with 0, from before the first.
    """
    folder = Path(run)
    new = Path(output) if output is not None else folder.with_name(f"{folder.name}_rewound")
    config = new / "rewind.yaml"
    if getattr(rank_zero_only, "rank", 0):
        _wait_for(config)
    else:
        plan = make_plan(folder, remaining=remaining)
        prepare(plan, new)
        print(plan.text(new))
    # Processes that Lightning starts are given this command line.
    sys.argv[1:] = ["fit", "--config", str(config), *trust_words()]
    with warnings.catch_warnings():
        # Where checkpoints go is what is meant to change.
        warnings.filterwarnings("ignore", message="The dirpath has changed from")
        train()


def make_plan(run: Path, *, remaining: float) -> Plan:
    """Decide where to take a run up again.

    Raises:
        ConfigurationError: if it is no run, or has flagged nothing that was trained on.
    """
    config = _config(run)
    checkpoints = kept_checkpoints(run, config)
    listed = run / "flagged.csv"
    flagged = set(read_keys(str(listed))) if listed.is_file() else _flagged_so_far(run, checkpoints)
    visited = _visits_of(run, flagged)
    if not len(visited):
        raise ConfigurationError(
            f"{run} has nothing to take back: it flagged {len(flagged)} samples, and it was trained on none of them",
            expected="flagged samples that the run was trained on",
            remedy="do nothing; memtrain measure shows what the model reproduces",
        )
    fitting = [one for one in checkpoints if int((visited < one.step).sum()) <= remaining * len(visited)]
    chosen = max(fitting, key=lambda one: one.step, default=None)
    excluded = set((config["data"].get("init_args") or {}).get("exclude") or ())
    return Plan(
        run=run,
        checkpoint=chosen,
        excluded=sorted(flagged | excluded),
        flagged=len(flagged),
        visits=len(visited),
        before=0 if chosen is None else int((visited < chosen.step).sum()),
        latest=max((one.step for one in checkpoints), default=None),
    )


def _config(run: Path) -> dict[str, Any]:
    """The configuration of a run, in which the keys to exclude are a list."""
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigurationError(
            f"{run} is no run: it has no config.yaml",
            expected="the folder of a training run",
            remedy="name it with --run",
        )
    config = read_mapping(path)
    data, trainer = config.get("data"), config.get("trainer")
    if not isinstance(data, dict) or "class_path" not in data or not isinstance(trainer, dict):
        raise ConfigurationError(
            f"{path} names no data module",
            expected="a run of memtrain, whose data can leave samples out",
            remedy="leave the samples of flagged.csv out of your own data, and train again",
        )
    settings = data["init_args"] = dict(data.get("init_args") or {})
    if isinstance(settings.get("exclude"), str):
        settings["exclude"] = sorted(read_keys(settings["exclude"]))
    return config


def _visits_of(run: Path, keys: set[str]) -> torch.Tensor:
    """Steps of the visits of samples that were trained on, `(n,)`."""
    wanted, steps = pa.array(sorted(keys), pa.string()), [torch.zeros(0, dtype=torch.long)]
    for table in iterate_steps(run / "records", ("key", "step", "weight")):
        taught = table.filter(pc.and_(pc.is_in(table["key"], wanted), pc.greater(table["weight"], 0.0)))
        steps.append(torch.tensor(taught["step"].to_numpy().copy(), dtype=torch.long))
    return torch.cat(steps)


def _flagged_so_far(run: Path, checkpoints: Sequence[Checkpoint]) -> set[str]:
    """The flagged samples of an interrupted run, as far as its files say."""
    newest = max(checkpoints, key=lambda one: one.step, default=None)
    found = set(newest.flagged if newest is not None else ())
    for table in iterate_steps(run / "records", ("key", "flagged")):
        found |= set(pc.unique(table.filter(table["flagged"])["key"]).to_pylist())
    return found


def prepare(plan: Plan, output: Path) -> None:
    """Make the new run folder: configuration, excluded keys, what is rewound, and the records before the checkpoint.

    Raises:
        ConfigurationError: if there is such a folder already.
    """
    if output.exists():
        raise ConfigurationError(
            f"{output} exists already", expected="a new folder", remedy="name another one with --output"
        )
    output.mkdir(parents=True)
    if plan.checkpoint is not None:
        shutil.copytree(plan.run / "records" / "steps", output / "records" / "steps")
    with (
        written_whole(output / "excluded.csv") as unfinished,
        unfinished.open("w", newline="", encoding="utf-8") as file,
    ):
        write_cells(file, ("key",), ([key] for key in plan.excluded))
    write_json(
        {
            "run": str(plan.run),
            "checkpoint": None if plan.checkpoint is None else str(plan.checkpoint.path),
            "step": 0 if plan.checkpoint is None else plan.checkpoint.step,
            "flagged": plan.flagged,
            "excluded": len(plan.excluded),
            "visits_of_flagged": plan.visits,
            "visits_before": plan.before,
        },
        output / "rewind.json",
    )
    with written_whole(output / "rewind.yaml") as unfinished:  # last: other processes wait for it
        unfinished.write_text(yaml.safe_dump(_changed(plan, output), sort_keys=False), encoding="utf-8")


def _changed(plan: Plan, output: Path) -> dict[str, Any]:
    """The configuration of the new run."""
    config = _config(plan.run)
    settings = config["data"]["init_args"]
    settings["exclude"] = str(output / "excluded.csv")
    scan = settings.get("scan") or {}
    if settings.get("families") == "auto" and (plan.run / "families").is_dir() and not scan.get("folder"):
        settings["scan"] = {**scan, "folder": str(plan.run / "families")}
    config["ckpt_path"] = None if plan.checkpoint is None else str(plan.checkpoint.path.resolve())
    config["trainer"]["default_root_dir"] = str(output)
    for callback in callbacks_of(config):
        settings = callback.get("init_args") or {}
        for name, value in settings.items():
            if isinstance(value, str) and Path(value).resolve().is_relative_to(plan.run.resolve()):
                settings[name] = str(output / Path(value).resolve().relative_to(plan.run.resolve()))
        if callback["class_path"].endswith("MemorizationMonitor"):
            # The base model was measured before the run, and cannot be measured again from a checkpoint.
            given = callback.setdefault("init_args", settings).get("reference_folder")
            own = given is None or Path(given).resolve().is_relative_to(output.resolve())
            settings["reference_folder"] = str(plan.run / "profiles") if own else given
    return config


def _wait_for(path: Path) -> None:
    for _ in range(WAIT):
        if path.is_file():
            return
        time.sleep(1)
    raise ConfigurationError(
        f"{path} did not appear within {WAIT} s",
        expected="the first process to write this file",
        remedy="look at the messages of the first process",
    )
