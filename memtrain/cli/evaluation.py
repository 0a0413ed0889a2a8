"""The commands of an evaluation: `memtrain STAGE` for each stage, such as `memtrain measure`."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from memtrain.cli.chatter import quiet
from memtrain.cli.command_parser import CarefulParser
from memtrain.cli.faults import SMALLER_EVALUATION, explained
from memtrain.cli.help.overview import overview
from memtrain.cli.outcome import end, tell
from memtrain.cli.spoken import PROMPTS, evaluate_command
from memtrain.cli.stopped import stopped_by_signals
from memtrain.cli.writable import require_writable
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.stored_samples import UnfinishedParts
from memtrain.evaluation.stages.base import (
    ModelStage,
    PromptStage,
    Stage,
    StageInput,
    stage_class,
    stage_names,
    write_report,
)
from memtrain.evaluation.stages.checkpoints import Checkpoint
from memtrain.evaluation.stages.cut_prompts import cut_prompts
from memtrain.evaluation.stages.measure.fail_on import read_fail_on
from memtrain.evaluation.stages.measure.stage import Measure
from memtrain.evaluation.stages.prompts import prompts_read
from memtrain.evaluation.stages.results_stage import ResultsStage
from memtrain.evaluation.stages.shards import Shard, ShardOptions, read_shard
from memtrain.files.exit_status import MEANING, ExitStatus
from memtrain.files.lock import locked
from memtrain.files.output import print_or_exit
from memtrain.files.progress import progress_is_off
from memtrain.files.shown import shown
from memtrain.models.placement import placed

if TYPE_CHECKING:
    from memtrain.cli.trained_pipeline import TrainedPipeline
    from memtrain.evaluation.stages.run_samples import Run


def evaluate(args: list[str] | None = None, *, run: Callable[[list[str], Stage], dict[str, Any]] | None = None) -> None:
    """`memtrain [stage] [options]`; the default stage is `measure`, and with `--prompts` it is `detect`.

    Args:
        args: arguments instead of those of the command line.
        run: the function that runs the stage of a command; default :func:`run_stage`.
    """
    quiet()
    words = list(sys.argv[1:] if args is None else args)
    try:
        if words[:1] in (["--help"], ["-h"]):
            print_or_exit(overview())
            return
        stage = read_command(words)
        with stopped_by_signals(evaluate_command(words), kept="what is finished"):
            results = run_stage(stage) if run is None else run(words, stage)
            status = stage.exit_status(results)
            tell(results, stage.folder)
    except Exception as error:
        again = shlex.join(evaluate_command(words))
        found = explained(error, again=again, smaller=SMALLER_EVALUATION)
        if found is None:
            raise
        end(found)
    if status:
        if progress_is_off():
            said = " ".join(str((results.get("verdict") or {}).get("text", "")).split())
            print(f"Status {int(status)}: {MEANING[ExitStatus(status)]}. {said}".rstrip(), file=sys.stderr)
        sys.exit(status)


def read_command(words: list[str]) -> Stage:
    """The stage that a command line names, with its options.

    Args:
        words: the words of the command line.

    Raises:
        ConfigurationError: if there is no such stage, or the command has the form of earlier versions.
    """
    if any(word.split("=")[0] == "--stages" for word in words):
        raise ConfigurationError(
            "--stages is no option any more: a stage is the first word of the command",
            expected=f"memtrain STAGE [options], with one of {', '.join(stage_names())}",
            remedy="such as `memtrain detect --run runs/tiny`; give one command for each stage",
        )
    named = bool(words) and not words[0].startswith("-")
    name = evaluate_command(words)[1]
    used = {word.split("=")[0] for word in words}
    if not named and name == PROMPTS:
        print(f"No stage is named, so {PROMPTS} scores the prompts. `memtrain --help` lists the stages.")
    kind = stage_class(name)
    if "--prompts" in used and not issubclass(kind, PromptStage | ResultsStage):
        raise ConfigurationError(
            f"--prompts for {name}, which samples the captions of a run or folder",
            expected="the folder of a finished training run with --run, or --model and --data",
            remedy="take a stage for prompts, such as `memtrain detect`",
        )
    parser = stage_parser(name, kind)
    options = parser.instantiate(parser.parse_args(_named(words[1:] if named else words, kind)))
    stage = kind(**{field.name: options[field.name] for field in fields(kind) if field.name in options})
    if isinstance(stage, Measure):
        try:
            read_fail_on(stage.fail_on)
        except ConfigurationError as error:
            parser.refuse(error)
    return stage


def _named(words: list[str], kind: type[Stage]) -> list[str]:
    """The words with names for all values, as the parser reads them.

    Words in front of all options go to their option. `--redact` becomes `--redact true`, `--detectors false` becomes
    `--detectors none`, and the earlier name `--precision` becomes `--dtype`.
    """
    words = [one.replace("--precision", "--dtype", 1) if one.split("=")[0] == "--precision" else one for one in words]
    words = ["--detectors=none" if one == "--detectors=false" else one for one in words]
    words = ["none" if one == "false" and words[at - 1] == "--detectors" else one for at, one in enumerate(words)]
    switches = {f"--{field.name}" for field in fields(kind) if field.type == "bool"}
    after = [*words[1:], "--"]
    words = [
        f"{one}=true" if one in switches and after[place].startswith("--") else one for place, one in enumerate(words)
    ]
    name = kind.positional if issubclass(kind, ResultsStage) else None
    first = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    if name is None or not first:
        return words
    single = isinstance(next(field for field in fields(kind) if field.name == name).default, str)
    value = words[0] if single and first == 1 else json.dumps(words[:first])
    return [f"--{name}={value}", *words[first:]]


def stage_parser(name: str, kind: type[Stage]) -> CarefulParser:
    """The options of a stage, and `--config` for an overlay with some of them."""
    parser = CarefulParser(prog=f"memtrain {name}")
    parser.add_argument("--config", action="config", help="A YAML file with some of these options.")
    parser.add_class_arguments(kind, skip=set(kind.without) if issubclass(kind, ResultsStage) else None)
    return parser


def run_stage(stage: Stage) -> dict[str, Any]:
    """Load the model and the data of a stage, let the stage work, and write the report.

    Args:
        stage: the stage with its options.

    Returns:
        The content of the stage's JSON file; empty if this process did only its part.
    """
    stage.check()
    if isinstance(stage, ResultsStage):
        require_writable(stage.folder)
        results = _shared(stage, stage.work)
        if results or not isinstance(stage, ShardOptions):
            print(f"Report: {stage.report()}")
        return results
    asked = _asked_data(stage)
    trained = _trained(stage)
    require_writable(stage.folder)
    with _held(stage):
        return _run_held(stage, asked, trained)


def _held(stage: Stage) -> AbstractContextManager[None]:
    """A lock of the results for one process at a time, unless processes share the work."""
    if read_shard(getattr(stage, "shard", None)) != Shard(0, 1):
        return nullcontext()
    name = type(stage).__name__.lower()
    return locked(stage.folder, doing=name, name=f".lock-{name}")


def _run_held(stage: Stage, asked: Run | None, trained: TrainedPipeline) -> dict[str, Any]:
    checkpoints = _checkpoints(stage)
    prompts, own_images = [], None
    if isinstance(stage, PromptStage):
        if stage.prompts is not None:
            read = prompts_read(stage.prompts)
            prompts = read.prompts
            _say(read.line())
        else:
            assert asked is not None  # stage.check() refuses a model without prompts
            prompts, own_images = asked.known_prompts(most=stage.max_prompts)
        stage.check_prompts(prompts)
    offload = getattr(stage, "offload", False)
    pipeline = placed(trained.load(), own_device(), offload=offload)
    _say(cut_prompts(pipeline, prompts))
    given = StageInput(
        pipeline=pipeline,
        output=stage.folder,
        prompts=prompts,
        own_images=own_images,
        sampling=stage.sampling,
        model=trained.name,
        run=asked.at(pipeline) if asked is not None else None,
        checkpoints=checkpoints,
    )
    results = _shared(stage, lambda: stage(given))
    # If processes share the prompts, only the one that finishes last has results.
    if results:
        if isinstance(stage, ModelStage) and stage.model is None and "verdict" in results:
            from memtrain.callbacks.model_card import add_evaluation

            for card in add_evaluation(Path(stage.run), results):
                print(f"Model card: {card}")
        print(f"Report: {write_report(stage.folder)}")
    return results


def _shared(stage: Stage | ResultsStage, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The results of a stage; empty if other processes have not done their parts yet."""
    try:
        return work()
    except UnfinishedParts as error:
        shard = read_shard(getattr(stage, "shard", None))
        if shard is None or shard == Shard():
            raise
        print(
            f"Part {shard} is done, and other parts are not: {error.problem}. The last process to finish writes the "
            f"results to {stage.folder}. If no process does, run this command again with --shard merge."
        )
        return {}


