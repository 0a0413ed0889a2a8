"""Tables of a search with a row for each line of the prompts; a repeated prompt has several rows.

The output folder gets:

- `pairwise.parquet` and `pairwise.csv`: similarity of every pair of seeds, unmasked, in the order of NeMo's script
  (`ssim_0_1`, `ssim_0_2`, ...), with the highest, mean and median of each prompt;
- `neurons.csv`: a row for each neuron of each line, in the first selection (`initial`) and in the refined selection;
- `neurons.json`: the same by line, with the decisions of the search;
- `memorization_statistics.csv`: the table that NeMo's search writes and NeMo's scripts read.

Lines whose prompts calibrate are not searched. Only `neurons.json` contains them, with their role.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.evaluation.stages.roles import Roles
from memtrain.files.sheet_cells import safe_cells, write_cells
from memtrain.localization.authors_files import write_table
from memtrain.localization.found import Found
from memtrain.localization.results import Localization
from memtrain.records import write_json, write_parquet, written_whole

SCHEMA_VERSION = 1
"""Version of `neurons.json`."""
SETS = ("initial", "refined")


def write_tables(
    folder: Path,
    located: Localization,
    lines: Sequence[PromptToScore],
    *,
    prompts: Sequence[PromptToScore],
    roles: Roles,
) -> None:
    """Write all tables.

    Args:
        folder: the folder of the results.
        located: the results of the search.
        lines: all lines of the prompts, with repetitions.
        prompts: the prompts, each once.
        roles: the roles of these prompts.
    """
    found = {one.prompt: one for one in located.found}
    role = {prompts[row].text: "asked" for row in roles.asked}
    role |= {prompts[row].text: "control" for row in roles.tested}
    role |= {prompts[row].text: "calibrating" for row in roles.calibrating}
    searched = [(number, line, found[line.text]) for number, line in enumerate(lines) if line.text in found]
    _pairwise(folder, searched, role, seeds=int(located.search["settings"]["seeds"]))
    with (
        written_whole(folder / "neurons.csv") as unfinished,
        unfinished.open("w", encoding="utf-8", newline="") as file,
    ):
        write_cells(
            file,
            ("line", "prompt", "memorized", "set", "layer", "site", "neuron"),
            (
                [number, line.text, _known(line), name, located.sites.index(site), site, neuron]
                for number, line, one in searched
                for name in SETS
                for site, neurons in one.channels(located.sites, initial=name == "initial").items()
                for neuron in neurons
            ),
        )
    rows = [_row(number, line, found.get(line.text), role, located.sites) for number, line in enumerate(lines)]
    content = {"schema_version": SCHEMA_VERSION, "search": located.search, "prompts": rows}
    write_json(content, folder / "neurons.json")
    table = [(line.text, one) for _, line, one in searched]
    write_table(folder / "memorization_statistics.csv", table, located.sites)


def _pairwise(
    folder: Path, searched: Sequence[tuple[int, PromptToScore, Found]], role: Mapping[str, str], *, seeds: int
) -> None:
    names = [f"ssim_{first}_{second}" for first, second in combinations(range(seeds), 2)]
    rows = [
        {
            "line": number,
            "prompt": line.text,
            "memorized": line.memorized,
            "role": role[line.text],
            "kept_seeds": one.kept_seeds,
            "highest": one.similarity,
            "mean": statistics.fmean(one.pairs),
            "median": statistics.median(one.pairs),
            **dict(zip(names, one.pairs, strict=True)),
        }
        for number, line, one in searched
        # Earlier versions of the search kept only the highest value.
        if one.pairs
    ]
    kinds = {"line": pa.int64(), "prompt": pa.string(), "memorized": pa.bool_(), "role": pa.string()}
    figures = dict.fromkeys(["highest", "mean", "median", *names], pa.float64())
    schema = pa.schema({**kinds, "kept_seeds": pa.int32(), **figures})
    table = pa.Table.from_pylist(rows, schema=schema)
    write_parquet(table, folder / "pairwise.parquet")
    with written_whole(folder / "pairwise.csv") as unfinished:
        pacsv.write_csv(safe_cells(table), unfinished)


def _row(
    number: int, line: PromptToScore, one: Found | None, role: Mapping[str, str], sites: Sequence[str]
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "line": number,
        "prompt": line.text,
        "memorized": line.memorized,
        "role": role[line.text],
        "searched": one is not None,
    }
    if one is None:
        return row
    return row | {
        "similarity": one.similarity,
        "kept_seeds": one.kept_seeds,
        "theta": one.theta,
        "k": one.k,
        "refinement": one.refinement,
        "refinement_threshold": one.refinement_threshold,
        "initial_score": one.initial_score,
        "score": one.score,
        **{name: one.channels(sites, initial=name == "initial") for name in SETS},
    }


def _known(line: PromptToScore) -> str:
    return "" if line.memorized is None else str(int(line.memorized))
