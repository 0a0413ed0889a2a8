"""Commands for each reason why a model is not cleared, under the words "what to do next" of the report.

The reasons have stable names, so results of every version get commands. A command has placeholders in capitals, because
a report may leave out names of folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtrain.evaluation.stages.measure.verdict import FEWEST_HELDOUT

TRAIN = "memtrain train --config CONFIG --data.init_args.path DATA --trainer.default_root_dir NEW_RUN"
MEASURE = "memtrain measure --run RUN"
AUDIT = "memtrain measure --model MODEL --data DATA --heldout FOLDER"
HOLD_OUT = (
    (
        f"Hold out pictures: put at least {FEWEST_HELDOUT} that the model never saw into a folder, and train again.",
        f"{TRAIN} --data.init_args.heldout_path FOLDER",
    ),
    (
        "Measure the finished model against pictures that it never saw, without a new training.",
        AUDIT,
    ),
)
FIND_FILES = ("Find pictures that have several files.", "memtrain scan DATA --output runs/scan")
ONE_FILE = (
    "Train again on one file of each picture.",
    f"{TRAIN} --data.init_args.exclude runs/scan/exclude.csv",
)
MORE_IMAGES = ("Sample more images of each prompt, and look at them.", f"{MEASURE} --images_per_prompt 8")
MORE_PROMPTS = ("Sample more pictures.", f"{MEASURE} --max_prompts 500 --unique_prompts 200")
MORE_STEPS = ("Take more sampling steps.", f"{MEASURE} --steps 20")
DETECTOR = ("Use a copy detector that sees these copies.", f"{MEASURE} --copy_detector FILE")
STEPS: dict[str, tuple[tuple[str, str], ...]] = {
    "no_threshold": HOLD_OUT,
    "few_heldout": HOLD_OUT,
    "heldout_differs": HOLD_OUT,
    "may_be_copies": (FIND_FILES, ONE_FILE, MORE_IMAGES),
    "copies_unseen": (FIND_FILES, ONE_FILE),
    "copies_elsewhere": (FIND_FILES, ONE_FILE),
    "families_unknown": (FIND_FILES,),
    "families_incomplete": (FIND_FILES,),
    "few_pictures": (MORE_PROMPTS,),
    "not_asked": (MORE_PROMPTS,),
    "few_seeds": (MORE_IMAGES,),
    "few_steps": (MORE_STEPS,),
    "no_measure": (DETECTOR,),
    "control_failed": (DETECTOR,),
}
"""Sentence and command by the name of the reason."""


def next_steps(verdict: Mapping[str, Any], *, audit: bool = False) -> list[tuple[str, str]]:
    """Return the sentences and commands for the reasons of a verdict, each once.

    Args:
        verdict: the part `verdict` of `results.json`.
        audit: whether the model was measured without the run that trained it.
    """
    names = [one["reason"] for one in verdict.get("reasons") or ()]
    found = list(dict.fromkeys(step for name in names for step in STEPS.get(name, ())))
    if audit:
        found = [(said, command.replace(MEASURE, AUDIT)) for said, command in found]
    return found
