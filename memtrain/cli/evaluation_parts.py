"""A part of an evaluation as a function of plain arguments, which an engine such as Ray calls.

A command of an evaluation can be cut into any number of parts. `measure --checkpoints` is best cut into one part for
each checkpoint: the part evaluates its checkpoint as a whole, and samples a share of the prompts with the finished
model. Parts may be done in any order, at the same time and again. They write to the output folder, which all of them
have to see. :func:`merge_parts` writes the results that one process would have written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memtrain.cli.evaluation import read_command, run_stage
from memtrain.engines.base import LOCAL, EngineOptions, opened
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import Stage
from memtrain.evaluation.stages.measure.stage import Measure
from memtrain.evaluation.stages.shards import MERGE, Shard, ShardOptions, read_shard


def evaluate_part(words: Sequence[str], count: int, index: int) -> dict[str, Any]:
    """Do one part of a command, in this process.

    Args:
        words: the words of the command line without `--shard`, such as `["measure", "--run", "runs/x"]`.
        count: the number of parts.
        index: the number of this part, from 0.

    Returns:
        The content of the stage's JSON file if all parts are done now; else nothing.

    Raises:
        ConfigurationError: if the command cannot be cut, or names a part itself.
    """
    return run_stage(read_command(_cut(words, f"{index}/{count}")))


def run_command(words: list[str], stage: Stage) -> dict[str, Any]:
    """Run the stage of a command in this process, or in parts on the engine that the command names.

    Args:
        words: the words of the command line.
        stage: the stage that the words name, with its options.

    Returns:
        The content of the stage's JSON file.

    Raises:
        ConfigurationError: if the command names an engine and a part.
    """
    if not isinstance(stage, ShardOptions) or stage.engine == LOCAL:
        return run_stage(stage)
    if read_shard(stage.shard) != Shard():
        raise ConfigurationError(
            f"engine={stage.engine} and a part of the work ({stage.shard or 'of this job'})",
            expected="only one of the two: the engine shares out the work by itself",
            remedy="leave out --engine or --shard",
        )
    stage.check()
    plain = _without_engine(words)
    options = EngineOptions(engine=stage.engine, engine_address=stage.engine_address, engine_tasks=stage.engine_tasks)
    with opened(options) as engine:
        count = max(parts_wanted(plain), 1)
        count = engine.tasks(gpu=True) if count == 1 else count
        results: dict[str, Any] = {}
        for number, found in enumerate(engine.map(evaluate_part, range(count), shared=[plain, count], gpu=True), 1):
            print(f"Part {number} of {count} is done", flush=True)
            results = found or results
    if not results:  # no part was the last one
        return merge_parts(plain)
    print(f"Report: {stage.folder / 'report.html'}")
    return results


def _without_engine(words: Sequence[str]) -> list[str]:
    """A command without the options of its engine."""
    kept, value = [], False
    for word in words:
        if value:
            value = False
        elif word.startswith("--engine"):
            value = "=" not in word
        else:
            kept.append(word)
    return kept


def merge_parts(words: Sequence[str]) -> dict[str, Any]:
    """Put the parts of a command together.

    Returns:
        The content of the stage's JSON file.

    Raises:
        RecordError: if a part is missing.
    """
    return run_stage(read_command(_cut(words, MERGE)))


def parts_wanted(words: Sequence[str]) -> int:
    """The best number of parts for a command: one for each checkpoint, and 1 without checkpoints."""
    stage = read_command(list(words))
    if not isinstance(stage, Measure) or stage.checkpoints is None:
        return 1
    from memtrain.cli.checkpoints import checkpoints_of

    return len(checkpoints_of(stage.checkpoints, precision=stage.dtype, device="cpu"))


def _cut(words: Sequence[str], part: str) -> list[str]:
    if any(word.split("=")[0] == "--shard" for word in words):
        raise ConfigurationError(
            "--shard in a command that is cut into parts",
            expected="a command for all of the work",
            remedy="leave out --shard",
        )
    stage = read_command(list(words))
    if not hasattr(stage, "shard"):
        raise ConfigurationError(
            f"{type(stage).__name__.lower()} does not work in parts",
            expected="a stage with the option --shard",
            remedy="run it in one process",
        )
    return [*words, "--shard", part]
