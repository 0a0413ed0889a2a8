"""The commands that are killed, on a small model and small data, and a way to start and kill them.

A command runs in a fork of this process, which has imported everything: a kill then falls into the command's work and
not into its imports. A fork runs `train.py` and `evaluate.py` as the shell would, in a session and a folder of its own.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "assets" / "tiny-sd"
NEEDED = (
    *("memtrain.cli.training", "memtrain.cli.evaluation", "memtrain.cli.scan", "memtrain.cli.run_folder"),
    *("memtrain.training.text_to_image", "memtrain.data.module", "memtrain.callbacks.monitor"),
    *("memtrain.callbacks.sample_replacement", "memtrain.callbacks.pipeline_export", "memtrain.cli.trained_pipeline"),
    *("memtrain.evaluation.stages.localize.localize", "memtrain.evaluation.stages.mitigate.mitigate"),
    *("memtrain.evaluation.stages.detect.detect", "memtrain.evaluation.stages.measure.evaluate_run"),
    *("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "lightning.pytorch", "matplotlib.figure"),
)
PICTURES, MANY = 24, 150
STEPS = 12
SAMPLING = ("--steps", "2", "--images_per_prompt", "2", "--batch_size", "4")


@dataclass(frozen=True)
class Command:
    """One of `train`, `scan`, `detect`, `measure`, `mitigate` and `localize`.

    Attributes:
        name: of it.
        program: `train.py` or `evaluate.py`.
        words: behind the program; `{base}` stands for the folder of what all share.
        again: more words of every start but the first.
        results: the folder with its results below the folder it runs in.
    """

    name: str
    program: str
    words: tuple[str, ...]
    again: tuple[str, ...] = ()
    results: str = "out"

    def argv(self, base: Path, *, again: bool) -> list[str]:
        """The command line."""
        return [self.program, *(word.format(base=base) for word in (*self.words, *(self.again if again else ())))]


TRAIN = (
    *("fit", "--config", str(ROOT / "configs" / "tiny.yaml"), "--trainer.default_root_dir", "out"),
    *("--model.init_args.pretrained", str(MODEL), "--data.init_args.path", "{base}/pictures"),
    *("--data.init_args.resolution", "32", "--data.init_args.batch_size", "4", "--trainer.max_steps", str(STEPS)),
    *("--data.init_args.heldout_fraction", "0.25", "--data.init_args.families", "off"),
    *("--data.init_args.duplicates", "{{count: 2, repeats: 4, only_in: null}}"),
    *("--trainer.enable_progress_bar", "false", "--trainer.val_check_interval", str(STEPS)),
    *("--trainer.log_every_n_steps", "4", "--trainer.callbacks.init_args.every_n_train_steps", "3"),
)
COMMANDS = (
    Command("train", "train.py", TRAIN, again=("--ckpt_path", "last")),
    Command("scan", "train.py", ("scan", "{base}/many", "--output", "out")),
    Command(
        "detect",
        "evaluate.py",
        ("detect", "--model", str(MODEL), "--prompts", "{base}/prompts.csv", "--output", "out", *SAMPLING),
    ),
    Command(
        "measure",
        "evaluate.py",
        ("measure", "--run", "{base}/reference/train/out", "--output", "out", "--detectors", "none", *SAMPLING),
    ),
    Command(
        "mitigate",
        "evaluate.py",
        (
            *("mitigate", "--config", str(ROOT / "configs" / "inference" / "attention_masking.yaml")),
            *("--model", str(MODEL), "--prompts", "{base}/few.csv", "--output", "out", *SAMPLING),
        ),
    ),
    Command(
        "localize",
        "evaluate.py",
        (
            *("localize", "--model", str(MODEL), "--prompts", "{base}/few.csv", "--output", "out", *SAMPLING),
            *("--settings.seeds", "3", "--settings.most_k", "2", "--threshold", "-1", "--probe_steps", "0"),
            *("--statistics", "{base}/calibrated/neurons/statistics.safetensors"),
        ),
    ),
)
CALIBRATE = Command(
    "calibrate",
    "evaluate.py",
    (
        *("calibrate", "--model", str(MODEL), "--prompts", "{base}/ordinary.csv", "--output", "{base}/calibrated"),
        *("--settings.seeds", "3"),
    ),
)


def prepare(base: Path) -> None:
    """Pictures and prompts that every command works on."""
    drawn = np.random.default_rng(0)
    for name, count, side in (("pictures", PICTURES, 32), ("many", MANY, 256)):
        (base / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise = drawn.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(base / name / f"{number:03d}.png")
            text = f"a picture with the number {number}"
            (base / name / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    for name, count in (("prompts", 8), ("few", 3), ("ordinary", 4)):
        lines = [f"{name} {number},{0 if name == 'ordinary' else number % 2}" for number in range(count)]
        (base / f"{name}.csv").write_text("\n".join(["caption,memorized", *lines, ""]), encoding="utf-8")


def warm() -> None:
    """Import what the commands need, once for all of them."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1", OMP_NUM_THREADS="1")
    for name in NEEDED:
        importlib.import_module(name)


def start(command: Command, folder: Path, *, base: Path, again: bool) -> int:
    """Start a command in a folder; its output goes to `log.txt` there.

    Returns:
        The number of its process, which leads a group of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if child := os.fork():
        return child
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        sys.argv = command.argv(base, again=again)
        print("$", *sys.argv)
        status = _run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _run() -> int:
    from memtrain import cli

    try:
        (cli.train if sys.argv[0] == "train.py" else cli.evaluate)()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code)
            return 1
        return int(ended.code or 0)
    return 0


def finish(child: int, *, kill_after: float | None) -> int | None:
    """Wait for a command, or kill it and its group.

    Args:
        child: its process.
        kill_after: seconds until it is killed; None to let it end.

    Returns:
        Its exit status, None if it was killed.
    """
    end = None if kill_after is None else time.monotonic() + kill_after
    while end is None or time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def chosen(seed: int, case: int) -> tuple[Command, random.Random]:
    """The command of a case, each in turn, and what its moments are drawn with."""
    return COMMANDS[case % len(COMMANDS)], random.Random(f"{seed}/{case}")