def _say(line: str) -> None:
    if line:
        print(line)


def _asked_data(stage: Stage) -> Run | None:
    """The run or the folder of pictures that a stage works on; None for a model with prompts.

    Both are read here, so that a wrong folder is refused before a model is loaded.
    """
    if isinstance(stage, Measure) and stage.model is not None and stage.data is not None:
        # Imported here, because a data module needs Lightning, and neither help nor the prompts of a model do.
        from memtrain.cli.picture_folder import PictureFolder

        name = _trained(stage).name
        folder = PictureFolder(stage.data, stage.heldout, stage.caption, stage.size, name)
        folder.check()
        return folder
    if isinstance(stage, ModelStage) and stage.model is not None:
        return None
    from memtrain.cli.run_folder import FinishedRun

    return FinishedRun.read(Path(stage.run))


def _trained(stage: Stage) -> TrainedPipeline:
    """The model that a stage evaluates."""
    # Imported here, because help has no need of what adapters are made of.
    from memtrain.cli.trained_pipeline import of_run, trained

    if not isinstance(stage, ModelStage) or stage.model is None:
        return of_run(Path(stage.run), precision=stage.dtype)
    try:
        return trained(stage.model, stage.lora, scale=stage.lora_scale, precision=stage.dtype)
    except OSError as error:
        raise ConfigurationError(
            f"There is no model {shown(stage.model)!r}: {error.strerror}",
            expected="a pipeline folder, a single-file checkpoint (.safetensors), a .ckpt of memtrain, or a hub name",
            remedy="check the path",
        ) from error


def _checkpoints(stage: Stage) -> list[Checkpoint]:
    """The checkpoints that a stage compares."""
    if not isinstance(stage, Measure) or stage.checkpoints is None:
        return []
    from memtrain.cli.checkpoints import checkpoints_of

    return checkpoints_of(stage.checkpoints, precision=stage.dtype, device=own_device())


def own_device() -> str:
    """The GPU of this process, by the number that torchrun gives it or the first; the CPU if there is no GPU."""
    if not torch.cuda.is_available():
        return "cpu"
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"
