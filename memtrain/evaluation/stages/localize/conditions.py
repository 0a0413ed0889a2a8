"""Figures of masks and of the adversarial search: per condition, and the verdict over all conditions.

Every condition has separate figures for the prompts in question and for the controls. `reproduced` counts prompts with
a seed closer to its own image than controls' unmasked images, at the stated false-positive rate. `below_every_control`
counts prompts whose re-triggered image is closer than that of every control after the same search. This takes out what
the search does without a memory, at a false-positive rate of 1 / (controls + 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.measures.fidelity import retrieved
from memtrain.evaluation.measures.pixels import diversity
from memtrain.evaluation.measures.replication import Replication, replication, reproduction_threshold, same_picture
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.functional.ranking import auroc, mean_with_interval, share
from memtrain.localization.found import Found
from memtrain.models.neuron_mask import NeuronMask

UNMASKED, MASKED, UNION = "unmasked", "masked", "all masks"
SEARCHED = " + re-trigger"
OTHERS = 4
"""Number of other prompts that fidelity compares an image's own prompt with."""
LAST = 10
"""Number of steps whose mean loss stands for the beginning or the end of the search."""


@dataclass(frozen=True)
class Condition:
    """Images of some prompts under one condition, and their figures.

    Attributes:
        rows: the n rows of the prompts.
        images: the images, `(n, K, 3, H, W)` uint8.
        ratio: the distance ratio to the own image, `(n, K)`; None if own images are not known.
        spread: the distance between seeds, `(n,)`; None with one seed.
        fidelity: the fidelity of the images, `(K,)` bool by row, for the rows where it was measured.
        losses: the losses of the search, `(n, steps)`, if there was a search.
    """

    rows: tuple[int, ...]
    images: Tensor
    ratio: Tensor | None
    spread: Tensor | None
    fidelity: dict[int, Tensor]
    losses: Tensor | None


