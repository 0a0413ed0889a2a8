"""What a search for neurons compares with, measured on prompts that are not memorized.

The mean and deviation of every neuron's activation, and the similarity between seeds above which a prompt counts as
memorized.
Source: NeMo (Hintersdorf et al., NeurIPS 2024): mean plus one standard deviation of the prompts' highest pairwise
similarity.
Written: `neurons/` in the output folder, where the stage `localize` goes on from, and `calibration.json`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.provenance import provenance
from memtrain.evaluation.stages.results_file import write_results
from memtrain.evaluation.stages.roles import NEURONS, Roles, distinct
from memtrain.localization import locate as search
from memtrain.localization.authors_files import write_statistics
from memtrain.localization.settings import Settings

SCHEMA_VERSION = 1
"""Of `calibration.json`."""


def calibrate(given: StageInput, *, settings: Settings | None = None, export: Path | None = None) -> dict[str, Any]:
    """Measure activation statistics and threshold, and keep them where `localize` finds them.

    Args:
        given: a Stable Diffusion 1.x or 2.x pipeline; beside prompts that may be memorized the controls that `localize`
            takes, and if nothing or the same is known of all, all of them; the output folder.
        settings: of the search to come.
        export: file for the statistics as NeMo's scripts read them, if they shall have one.

    Returns:
        The content of `calibration.json`.

    Raises:
        ConfigurationError: if there are too few prompts, prompts are known to be memorized and none not to be, or the
            folder holds the results of a search with another calibration.
    """
    kinds = {prompt.memorized for prompt in given.prompts}
    if True in kinds and False not in kinds:
        raise ConfigurationError(
            f"Of {len(given.prompts)} prompts none is known not to be memorized",
            expected="prompts with 0 in the column `memorized`, or a file of nothing but ordinary prompts",
            remedy="name another file with --prompts",
        )
    others = [prompt.text for prompt in given.prompts]  # each as often as it stands there, as in NeMo's script
    if len(kinds) > 1:
        prompts = [given.prompts[row] for row in distinct(given.prompts)]
        others = [prompts[row].text for row in Roles.of(prompts).calibrating]
    statistics, threshold = search.calibrate(given.pipeline, others, output=given.output / NEURONS, settings=settings)
    if export is not None:
        write_statistics(statistics, export)
    results = {
        "schema_version": SCHEMA_VERSION,
        **provenance(given.pipeline),
        "model": given.model,
        "threshold": asdict(threshold),
        "statistics": {
            "prompts": statistics.count,
            "layers": len(statistics.mean),
            "neurons": sum(map(len, statistics.mean.values())),
        },
    }
    return write_results(results, given.output / "calibration.json")
