"""Audit a model of somebody else's: which of these pictures does it give back?

    python examples/audit_a_model.py

The embedded model was trained on `assets/emoji-train.tar` and never saw `assets/emoji-heldout.tar`, so both are known
here. Replace them by the model, the pictures in question, and pictures of the same kind that the model cannot have seen
(16 at least, 99 for a false-positive rate of 1 %). The command does the same:

    memtrain measure --model assets/tiny-sd --data assets/emoji-train.tar --heldout assets/emoji-heldout.tar
"""

from __future__ import annotations

from memtrain.cli.evaluation import run_stage
from memtrain.evaluation.stages.measure.stage import Measure


def main(
    model: str = "assets/tiny-sd",
    *,
    data: str = "assets/emoji-train.tar",
    heldout: str = "assets/emoji-heldout.tar",
    folder: str = "runs/audit",
    prompts: int = 60,
    images_per_prompt: int = 4,
) -> dict:
    """Sample the captions, compare every generation with every picture, and write `report.html`.

    Args:
        model: a pipeline folder, a single-file checkpoint or a hub name.
        data: the pictures that may come back, in any form that training reads.
        heldout: pictures that the model cannot have seen; they set the threshold.
        folder: the folder of the results.
        prompts: the number of captions that are sampled, chosen at random.
        images_per_prompt: the number of images of each caption.
    """
    stage = Measure(  # every option of `memtrain measure` is a field of this class
        model=model,
        data=data,
        heldout=heldout,
        output=folder,
        unique_prompts=prompts,
        max_prompts=prompts,
        images_per_prompt=images_per_prompt,
    )
    results = run_stage(stage)
    # `level` is `reproduces`, `unjudged`, `inconclusive` or `none`; the text says it in a sentence.
    print(f"\n{results['verdict']['level']}: {results['verdict']['text']}")
    return results


if __name__ == "__main__":
    main()
