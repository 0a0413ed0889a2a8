"""`memtrain demo`: the whole way from a model and pictures to a report, with what memtrain ships.

It trains `configs/tiny.yaml` in one folder and evaluates the run there. Each part goes on where it was stopped. The
folder holds `demo.yaml`, the settings of the training.

Cost: some ten minutes on two cores, without a GPU, network or download. Cannot: show what the shipped model does not
hold, such as large pictures; with `--fast`, show whether training pictures come back at all.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from memtrain.cli.chatter import quiet
from memtrain.cli.demo_options import STEPS, command_parser
from memtrain.cli.outcome import end
from memtrain.cli.writable import require_writable
from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.evaluation.stages.measure.answer import answer
from memtrain.files.shipped import ASSETS, not_hidden, shipped_config
from memtrain.files.text import read_json_object
from memtrain.files.whole import written_whole
from memtrain.files.yaml_file import read_mapping

CONFIG = "tiny"
SETTINGS = "demo.yaml"
FAST_STEPS = 120
FAST_MEASURE = ("--unique_prompts=10", "--max_prompts=30", "--images_per_prompt=1", "--detectors=none", "--kid=false")


@dataclass(frozen=True)
class Demo:
    """One demonstration.

    Attributes:
        output: the folder of the run.
        steps: training steps.
        fast: whether the evaluation asks for few pictures.
    """

    output: Path
    steps: int
    fast: bool

    def settings(self) -> dict[str, Any]:
        """The settings of the training: the shipped ones, with everything that is written in one folder.

        Raises:
            ConfigurationError: if somebody changed the shipped configuration to one of another kind.
        """
        path = shipped_config(CONFIG)
        found: Any = _replaced(read_mapping(path), not_hidden)
        try:
            # The evaluation follows in this process, which therefore trains alone.
            found["trainer"] |= {
                "default_root_dir": str(self.output),
                "max_steps": self.steps,
                "val_check_interval": max(1, self.steps // 2),
                "devices": 1,
            }
            found["model"]["init_args"]["warmup_steps"] = min(50, self.steps // 10)
            found["data"]["init_args"]["scan"] = {"folder": None}
            for callback in found["trainer"]["callbacks"]:
                given = callback.get("init_args", {})
                given.pop("reference_folder", None)
                if self.fast and callback["class_path"].endswith("MemorizationMonitor"):
                    # The base model is asked about the samples of these steps alone.
                    given["reference"] = "first_visit"
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"{path} is not the configuration of the demo",
                expected="the shipped file",
                remedy="install memtrain again",
            ) from error
        return dict(found)

    def announcement(self) -> str:
        """The text before the training: the parts, their time, and the folder."""
        again = f"Everything is written to {self.output}. If the demo is stopped, the same command goes on."
        lines = [
            "This demo fine-tunes a miniature of Stable Diffusion on 1,223 public-domain pictures.",
            "Ten of them are planted 200 times each. memtrain watches which pictures the model memorizes,",
            "trains on others in their place, and then measures which pictures come back.",
            f"  Training: {self.steps} steps, {_about(2 if self.fast else 7)} on two cores.",
            f"  Evaluation: {_about(1 if self.fast else 3)}.",
            again,
        ]
        if self.fast:
            lines.insert(5, f"This is a short look: its figures say little. `memtrain demo` trains {STEPS} steps.")
        return "\n".join(lines)


def demo(args: Sequence[str]) -> None:
    """`memtrain demo [options]`.

    Args:
        args: the words after `demo`.
    """
    quiet()
    parser = command_parser()
    options = parser.parse_args(list(args))
    default = "runs/tiny_fast" if options.fast else "runs/tiny"
    steps = options.steps if options.steps is not None else FAST_STEPS if options.fast else STEPS
    if steps < 1:
        parser.refuse(ConfigurationError(f"steps={steps}", expected="at least 1", remedy=f"such as --steps {STEPS}"))
    asked = Demo(Path(options.output or default), steps, options.fast)
    try:
        _require_settings(asked)
    except MemtrainError as error:
        end(error)
    print(asked.announcement(), flush=True)
    began = time.monotonic()
    try:
        _train(asked)
        _measure(asked)
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code > 128:
            print("The same demo command goes on, too.", file=sys.stderr)
        raise
    print(f"\nThe demo took {_about((time.monotonic() - began) / 60)}.")
    print(summary(asked.output))
    if asked.fast:
        print(f"These figures are of a short look. `memtrain demo` trains {STEPS} steps and asks for more pictures.")


def _require_settings(asked: Demo) -> None:
    """Write the settings of the training, or refuse a folder that holds a run with others.

    Raises:
        ConfigurationError: naming the folder.
    """
    path, settings = asked.output / SETTINGS, asked.settings()
    if not path.is_file() and any(asked.output.glob("checkpoints/*.ckpt")):
        raise ConfigurationError(
            f"{asked.output} holds a run that is no demo",
            expected="a new folder, or that of an earlier demo",
            remedy=f"name another one with --output, or evaluate the run: memtrain measure --run {asked.output}",
        )
    if path.is_file() and _comparable(read_mapping(path)) != _comparable(settings):
        raise ConfigurationError(
            f"{asked.output} holds a demo with other settings",
            expected="the same options as at its first start",
            remedy="name another folder with --output",
        )
    require_writable(asked.output)
    with written_whole(path) as unfinished:
        unfinished.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
    """A configuration with each of its texts changed by a function."""
    if isinstance(value, dict):
        return {name: _replaced(one, change) for name, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


def _comparable(settings: Mapping[str, Any]) -> Any:
    """The settings without what depends on the current folder: the run folder, and the place of shipped files."""
    trainer = settings.get("trainer")
    kept = {name: one for name, one in trainer.items() if name != "default_root_dir"} if trainer else trainer
    return _replaced({**settings, "trainer": kept}, lambda text: text[max(0, text.find(f"{ASSETS}/")) :])


def _train(asked: Demo) -> None:
    """Train to the end, from the newest checkpoint where there is one."""
    if (asked.output / ".training_ended").is_file():
        print(f"The training in {asked.output} is complete.")
        return
    # Imported here, because Lightning takes seconds to import and a refusal should not wait for it.
    from memtrain.cli.training import train

    goes_on = any(asked.output.glob("checkpoints/*.ckpt"))
    with warnings.catch_warnings():
        # The words are those of the demo.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        train(["fit", "--config", str(asked.output / SETTINGS), *(["--ckpt_path", "last"] if goes_on else [])])


def _measure(asked: Demo) -> None:
    """Evaluate the run, from where an earlier evaluation was stopped."""
    from memtrain.cli import evaluate

    evaluate(["measure", "--run", str(asked.output), *(FAST_MEASURE if asked.fast else ())])


def summary(run: Path) -> str:
    """Where the report is, and what it says in two sentences.

    Args:
        run: the folder of an evaluated run.
    """
    folder = run / "evaluation"
    results = read_json_object(folder / "results.json", what="the results of measure", remedy="give the command again")
    flags: Mapping[str, Any] = (results.get("training") or {}).get("flags") or {}
    flags = flags.get("pictures") or flags
    lines = [f"Report: {folder / 'report.html'}"]
    if flags:
        planted = flags["planted_flagged"] + flags["planted_missed"]
        others = flags["unique_flagged"] + flags["unique_not_flagged"]
        first = (flags.get("first_flagged_step") or {}).get("min")
        since = f", the first at step {first:,}" if first is not None else ""
        lines.append(
            f"The training flagged {flags['planted_flagged']:,} of {planted:,} planted pictures{since}, and "
            f"{flags['unique_flagged']:,} of {others:,} others."
        )
    found = results["counts"]["pictures"]
    ends = " to ".join(f"{100 * end:.1f} %" for end in found["interval"] or ())
    lines.append(
        f"The finished model brings back {found['reproduced']:,} of {found['n']:,} training pictures that were asked "
        f"for{f' ({ends} with 95 % confidence)' if ends else ''}; the report's answer is: {answer(results)['word']}"
    )
    return "\n".join(lines)


def _about(minutes: float) -> str:
    count = max(1, round(minutes))
    return "about a minute" if count == 1 else f"about {count} minutes"
