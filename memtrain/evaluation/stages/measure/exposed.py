"""The part `counts.exposure` of an evaluation: exposure of the secrets that the run planted."""

from __future__ import annotations

from typing import Any

from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.measure.copying import Chosen
from memtrain.evaluation.stages.measure.counting.planted_secrets import exposure_of_secrets
from memtrain.evaluation.stages.run_samples import RunSamples


def exposure_of_run(given: StageInput, samples: RunSamples, copying: Chosen, *, by: str) -> dict[str, Any] | None:
    """Measure the exposure of canaries and border keys; None if the run planted none.

    Args:
        given: the pipeline and the settings of the sampling.
        samples: the samples, with the secrets.
        copying: the measures of copying.
        by: the name of the measure that the verdict counts by. It compares generations for canaries. If it is the
            ratio, canaries are ranked by their loss alone.
    """
    borders = samples.borders
    # Border keys are ranked against a null of held-out pictures.
    if borders is not None and 0 not in borders.repetitions:
        print("Exposure of border keys is left out: no held-out picture has a border (set data.heldout_fraction)")
        borders = None
    return exposure_of_secrets(
        given.pipeline,
        samples.canaries,
        borders,
        measure=next((measure for measure in copying.measures if measure.name == by), None),
        sampling=given.sampling,
    )
