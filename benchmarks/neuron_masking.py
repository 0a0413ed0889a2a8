"""Does masking neurons stop a model from reproducing its training images, and are the images gone?

    python benchmarks/neuron_masking.py --runs "[runs/mitigations/baseline-seed0]" --json benchmarks/neuron_masking.json

For each run, a finished training with planted duplicates: the stage `localize` with NeMo's settings, and beside it
other sets of neurons under the same measure. Half of the held-out prompts calibrate statistics and threshold, and all
of them serve as controls. Figures are added to the file as soon as they are there, and what is in there is not measured
again. Without runs the file is shown as it is.
"""

from __future__ import annotations

import json as text
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from experiment import ROOT
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from torch import Tensor

from memtrain.cli.chatter import quiet
from memtrain.cli.run_folder import known_prompts, pipeline_folder, run_data
from memtrain.evaluation.measures.heldout_loss import heldout_loss
from memtrain.evaluation.measures.replication import replication
from memtrain.evaluation.sampling.embedding_samples import sample_embeddings
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.localize.conditions import change_of_loss
from memtrain.evaluation.stages.localize.localize import localize
from memtrain.functional.ranking import highest
from memtrain.localization.baselines import most_active, random_neurons, unrefined
from memtrain.localization.contribution import locate_contributions
from memtrain.localization.locate import locate
from memtrain.localization.predictor import Predictor
from memtrain.localization.results import Localization, union
from memtrain.localization.retrigger import retrigger
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics
from memtrain.models.encoding import encode_prompts
from memtrain.models.neuron_mask import NeuronMask

SAMPLING = Sampling(seeds=(0, 1, 2, 3), steps=20, guidance_scale=4.0, batch_size=40, progress=False)
EVERY_SITE = "*"
ALONE = 3
"""Masks whose own effect on the held-out loss is measured."""


@dataclass
class Case:
    """A run, and what its variants share.

    Attributes:
        pipeline: trained with planted duplicates.
        planted: captions.
        controls: captions of held-out images; every other one calibrates.
        images: the images of both, `(P, 3, H, W)` uint8.
        threshold: the threshold of the replication.
        nemo: what the stage found.
    """

    pipeline: StableDiffusionPipeline
    planted: list[str]
    controls: list[str]
    images: Tensor
    threshold: float
    nemo: Localization

    def located(self, **settings: Any) -> list[NeuronMask | None]:
        """Masks of the planted captions under other settings."""
        found = locate(
            self.pipeline, self.planted, other_prompts=self.controls[::2], settings=Settings(**settings), batch_size=80
        )
        return [found.get(prompt) for prompt in self.planted]

    def as_many_at_random(self) -> list[NeuronMask | None]:
        """As many neurons of each layer as NeMo's mask of the prompt has."""
        masks = [(prompt, self.nemo.get(prompt)) for prompt in self.planted]
        widths = self._widths()
        return [mask and random_neurons(mask, widths, seed=0, key=prompt) for prompt, mask in masks]

    def without_refinement(self) -> list[NeuronMask | None]:
        """NeMo's first selection."""
        found = {one.prompt: one for one in self.nemo.found}
        return [unrefined(found[prompt], self.nemo.sites) for prompt in self.planted]

    def most_active(self, per_layer: int) -> list[NeuronMask | None]:
        """The most active neurons of each of the layers that NeMo searches."""
        predictor = Predictor.of(self.pipeline)
        return [most_active(predictor, prompt, k=per_layer) for prompt in self.planted]

    def most_unusual(self, per_layer: int) -> list[NeuronMask | None]:
        """The neurons of every layer whose activation is furthest from that for other prompts."""
        predictor = Predictor.of(self.pipeline)
        sites = predictor.sites(EVERY_SITE)
        statistics = ActivationStatistics.measure(predictor, self.controls[::2], sites=EVERY_SITE)
        scores = statistics.z_scores(predictor.activations(self.planted, sites), list(sites))
        top = [highest(layer, per_layer) for layer in scores]
        return [
            NeuronMask({site: layer[row].tolist() for site, layer in zip(sites, top, strict=True)})
            for row in range(len(self.planted))
        ]

    def every_neuron(self, part: str) -> list[NeuronMask | None]:
        """All neurons of the layers whose name begins so: what no set of them can exceed."""
        widths = self._widths()
        whole = NeuronMask(
            {site: range(width) for site, width in widths.items() if site.startswith(tuple(part.split()))}
        )
        return [whole] * len(self.planted)

    def by_contribution(self, share: float) -> list[NeuronMask | None]:
        """The share of all neurons that adds most for a prompt."""
        found = locate_contributions(self.pipeline, self.planted, other_prompts=self.controls[::2], share=share)
        return [found.get(prompt) for prompt in self.planted]

    def _widths(self) -> dict[str, int]:
        predictor = Predictor.of(self.pipeline)
        return predictor.widths(predictor.sites(EVERY_SITE))


