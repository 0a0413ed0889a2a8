"""`counts.exposure` of an evaluation: what the model knows of the secrets that its run planted."""

from __future__ import annotations

from typing import Any

from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.measure.copying import Chosen
from memtrain.evaluation.stages.measure.counting.planted_secrets import exposure_of_secrets
from memtrain.evaluation.stages.run_samples import RunSamples


def exposure_of_run(given: StageInput, samples: RunSamples, copying: Chosen, *, by: str) -> dict[str, Any] | None:
    """Exposure of canaries and border keys; None where none were planted.

    Args:
        given: the pipeline and how it samples.
        samples: with the secrets.
        copying: the measures of copying.
        by: name of the one that the verdict counts by; generations for canaries are compared by it, and where it is
            none of these (the ratio) canaries are ranked by their loss alone.
    """
    borders = samples.borders
    # Without held-out pictures there is no null to rank the answers for borders against.
    if borders is not None and 0 not in borders.repetitions:
        print("Left out: exposure of border keys. No held-out picture has a border (data.heldout_fraction)")
        borders = None
    return exposure_of_secrets(
        given.pipeline,
        samples.canaries,
        borders,
        measure=next((measure for measure in copying.measures if measure.name == by), None),
        sampling=given.sampling,
    )
