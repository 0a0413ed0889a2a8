"""Section of `localize` in the report, made from `localization.json` and its sheet of images."""

from __future__ import annotations

from pathlib import Path

from memtrain.evaluation.report.section import (
    Section,
    joined,
    made,
    notes,
    number,
    paragraph,
    percent,
    picture,
    results_of,
    table,
)
from memtrain.evaluation.stages.localize.screen import lines, short_site
from memtrain.evaluation.stages.network_figures import paired_networks


def sections(folder: Path) -> list[Section]:
    """Make the section: the verdict, the table of conditions and the sheet.

    Args:
        folder: the folder of the results.
    """
    results = results_of(folder, "localization.json")
    if results is None:
        return []
    asked, false_alarms = results["located"]["asked"], results["located"]["false_alarms"]
    said = (
        f"The search found neurons for {asked['k']} of {asked['n']} prompts, and for {false_alarms['k']} of "
        f"{false_alarms['n']} prompts that are not memorized (false positives)."
    )
    if loss := results["heldout_loss"]:
        ends = loss["interval"]
        inside = "from one image, so without an interval" if ends is None else " to ".join(map(percent, ends))
        said += f" With all masks at once, the held-out loss changes by {percent(loss['change'])} ({inside})."
    rows = lines(results)
    body = [
        paragraph(results["verdict"]["text"]),
        paragraph(said),
        table(list(rows[0]), [list(row.values()) for row in rows]),
        notes(
            [
                "A mask suppresses the image that a prompt triggers. “Re-trigger” samples with an embedding that a "
                "search optimised to bring the image back. The controls’ images were never trained on, so their "
                "results show what the search does without a memory."
            ]
        ),
    ]
    # Results of earlier versions do not count neurons per layer.
    neurons = results.get("neurons", {})
    if neurons.get("per_prompt") is not None and "per_layer" in neurons:
        body.append(
            table(
                ["Layer", "Neurons per prompt"],
                [[short_site(site), number(mean, 1)] for site, mean in neurons["per_layer"].items()],
                caption=f"Neurons per prompt that has any: {neurons['per_prompt']['median']:.0f} (median), "
                f"{neurons['all_masks']} in all masks together. The file neurons.csv lists all neurons.",
            )
        )
    if networks := results.get("networks"):
        body.append(paired_networks(networks))
    body.append(picture(folder / "localization.png", alt="Own images, and generations under each condition"))
    return [Section(title="Neuron masking", body=joined(body), place=35, facts=made(results, "localize"))]