VARIANTS: dict[str, Callable[[Case], Sequence[NeuronMask | None]]] = {
    "NeMo": lambda case: [case.nemo.get(prompt) for prompt in case.planted],
    "as many at random": Case.as_many_at_random,
    "32 most unusual of every layer": lambda case: case.most_unusual(32),
    "30 % by contribution (ours)": lambda case: case.by_contribution(0.3),
    "40 % by contribution (ours)": lambda case: case.by_contribution(0.4),
    "50 % by contribution (ours)": lambda case: case.by_contribution(0.5),
    "all neurons, down and middle": lambda case: case.every_neuron("down mid"),
    "all neurons, up": lambda case: case.every_neuron("up"),
    "all neurons": lambda case: case.every_neuron("down mid up"),
    "NeMo without refinement": Case.without_refinement,
    "8 most active of each of its layers": lambda case: case.most_active(8),
    "NeMo over every layer, binary split": lambda case: case.located(sites=EVERY_SITE, refinement="binary_split"),
}
"""Name -> masks of the planted captions."""
SEARCHED = "40 % by contribution (ours)"
"""Where the adversarial search runs too; for NeMo's masks the stage does it."""


def measure(case: Case, masks: Sequence[NeuronMask | None]) -> dict[str, Any]:
    """Replication under the masks, one by one and together, and what all together do to the held-out loss."""
    count = len(case.planted)
    whole = union([mask for mask in masks if mask is not None])
    embeddings = encode_prompts(case.pipeline, case.planted)
    figures: dict[str, Any] = {
        "neurons": [0 if mask is None else len(mask) for mask in masks],
        "together": 0 if whole is None else len(whole),
    }
    for name, used in (("masked", list(masks)), ("all masks", [whole] * count)):
        images = sample_embeddings(case.pipeline, embeddings, masks=used, sampling=SAMPLING)
        ratio = replication(images, case.images[:count], training=case.images, own_index=torch.arange(count)).best
        figures[name] = {"reproduced": int((ratio < case.threshold).sum()), "n": count, "ratio": float(ratio.median())}
    held = case.images[count:]
    if whole is not None:
        without = heldout_loss(case.pipeline, held, captions=case.controls)
        alone = list({id(mask): mask for mask in masks if mask is not None}.values())[:ALONE]
        changes = []
        for mask in [whole, *alone]:
            with mask.on(case.pipeline.unet):
                masked = heldout_loss(case.pipeline, held, captions=case.controls)
            changes.append(change_of_loss(without, masked))
        figures["heldout_loss"] = changes[0]
        figures["heldout_loss_alone"] = [change["change"] for change in changes[1:]]
    return figures