@dataclass
class Conditions:
    """All conditions of one evaluation.

    Args:
        pipeline: the unmasked pipeline, which judges the fidelity.
        prompts: the P prompts.
        own_images: the prompts' own images, `(P, 3, H, W)` uint8, if they are known.
        compared: the rows of the prompts whose fidelity is measured, the same in every condition without a search.
        false_positive_rate: the false-positive rate of the threshold; by default the lowest that the number of controls
            allows, and at least 0.01.
    """

    pipeline: StableDiffusionPipeline
    prompts: Sequence[PromptToScore]
    own_images: Tensor | None
    compared: Sequence[int]
    false_positive_rate: float | None = None
    found: dict[str, Condition] = field(default_factory=dict)

    def fidelity(self, rows: Sequence[int], images: Tensor, *, searched: bool) -> dict[int, Tensor]:
        """Measure the fidelity `(K,)` of each row's images, with no mask in place; an empty mapping after a search."""
        texts = [self.prompts[row].text for row in self.compared]
        if searched or len(texts) <= OTHERS:
            return {}
        place = [list(rows).index(row) for row in self.compared]
        judged = retrieved(self.pipeline, images[place], texts, others=OTHERS)
        return dict(zip(self.compared, judged, strict=True))

    def add(
        self,
        name: str,
        rows: Sequence[int],
        *,
        images: Tensor,
        losses: Tensor | None = None,
        judged: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Measure the images `(n, K, 3, H, W)` of some prompts; `judged` is their fidelity, if it is known."""
        fidelity = dict(self.fidelity(rows, images, searched=losses is not None) if judged is None else judged)
        ratio, spread = self._ratio(images, rows), diversity(images)
        self.found[name] = Condition(tuple(rows), images, ratio, spread, fidelity, losses)

    def _ratio(self, images: Tensor, rows: Sequence[int]) -> Tensor | None:
        if self.own_images is None:
            return None
        own = self.own_images
        family = same_picture(own)
        if len(family.unique()) < 2:
            return None
        index = torch.tensor(list(rows))
        measured: Replication = replication(
            images, own[index], training=own, own_index=index, family=family, device=self.pipeline.device
        )
        return measured.ratio

    @property
    def controls(self) -> list[int]:
        """Rows of the prompts known not to be memorized."""
        return [row for row, prompt in enumerate(self.prompts) if prompt.memorized is False]

    @property
    def threshold(self) -> dict[str, Any] | None:
        """Ratio of reproduced images, set by the controls' unmasked images; None without controls."""
        plain, controls = self.found[UNMASKED], self.controls
        if plain.ratio is None or not controls:
            return None
        place = [plain.rows.index(row) for row in controls]
        rate = self.false_positive_rate or max(0.01, 1 / (len(controls) + 1))
        value = reproduction_threshold(plain.ratio[place].amin(dim=1), rate)
        return {"threshold": value, "false_positive_rate": rate, "n_controls": len(controls)}

    def summarize(self) -> dict[str, Any]:
        """Return `replication` with the threshold, and `conditions` by name and group."""
        threshold = self.threshold
        limit = None if threshold is None else float(threshold["threshold"])
        reason = "own images of the prompts and of controls are missing"
        figures = {name: self._condition(condition, limit) for name, condition in self.found.items()}
        return {"replication": threshold or {"threshold": None, "reason": reason}, "conditions": figures}

    def _condition(self, condition: Condition, threshold: float | None) -> dict[str, Any]:
        controls = set(self.controls)
        searched = self.found.get(UNMASKED + SEARCHED)
        alone = None
        if condition.losses is not None and searched is not None:
            alone = [place for place, row in enumerate(searched.rows) if row in controls]
        groups: dict[str, Any] = {}
        for group, inside in (("asked", False), ("controls", True)):
            places = [place for place, row in enumerate(condition.rows) if (row in controls) is inside]
            if not places:
                continue
            figures: dict[str, Any] = {"n": len(places)}
            if condition.ratio is not None:
                best = condition.ratio[places].amin(dim=1)
                figures["best_ratio"] = _quartiles(best)
                if threshold is not None:
                    figures["reproduced"] = share((best < threshold).tolist())
                    figures["share_of_images"] = float((condition.ratio[places] < threshold).double().mean())
                if alone and not inside and searched is not None and searched.ratio is not None:
                    lowest = searched.ratio[alone].amin(dim=1).min()
                    figures["below_every_control"] = share((best < lowest).tolist())
            if condition.spread is not None:
                figures["diversity"] = mean_with_interval(condition.spread[places])
            chosen = [condition.rows[place] for place in places]
            judged = [condition.fidelity[row] for row in chosen if row in condition.fidelity]
            if judged:
                figures["fidelity"] = mean_with_interval(torch.stack(judged).double().mean(dim=1))
            if condition.losses is not None:
                losses = condition.losses[places]
                figures["search_loss"] = {
                    "first": float(losses[:, :LAST].mean(dim=1).median()),
                    "last": float(losses[:, -LAST:].mean(dim=1).median()),
                }
                if alone and not inside and searched is not None and searched.losses is not None:
                    both = torch.cat([losses, searched.losses[alone]])[:, -LAST:].mean(dim=1)
                    labels = torch.arange(len(both)) < len(losses)
                    figures["search_loss"]["auroc_against_controls"] = float(auroc(-both, labels))
            groups[group] = figures
        return groups

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per condition and prompt."""
        threshold = self.threshold
        table = []
        for name, condition in self.found.items():
            for place, row in enumerate(condition.rows):
                best = None if condition.ratio is None else float(condition.ratio[place].min())
                fidelity = condition.fidelity.get(row)
                losses = condition.losses
                table.append(
                    {
                        "prompt": self.prompts[row].text,
                        "memorized": self.prompts[row].memorized,
                        "condition": name,
                        "best_ratio": best,
                        "reproduced": None if best is None or threshold is None else best < threshold["threshold"],
                        "diversity": None if condition.spread is None else float(condition.spread[place]),
                        "fidelity": None if fidelity is None else float(fidelity.double().mean()),
                        "search_loss": None if losses is None else float(losses[place, -LAST:].mean()),
                    }
                )
        return table


def _quartiles(values: Tensor) -> dict[str, float]:
    return {"min": float(values.min()), "median": float(values.median()), "max": float(values.max())}


def neuron_figures(found: Sequence[Found], sites: Sequence[str], whole: NeuronMask | None) -> dict[str, Any]:
    """Summarize neurons per prompt and layer, over the prompts that have neurons.

    Args:
        found: the results of the prompts in question.
        sites: the searched layers.
        whole: one mask with the neurons of all these prompts.
    """
    counts = torch.tensor([one.neurons for one in found if one.neurons], dtype=torch.float64)
    layers = {site: [len(one.channels(sites).get(site, [])) for one in found if one.neurons] for site in sites}
    return {
        "per_prompt": _quartiles(counts) if len(counts) else None,
        "per_layer": {site: sum(each) / len(each) if each else 0.0 for site, each in layers.items()},
        "all_masks": 0 if whole is None else len(whole),
    }


def change_of_loss(without: Tensor, masked: Tensor) -> dict[str, Any]:
    """Compute the relative change of the mean loss, with a bootstrap interval over images.

    Args:
        without: the losses without masks, `(n,)`.
        masked: the losses with masks, `(n,)`, for the same images and noise.

    Returns:
        `n`, the mean losses, `change` and `interval`, which is None for a single image.

    Raises:
        DataError: if there is no image.
    """
    count = len(without)
    if not count:
        raise DataError(
            "There are no losses to compare", expected="losses of at least one image", remedy="hold out more images"
        )
    drawn = torch.randint(count, (1000, count), generator=torch.Generator().manual_seed(0))
    changes = masked.double()[drawn].mean(dim=1) / without.double()[drawn].mean(dim=1) - 1
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return {
        "n": count,
        UNMASKED: float(without.mean()),
        UNION: float(masked.mean()),
        "change": float(masked.double().mean() / without.double().mean() - 1),
        "interval": torch.quantile(changes, ends).tolist() if count > 1 else None,
    }


def verdict(results: Mapping[str, Any]) -> dict[str, str]:
    """Judge the masks in one word (`level`) and in sentences (`text`). No level says that images are gone.

    Args:
        results: the parts `located`, `conditions` and `replication` of the results.
    """
    conditions = results["conditions"]

    def count(name: str, group: str = "asked") -> Mapping[str, Any] | None:
        found: Mapping[str, Any] | None = conditions.get(name, {}).get(group, {}).get("reproduced")
        return found

    before, after = count(UNMASKED), count(MASKED)
    if not results["located"]["asked"]["k"]:
        return {
            "level": "nothing_located",
            "text": "The search found no neurons for these prompts, so no neurons were masked.",
        }
    if before is None or after is None:
        text = "Neurons were masked. The effect is not known, because own images or controls are missing."
        return {"level": "not_measured", "text": text}
    masked = (
        f"With the masks, {after['k']} of {after['n']} prompts reproduce their image; without masks, {before['k']} do."
    )
    if after["k"] >= before["k"]:
        return {"level": "nothing_suppressed", "text": f"{masked} The masks suppress nothing."}
    control, unmasked = count(UNMASKED + SEARCHED, "controls"), count(UNMASKED + SEARCHED)
    searched = count(MASKED + SEARCHED)
    if searched is None or control is None or unmasked is None:
        untested = "This is trigger suppression. It was not tested whether the images are gone."
        return {"level": "trigger_suppression", "text": f"{masked} {untested}"}
    text = (
        f"{masked} An adversarial search brings back {searched['k']} of {searched['n']} images with masks, and "
        f"{unmasked['k']} of {unmasked['n']} without masks. It also brings back {control['k']} of {control['n']} "
        f"images that were never trained on."
    )
    # A search that brings back no more images than for unseen images shows nothing about a memory.
    if unmasked["share"] <= control["share"]:
        return {
            "level": "trigger_suppression",
            "text": f"{text} Such a search cannot tell whether the images are gone.",
        }
    if searched["share"] > control["share"]:
        return {"level": "trigger_suppression", "text": f"{text} This is trigger suppression, not erasure."}
    return {"level": "not_brought_back", "text": f"{text} With masks, it brings back no larger share than of those."}
