"""`memtrain scan`: which files of a data set are one picture, found before training."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memtrain.cli.command_parser import CarefulParser
from memtrain.cli.faults import SMALLER_SCAN, explained
from memtrain.cli.outcome import end, tell
from memtrain.cli.stopped import stopped_by_signals
from memtrain.cli.writable import require_writable
from memtrain.data.broken import BrokenSamples
from memtrain.data.reading import Reading
from memtrain.data.source import SampleSource, open_source
from memtrain.engines.base import LOCAL, EngineOptions, opened
from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.stages.shards import MERGE, Shard, read_shard
from memtrain.families.scan import ScanSettings, scan
from memtrain.families.scan_page import write_page
from memtrain.families.scan_result import EXCLUDE, SUMMARY, TABLE, Scan, write_exclude, write_scan
from memtrain.files.shipped import config_file
from memtrain.files.shown import shown
from memtrain.files.text import read_json_object
from memtrain.files.yaml_file import read_mapping

DEFAULT_CONFIG = "configs/tiny.yaml"
"""The configuration whose data are scanned if the command names none."""
PAGE = "report.html"
"""The contact sheets."""


def scan_command(args: Sequence[str] | None = None) -> None:
    """`memtrain scan [data] [options]`.

    Args:
        args: arguments instead of those of the command line.
    """
    parser = command_parser()
    words = list(sys.argv[1:] if args is None else args)
    options = parser.parse_args(words)
    try:
        with stopped_by_signals(["memtrain", "scan", *words], kept="what was looked at"):
            run_scan(parser.instantiate(options))
    except Exception as error:
        again = shlex.join(["memtrain", "scan", *words])
        found = explained(error, again=again, smaller=SMALLER_SCAN)
        if found is None:
            raise
        end(found)


def command_parser() -> CarefulParser:
    """The options of the command."""
    parser = CarefulParser(prog="memtrain scan")
    parser.reads_configs = False
    parser.add_argument(
        "path",
        nargs="?",
        type=str | None,
        help="A folder with images and metadata.jsonl, or WebDataset shards (a .tar file, a pattern, a folder).",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        type=str,
        help="The YAML of a training run. Its data are scanned; of several files, the last that names data counts.",
    )
    parser.add_argument(
        "--data.init_args.path",
        type=str | None,
        default=None,
        help="The data, named as in the training command.",
    )
    parser.add_argument("--output", type=str, default="runs/scan", help="The folder of the results.")
    parser.add_argument(
        "--shard",
        type=str | None,
        default=None,
        help="This process's part of the images, such as 0/4 to 3/4. `merge` puts the parts together, and `array` "
        "takes the part of a Slurm job array. The default is the part that torchrun gives, or all images.",
    )
    parser.add_argument(
        "--broken",
        type=Literal["stop", "skip"],
        default="stop",
        help="Stop at samples without image or caption and at broken shards, or leave them out with `skip`, as "
        "`data.init_args.broken: skip` does in training. Images that cannot be decoded are always left out.",
    )
    parser.add_class_arguments(ScanSettings, as_group=False)
    parser.add_class_arguments(EngineOptions, as_group=False)
    return parser


def run_scan(options: Namespace) -> None:
    """Scan, write the results and say what was found."""
    path = data_path(options)
    shard = read_shard(options.shard)
    engine = EngineOptions(**{name: options[name] for name in EngineOptions.__dataclass_fields__})
    if engine.engine != LOCAL and shard != Shard():
        raise ConfigurationError(
            f"engine={engine.engine} and a part of the images ({options.shard or 'of this job'})",
            expected="only one of the two: the engine shares out the images by itself",
            remedy="leave out --engine or --shard",
        )
    output = Path(options.output)
    require_writable(output)
    settings = ScanSettings(**{name: options[name] for name in ScanSettings.__dataclass_fields__})
    reading = Reading(skip=True, stops=options.broken == "stop")
    source = open_source(path, reading=reading)
    _decide_broken(source, options, path)
    part = None if shard is None else (shard.index, shard.count)
    with opened(engine) as runs:
        merges = shard is None or shard.merges
        found = scan(source, settings=settings, folder=output, shard=part, merges=merges, engine=runs)
    if found is None:
        writer = "the last process to finish" if merges else "the job that waits for all parts"
        print(
            f"Part {shard} of the images is done, and other parts are not. The results go to {output}, written by "
            f"{writer}. If no process writes them, run this command again with --shard {MERGE}."
        )
        return
    _keep_other_data(output, path)
    left_out = write_exclude(found, output / EXCLUDE)
    write_page(found, source, output / PAGE, name=path)
    write_scan(found, output, path=path)
    tell({**found.counts(), "threshold": found.threshold, "false_merge_rate": found.false_merge_rate}, output)
    show(found, output, path=path, left_out=left_out, fit=_fit_command(options, path))


def _decide_broken(source: SampleSource, options: Namespace, path: str) -> None:
    """Stop with a list of all broken samples, or print how many are left out."""
    broken = BrokenSamples(options.broken, 0.99)
    broken.add(source.broken)
    broken.decide(len(source) + sum(one.samples for one in source.broken), path=path, write=False)
    if source.broken:
        print(f"Left out: {broken.lost:,} samples of {shown(path)} without image or caption, or in broken shards")


def _keep_other_data(output: Path, path: str) -> None:
    """Move the results of a scan of other data to a folder beside this one."""
    try:
        earlier = read_json_object(output / SUMMARY, what="what a scan wrote", remedy="remove it").get("path")
    except DataError:
        return
    if earlier == path:
        return
    number = 1
    while (kept := output.with_name(f"{output.name}-{number}")).exists():
        number += 1
    kept.mkdir()
    for name in (SUMMARY, TABLE, EXCLUDE, PAGE):
        if (output / name).exists():
            (output / name).rename(kept / name)
    print(f"{output} held a scan of {shown(earlier)}; it is kept as {kept}")


def data_path(options: Namespace) -> str:
    """The data that a command line names.

    Raises:
        ConfigurationError: if it names two, or a configuration names none.
    """
    named = [path for path in (options.path, options.data.init_args.path) if path is not None]
    if len(set(named)) > 1:
        raise ConfigurationError(
            f"Two data sets are named: {named[0]} and {named[1]}",
            expected="one data set",
            remedy="scan the data sets one after the other",
        )
    if named:
        return str(named[0])
    configs = options.config or [DEFAULT_CONFIG]
    paths = [found for config in configs if (found := _path_in(config)) is not None]
    if not paths:
        raise ConfigurationError(
            f"{' and '.join(configs)} names no data",
            expected="a configuration with `data: {init_args: {path: ...}}`",
            remedy="name the data: memtrain scan my_folder",
        )
    return paths[-1]


def _path_in(config: str) -> str | None:
    """The path of the data in a configuration; None if it names no data."""
    content = read_mapping(config_file(config))
    data = content.get("data")
    settings = data.get("init_args", data) if isinstance(data, dict) else None
    path = settings.get("path") if isinstance(settings, dict) else None
    return None if path is None else str(path)


def _fit_command(options: Namespace, path: str) -> str:
    """The command that trains on these data."""
    words = [word for config in options.config or ["tiny"] for word in ("--config", config)]
    if options.path is not None or options.data.init_args.path is not None:
        words += ["--data.init_args.path", path]
    return shlex.join(["memtrain", "train", *words])


def show(found: Scan, output: Path, *, path: str, left_out: int, fit: str) -> None:
    """Print a table of the findings, and the next command."""
    console = Console()
    counts = found.counts()
    table = Table(title=escape(f"Scan of {shown(path)}"), title_justify="left", show_header=False, title_style="bold")
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("Images", f"{counts['images']:,}", "files that could be read")
    if counts["unreadable"]:
        table.add_row(
            "Unreadable images", f"{counts['unreadable']:,}", f"left out here; listed in {PAGE}; training refuses them"
        )
    table.add_row("Pictures", f"{counts['pictures']:,}", "the files of one picture count once")
    table.add_row(
        "Pictures with several files",
        f"{counts['pictures_with_several_files']:,}",
        f"{counts['files_of_these']:,} files; the largest picture has {counts['largest_picture']:,}"
        if left_out
        else "",
    )
    table.add_row(
        "Captions of several pictures",
        f"{counts['shared_captions']:,}",
        f"{counts['files_under_these']:,} files" if counts["shared_captions"] else "",
    )
    table.add_row("Threshold", f"{found.threshold:.3f}", f"similarity of one picture; set by {found.rests_on}")
    table.add_row(
        "False merges", f"{100 * found.false_merge_rate:.3g}%", "stated: pictures joined to another by mistake"
    )
    table.add_row("Time", f"{sum(found.seconds):.1f} s", f"{found.images_per_second:,.0f} images a second")
    console.print(table)
    print(f"Contact sheets:           {output / PAGE}")
    print(f"All findings:             {output / TABLE}, {output / SUMMARY}")
    if left_out:
        print(f"Files beyond the first:   {output / EXCLUDE} ({left_out:,})")
        print("Training counts the files of a picture together by itself. To train on one file of each picture,")
        print("with this configuration or the configuration you train with:")
        print(f"  {shown(fit, most=len(fit))} --data.init_args.exclude {shlex.quote(str(output / EXCLUDE))}")