def search(case: Case, masks: Sequence[NeuronMask | None]) -> dict[str, Any]:
    """Replication with embeddings that were searched for under the masks, one by one."""
    count = len(case.planted)
    found = retrigger(case.pipeline, case.planted, case.images[:count], masks=masks)
    images = sample_embeddings(case.pipeline, found.embeddings, masks=masks, sampling=SAMPLING)
    ratio = replication(images, case.images[:count], training=case.images, own_index=torch.arange(count)).best
    losses = found.losses[:, :10].mean(dim=1).median(), found.losses[:, -10:].mean(dim=1).median()
    return {
        "reproduced": int((ratio < case.threshold).sum()),
        "n": count,
        "ratio": float(ratio.median()),
        "losses": [float(loss) for loss in losses],
    }


def run(folder: Path, *, content: dict[str, Any], save: Callable[[], None], controls: int) -> None:
    """Measure what the file lacks of one run."""
    own = content.setdefault(folder.name, {"variants": {}})
    _, data = run_data(folder)
    prompts, images = known_prompts(data, most=controls)
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_folder(folder), safety_checker=None)
    planted = [prompt.text for prompt in prompts if prompt.memorized]
    held = [prompt.text for prompt in prompts if not prompt.memorized]
    place = folder / "neuron_masking"
    if "stage" not in own:
        results = localize(
            StageInput(
                pipeline=pipeline,
                prompts=prompts,
                own_images=images,
                output=place,
                sampling=SAMPLING,
                model=folder.name,
            )
        )
        dropped = ("versions", "created", "schema_version")
        own["stage"] = {name: value for name, value in results.items() if name not in dropped}
        # A path of the machine it ran on.
        own["stage"]["search"].pop("model")
        save()
    case = Case(
        pipeline,
        planted,
        held,
        images,
        threshold=own["stage"]["replication"]["threshold"],
        nemo=Localization.load(place / "neurons"),
    )
    for name, make in VARIANTS.items():
        if name not in own["variants"]:
            own["variants"][name] = measure(case, make(case))
            save()
        if name == SEARCHED and "re-trigger" not in own["variants"][name]:
            own["variants"][name]["re-trigger"] = search(case, make(case))
            save()


def rows(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """A line per variant, runs pooled."""
    found = []
    for name in VARIANTS:
        each = [run["variants"][name] for run in content.values() if name in run["variants"]]
        if not each:
            continue
        neurons = torch.tensor([count for one in each for count in one["neurons"]], dtype=torch.float64)
        line = {"neurons": name, "per prompt": f"{float(neurons.median()):.0f}"}
        for how in ("masked", "all masks"):
            line[f"reproduced, {how}"] = "{} of {}".format(
                *(sum(one[how][key] for one in each) for key in ("reproduced", "n"))
            )
        line["together"] = ", ".join(str(one["together"]) for one in each)
        changes = [one["heldout_loss"]["change"] for one in each if "heldout_loss" in one]
        line["held-out loss"] = ", ".join(f"{change:+.1%}" for change in changes) or "–"
        alone = [change for one in each for change in one.get("heldout_loss_alone", [])]
        line["with one mask"] = f"{sum(alone) / len(alone):+.1%}" if alone else "–"
        line["runs"] = str(len(each))
        found.append(line)
    return found


def main(runs: list[str] | None = None, *, json: str = "benchmarks/neuron_masking.json", controls: int = 30) -> None:
    """Measure what is missing, and show what there is.

    Args:
        runs: folders of finished runs with planted duplicates; they get a folder `neuron_masking`.
        json: file of the figures, which is read first.
        controls: held-out prompts.
    """
    quiet()
    path = ROOT / json
    content: dict[str, Any] = text.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def save() -> None:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(text.dumps(content, indent=1) + "\n")
        Path(file.name).replace(path)

    for folder in runs or []:
        run(Path(folder), content=content, save=save, controls=controls)
    lines = rows(content)
    table = Table(*(lines[0] if lines else ()))
    for line in lines:
        table.add_row(*line.values())
    Console(width=200).print(table)
    for name, one in content.items():
        print(name, one["stage"]["verdict"]["text"])


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
